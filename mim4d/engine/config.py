"""Configuration of a run: dataclasses, presets in YAML, strict reading, honest comparison.

A configuration is a tree of dataclasses and nothing else: it executes no code and resolves no names. Its three branches
belong to the rooms that read them: ``data`` (:class:`mim4d.data.clips.DataConfig`), ``model``
(:class:`mim4d.models.mim4d.ModelConfig`) and ``train`` (:class:`TrainConfig`, here). A preset is a YAML file with the
same three branches that names only what differs from the dataclasses' defaults; the command line overrides the preset.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from mim4d.data.clips import DataConfig
from mim4d.errors import UserError, did_you_mean
from mim4d.models.mim4d import ModelConfig

T = TypeVar("T")

PRESET_FOLDER = Path(__file__).resolve().parent.parent / "configs"

# What may change when a run is continued: it says where things lie, how fast they go or how often they are written, and
# not what is computed. (That the data behind a moved root are the same is checked by the clips' tokens.)
FREE_KEYS = frozenset(
    {
        "preset",
        "data.root",
        "data.workers",
        "train.accumulate",  # against another number of processes: the clips per step are compared
        "train.save_every",
        "train.keep",
        "train.log_every",
        "train.threads",
        "train.picture_stride",
        "train.compare_steps",
    }
)
# The run's length may grow; the engine compares the numbers of steps that follow from these two keys.
LENGTH_KEYS = frozenset({"train.steps", "train.epochs"})


@dataclass
class TrainConfig:
    """How a model is trained (METHOD section 7)."""

    steps: int = 0
    """Optimiser steps in all; 0 takes the number that follows from train.epochs. May grow when a run is continued."""
    epochs: float = 12.0
    """Passes over the training clips, where train.steps is 0."""
    batch: int = 1
    """Clips per process and forward pass."""
    accumulate: int = 1
    """Forward passes per optimiser step."""
    lr: float = 2e-4
    """Peak learning rate for 8 clips per step; scaled linearly with batch x accumulate x processes / 8."""
    weight_decay: float = 0.01
    """AdamW's decay; norms, biases and other vectors are left out."""
    backbone_lr: float = 0.1
    """Factor on the learning rate of the image backbone."""
    field_lr: float = 1.0
    """Factor on the learning rate of the renderer's field: its decoders and sharpness."""
    clip_norm: float = 35.0
    """Largest norm of the whole gradient."""
    warmup_steps: int = 500
    """Steps of linear warm-up."""
    warmup_from: float = 1.0 / 3.0
    """The warm-up starts at this part of the peak."""
    final_lr: float = 1e-3
    """The cosine ends at this part of the peak."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: autocast of the network; geometry, SDF and compositing stay in fp32."""
    channels_last: bool = True
    """Convolution weights of the image encoder in channels-last memory order."""
    compile: bool = False
    """Run the model through torch.compile."""
    device: Literal["auto", "cpu"] = "auto"
    """auto: the GPU where there is one."""
    threads: int = 0
    """CPU threads; 0 leaves torch's own choice. Another number may change the last bits of a CPU run."""
    seed: int = 0
    """Seeds weights, order of clips, rays, masks and jitter."""
    save_every: int = 500
    """Steps between checkpoints; 0 saves at the end only (and on Ctrl-C)."""
    keep: int = 2
    """Newest checkpoints kept; 0 keeps all."""
    log_every: int = 1
    """Steps between rows of metrics.jsonl; without a terminal, lines of output come at some of these."""
    val_clips: int = 32
    """Held-out clips, evenly spread over the held-out split, that are evaluated before and after; 0 takes all."""
    picture_stride: int = 4
    """Pictures are rendered at every n-th pixel."""
    compare_steps: int = 3
    """Steps at the end that are timed with the run's backends and with the references in turns; 0: none."""

    def check(self) -> None:
        """Raises UserError naming the first option whose value cannot work."""
        for option, good, need in (
            ("steps", self.steps >= 0, "must not be negative"),
            (
                "epochs",
                self.steps > 0 or 0 < self.epochs < math.inf,
                "or steps must be above 0: there is nothing to do",
            ),
            ("batch", self.batch >= 1, "must be at least 1"),
            ("accumulate", self.accumulate >= 1, "must be at least 1"),
            ("lr", 0 < self.lr < math.inf, "must be above 0"),
            ("weight-decay", 0 <= self.weight_decay < math.inf, "must not be negative"),
            ("backbone-lr", 0 <= self.backbone_lr < math.inf, "must not be negative"),
            ("field-lr", 0 <= self.field_lr < math.inf, "must not be negative"),
            ("clip-norm", 0 < self.clip_norm < math.inf, "must be above 0"),
            ("warmup-steps", self.warmup_steps >= 0, "must not be negative"),
            ("warmup-from", 0 <= self.warmup_from <= 1, "is a part of the peak: it must be in [0, 1]"),
            ("final-lr", 0 <= self.final_lr <= 1, "is a part of the peak: it must be in [0, 1]"),
            ("threads", self.threads >= 0, "must not be negative"),
            ("seed", self.seed >= 0, "must not be negative"),
            ("save-every", self.save_every >= 0, "must not be negative"),
            ("keep", self.keep >= 0, "must not be negative"),
            ("log-every", self.log_every >= 1, "must be at least 1"),
            ("val-clips", self.val_clips >= 0, "must not be negative"),
            ("picture-stride", self.picture_stride >= 1, "must be at least 1"),
            ("compare-steps", self.compare_steps >= 0, "must not be negative"),
        ):
            if not good:
                raise UserError(f"--train.{option} {getattr(self, option.replace('-', '_'))!r} {need}")


@dataclass
class PretrainConfig:
    """A whole pre-training run."""

    data: DataConfig
    model: ModelConfig
    train: TrainConfig = field(default_factory=TrainConfig)
    preset: str = ""
    """Name of the preset that the run started from; for the reader, never compared."""


@dataclass(kw_only=True)
class PretrainArguments(PretrainConfig):
    """The command line of ``mim4d pretrain``: a configuration and where the run lies."""

    out: Path
    """Folder of the run; one that is there is continued."""

    def config(self) -> PretrainConfig:
        """The configuration alone."""
        return PretrainConfig(data=self.data, model=self.model, train=self.train, preset=self.preset)


def default_config() -> PretrainConfig:
    """The dataclasses' defaults, with an empty ``data.root``."""
    return PretrainConfig(data=DataConfig(root=""), model=ModelConfig(), train=TrainConfig())


def to_dict(config: Any) -> dict[str, Any]:
    """Nested plain dict of a dataclass (tuples become lists), fit for YAML and JSON."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, (list, tuple)):
            return [plain(entry) for entry in value]
        return value

    return plain(config)


def flatten(config: Any) -> dict[str, Any]:
    """``{"train.steps": 150, ...}``: every leaf of the tree under its dotted key."""
    leaves: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, entry in value.items():
                walk(f"{prefix}.{key}" if prefix else key, entry)
        else:
            leaves[prefix] = value

    walk("", to_dict(config))
    return leaves


def update(base: T, changes: Any, source: str, prefix: str = "") -> T:
    """A copy of the dataclass ``base`` with the entries of a nested mapping in place of its own.

    Strict: raises :class:`UserError` naming ``source`` (the file) and the dotted key for an unknown key, with the
    nearest known one, and for a value of the wrong type. Integers pass as floats, and so does text like ``2e-4`` (YAML
    reads it as text); nothing else is converted.
    """
    if not isinstance(changes, dict):
        raise UserError(f"{source}: {prefix or 'the file'} must hold keys and values, not {_shown(changes)}")
    assert dataclasses.is_dataclass(base)
    hints = typing.get_type_hints(type(base))
    names = [f.name for f in dataclasses.fields(base)]
    new: dict[str, Any] = {}
    for key, value in changes.items():
        dotted = f"{prefix}.{key}" if prefix else str(key)
        if key not in names:
            # at the top, a leaf of one of the branches may be meant
            known = {*names, *flatten(base)} if not prefix else {f"{prefix}.{name}" for name in names}
            raise UserError(f"{source}: unknown key {dotted}{did_you_mean(dotted, known)}")
        current = getattr(base, key)
        if dataclasses.is_dataclass(current):
            new[key] = update(current, value, source, dotted)
        else:
            new[key] = _convert(value, hints[key], source, dotted)
    return dataclasses.replace(base, **new)  # type: ignore[type-var]


def _shown(value: Any) -> str:
    return f"{value!r} ({type(value).__name__})"


def _convert(value: Any, hint: Any, source: str, key: str) -> Any:
    """``value`` as the type ``hint``, or a :class:`UserError` that says what was wanted."""

    def wrong(wanted: str) -> UserError:
        return UserError(f"{source}: {key} must be {wanted}, not {_shown(value)}")

    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value not in arguments:
            choices = ", ".join(str(choice) for choice in arguments)
            raise UserError(f"{source}: {key} must be one of {choices}, not {value!r}")
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        rest = [argument for argument in arguments if argument is not type(None)]
        for argument in rest[:-1]:
            try:
                return _convert(value, argument, source, key)
            except UserError:
                continue
        return _convert(value, rest[-1], source, key)
    if origin in (tuple, list):
        if not isinstance(value, (list, tuple)):
            raise wrong("a list")
        if origin is tuple and Ellipsis not in arguments:
            if len(value) != len(arguments):
                raise wrong(f"a list of {len(arguments)}")
            return tuple(_convert(entry, each, source, key) for entry, each in zip(value, arguments, strict=True))
        return origin(_convert(entry, arguments[0], source, key) for entry in value)
    if hint is float:
        if isinstance(value, str):
            try:
                return float(value)
            except ValueError:
                raise wrong("a number") from None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise wrong("a number")
        return float(value)
    if hint is int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise wrong("a whole number")
        return value
    if hint is bool and not isinstance(value, bool):
        raise wrong("true or false")
    if hint is str and not isinstance(value, str):
        raise wrong("text")
    return value


def preset_names() -> list[str]:
    """Names of the presets that come with the package."""
    return sorted(path.stem for path in PRESET_FOLDER.glob("*.yaml"))


def load_preset(name: str) -> PretrainConfig:
    """The preset called ``name``, or the one in the YAML file of that path (``.yaml`` or ``.yml``)."""
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise UserError(f"no such preset file: {name}")
    else:
        path = PRESET_FOLDER / f"{name}.yaml"
        if name not in preset_names():
            raise UserError(
                f"unknown preset {name!r}{did_you_mean(name, preset_names())} (there are: {', '.join(preset_names())})"
            )
    config = update(default_config(), read_yaml(path), path.name)
    config.preset = name
    return config


def load_config(path: Path) -> PretrainConfig:
    """The configuration that :func:`save_config` wrote."""
    return update(default_config(), read_yaml(path), str(path))


def save_config(config: PretrainConfig, path: Path) -> None:
    """Write ``config`` as YAML, whole or not at all."""
    text = yaml.safe_dump(to_dict(config), sort_keys=False, default_flow_style=False, width=1000)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def read_yaml(path: Path) -> Any:
    """The plain content of a YAML file; :class:`UserError` with the line where it cannot be read."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise UserError(f"{path}{where}: not YAML ({getattr(error, 'problem', None) or 'unreadable'})") from None
    return {} if content is None else content


def differences(old: PretrainConfig, new: PretrainConfig) -> list[str]:
    """``["train.lr: 0.0002 -> 0.001", ...]`` for the keys that must not change while a run is continued.

    :data:`FREE_KEYS` and :data:`LENGTH_KEYS` are left out.
    """
    before, after = flatten(old), flatten(new)
    keys = [key for key in before if key not in FREE_KEYS | LENGTH_KEYS]
    return [f"{key}: {before[key]} -> {after[key]}" for key in keys if before[key] != after[key]]


def check(config: PretrainConfig) -> None:
    """Raise :class:`UserError` for values that cannot be meant, naming the key."""
    for key, value in flatten(config).items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, float) and not math.isfinite(number):
                raise UserError(f"--{key.replace('_', '-')} {value!r} must be finite")
    config.data.check()
    config.model.check()
    config.train.check()
    if config.model.ssim_weight and config.data.patch < 3:
        raise UserError(
            f"--model.ssim-weight {config.model.ssim_weight!r} compares patches: it needs --data.patch 3 or more, "
            f"not {config.data.patch}"
        )


def total_steps(train: TrainConfig, clips: int, clips_per_step: int) -> int:
    """Optimiser steps of the run: ``train.steps``, or enough for ``train.epochs`` passes over ``clips`` clips."""
    return train.steps or max(1, math.ceil(train.epochs * clips / clips_per_step))

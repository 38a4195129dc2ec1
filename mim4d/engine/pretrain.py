"""The main job: masked multi-view video in, trained weights, held-out numbers and pictures out.

One run, in order: check everything, build, measure and draw the untrained model, train with checkpoints, measure and
draw again, write ``summary.json`` and the report. Every random draw follows from the seed and the place in the stream
of clips, so a run that was stopped and continued computes the same as one that never stopped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import broadcast_object_list, gather_object

from mim4d.data import ClipBatch, ClipDataset, collate, fit_trivial, open_datasets
from mim4d.engine import checkpoint, folder
from mim4d.engine import config as configs
from mim4d.engine.batches import StepSampler, Stream, load_batches, mix, spread
from mim4d.engine.config import PretrainConfig
from mim4d.engine.environment import check_backend, facts
from mim4d.engine.evaluate import DIRECT, RECONSTRUCTED, TRIVIAL, TRIVIAL_RECONSTRUCTED, Numbers, evaluate
from mim4d.engine.logbook import Logbook, Means, write_json
from mim4d.engine.optim import build_optimizer, lr_factor, peak_lr, set_lr
from mim4d.engine.progress import Display, clock
from mim4d.engine.render import boxes, draw, picture_clip, save_arrays, save_pictures
from mim4d.engine.signals import Interrupted, StopRequest, TrainingFailed
from mim4d.engine.speed import OWN, REFERENCE, compare_step_times
from mim4d.errors import UserError
from mim4d.models import MIM4D, Output, build_model

WORLD_MANIFEST = "world.json"  # what `mim4d world` leaves in its folder: the arguments that made it


@dataclass
class Job:
    """Everything a run holds on to."""

    config: PretrainConfig
    run: Path
    accelerator: Accelerator
    display: Display
    train_clips: ClipDataset
    val_clips: ClipDataset
    stream: Stream
    total: int  # optimiser steps
    model: MIM4D
    wrapped: torch.nn.Module  # the model as accelerate runs it
    optimizer: torch.optim.Optimizer
    data: str  # digest of the clips, see _fingerprint
    book: Logbook | None = None  # of the main process, while it works
    step: int = 0  # steps done
    seconds: float = 0.0  # of work in earlier sessions
    training_seconds: float = 0.0
    started: float = dataclasses.field(default_factory=time.perf_counter)

    @property
    def is_main(self) -> bool:
        return self.accelerator.is_main_process

    def worked(self) -> float:
        """Seconds of work in all sessions of the run."""
        return self.seconds + time.perf_counter() - self.started


def pretrain(config: PretrainConfig, run: Path) -> dict[str, Any]:
    """Train, or continue, the run in the folder ``run``; returns what ``summary.json`` holds.

    Raises:
        UserError: wrong configuration, data, backend, backbone or folder; a new folder is not left behind.
        Interrupted: Ctrl-C or SIGTERM; a checkpoint was written.
        TrainingFailed: the loss or its gradient is not finite.
    """
    configs.check(config)
    continues = folder.check_folder(run, config)
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    accelerator = Accelerator(
        cpu=config.train.device == "cpu",
        mixed_precision="bf16" if config.train.precision == "bf16" else "no",
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    display = Display(quiet=not accelerator.is_main_process)
    check_backend(accelerator.device)
    with _warnings_as_lines(display):
        display.line(f"reading {config.data.root}")
        train_clips, val_clips = open_datasets(config.data, seed=config.train.seed)
        processes = accelerator.num_processes
        stream = Stream(len(train_clips), config.train.batch, config.train.accumulate, processes, config.train.seed)
        total = configs.total_steps(config.train, stream.clips, stream.clips_per_step)
        if continues:
            _check_length(run, config, stream, total)
        summary = folder.read_summary(run) if continues else {}
        if summary.get("finished") and summary["steps"] == total:
            display.line(
                f"{run} is finished ({total} steps); to train longer: mim4d pretrain --out {run} --train.steps N"
            )
            return summary
        lock = folder.locked(run) if accelerator.is_main_process else contextlib.nullcontext()
        with lock:
            job = _build(config, run, accelerator, display, train_clips, val_clips, stream, total)
            with _faults_in_words(job):
                return _work(job)


def _check_length(run: Path, config: PretrainConfig, stream: Stream, total: int) -> None:
    old = configs.total_steps(configs.load_config(run / folder.CONFIG).train, stream.clips, stream.clips_per_step)
    if total < old:
        raise UserError(
            f"{run} is a run of {old} steps: train.steps may grow, not shrink to {total}; name another --out"
        )


def _build(
    config: PretrainConfig,
    run: Path,
    accelerator: Accelerator,
    display: Display,
    train_clips: ClipDataset,
    val_clips: ClipDataset,
    stream: Stream,
    total: int,
) -> Job:
    """Model and optimiser, from the newest checkpoint where there is one."""
    newest = checkpoint.latest(run)
    model_config = config.model
    if newest is not None:  # its weights come from the checkpoint: nothing to fetch
        model_config = dataclasses.replace(model_config, pretrained=False, backbone_checkpoint="")
    torch.manual_seed(mix(config.train.seed, 0))
    model = build_model(model_config)
    if config.train.channels_last:
        model.image_encoder.to(memory_format=torch.channels_last)
    if config.train.compile:
        model.compile()
    wrapped = accelerator.prepare_model(model)
    optimizer = build_optimizer(model, config.train, model.image_encoder.backbone, model.renderer.field)
    data = _fingerprint(train_clips, val_clips)
    job = Job(config, run, accelerator, display, train_clips, val_clips, stream, total, model, wrapped, optimizer, data)
    if newest is not None:
        state = checkpoint.load(newest, model, optimizer)
        if state["data"] != data:
            raise UserError(f"the data under --data.root {config.data.root} are not those that {run} was trained on")
        if state["clips_per_step"] != stream.clips_per_step:
            raise UserError(
                f"{run} takes {state['clips_per_step']} clips per step; {accelerator.num_processes} process(es) with "
                f"train.accumulate {stream.accumulate} would take {stream.clips_per_step}: change one of the two"
            )
        job.step, job.seconds, job.training_seconds = state["step"], state["seconds"], state["training_seconds"]
        display.line(f"continuing {run} at step {job.step} of {total}")
    return job


def _fingerprint(*datasets: ClipDataset) -> str:
    """A digest of the clips' tokens: the same data under another path have the same one."""
    digest = hashlib.sha256()
    for clips in datasets:
        for clip in clips.clips:
            digest.update(f"{clip.token}\n".encode())
        digest.update(b"--")
    return digest.hexdigest()[:16]


def _work(job: Job) -> dict[str, Any]:
    config, run, display = job.config, job.run, job.display
    if job.is_main:
        run.mkdir(parents=True, exist_ok=True)
        checkpoint.clean(run)
        configs.save_config(config, run / folder.CONFIG)
    size = sum(parameter.numel() for parameter in job.model.parameters())
    display.line(
        f"{run}: {len(job.train_clips)} training and {len(job.val_clips)} held-out clips, {size / 1e6:.1f} M "
        f"parameters, {job.total} steps of {job.stream.clips_per_step} clip(s) on {job.accelerator.device}"
        + (f" x {job.accelerator.num_processes}" if job.accelerator.num_processes > 1 else "")
    )
    summary = broadcast_object_list([folder.read_summary(run) if job.is_main else None])[0]
    with Logbook(run, job.step) if job.is_main else contextlib.nullcontext() as job.book:
        wanted = [summary.get("val", {})]
        if summary and job.config.model.reconstructed and len(job.config.data.offsets) > 1:
            wanted.append(summary.get("val_reconstructed", {}))
        if not all({"before", "trivial"} <= set(numbers) for numbers in wanted):
            if job.step:
                raise UserError(f"{run} has a checkpoint but no usable {folder.SUMMARY}; name another --out")
            summary = _measure_before(job, size)
        elif summary["finished"]:  # it grows: what it had reached is no longer its end
            summary |= {"finished": False, "steps": job.step}
            for numbers in (summary["val"], summary.get("val_reconstructed", {})):
                numbers.pop("after", None)
            if job.is_main:
                write_json(run / folder.SUMMARY, summary)
        with StopRequest() as stop:
            _train(job, stop)
        return _measure_after(job, summary)


def _measure(job: Job, when: str, trivial: bool) -> dict[str, Numbers]:
    """Held-out numbers and pictures; ``when`` is before or after."""
    config, run = job.config, job.run
    guess = None
    if trivial:
        with job.display.count("averaging the training images for the constant guess") as progress:
            guess = fit_trivial(job.train_clips, progress=progress)
    indices = spread(len(job.val_clips), config.train.val_clips)
    numbers = evaluate(
        job.model,
        job.val_clips,
        indices,
        job.accelerator,
        job.display,
        trivial=guess,
        workers=config.data.workers,
        title=f"evaluating {when} training on {len(indices)} held-out clip(s)",
    )
    shown = numbers[DIRECT]
    job.display.line(f"{when}: colour error {shown['rgb_l1']:.4f}, depth error {shown['depth_l1_m']:.2f} m")
    if job.book:
        for path, errors in numbers.items():
            job.book.evaluation(job.step, {f"{name}_{path}": value for name, value in errors.items()})
    if job.is_main:
        job.display.line(f"drawing the pictures {when} training")
        index = picture_clip(job.val_clips)
        with job.accelerator.autocast():
            arrays = draw(
                job.model,
                job.val_clips,
                index,
                stride=config.train.picture_stride,
                device=job.accelerator.device,
                seed=config.train.seed,
            )
        arrays["boxes"] = boxes(config.data, job.val_clips, index)
        save_arrays(run / folder.RENDERS / f"{when}.npz", arrays)
        if when == "after":
            save_pictures(run / folder.RENDERS / when, arrays)
    return numbers


def _measure_before(job: Job, parameters: int) -> dict[str, Any]:
    numbers = _measure(job, "before", trivial=True)
    guess = numbers[TRIVIAL]
    job.display.line(
        f"best constant guess: colour error {guess['rgb_l1']:.4f}, depth error {guess['depth_l1_m']:.2f} m"
    )
    environment = facts() if job.is_main else {}
    environment |= {"processes": job.accelerator.num_processes, "device": str(job.accelerator.device)}
    summary: dict[str, Any] = {
        "finished": False,
        "preset": job.config.preset,
        "steps": 0,
        "seconds": job.worked(),
        "val": {"before": numbers[DIRECT], "trivial": guess},
        "data": {
            "version": job.config.data.version,
            "synthetic": (manifest := Path(job.config.data.root) / WORLD_MANIFEST).is_file(),
            "world": json.loads(manifest.read_text()) if manifest.is_file() else None,
            "train_clips": len(job.train_clips),
            "val_clips": len(job.val_clips),
            "val_clips_measured": len(spread(len(job.val_clips), job.config.train.val_clips)),
            "holdout": job.config.data.holdout,
        },
        "parameters": parameters,
        "environment": environment,
    }
    if RECONSTRUCTED in numbers:
        summary["val_reconstructed"] = {
            "before": numbers[RECONSTRUCTED],
            "trivial": numbers[TRIVIAL_RECONSTRUCTED],
        }
    if job.is_main:
        write_json(job.run / folder.SUMMARY, summary)
    return summary


def _measure_after(job: Job, summary: dict[str, Any]) -> dict[str, Any]:
    numbers = _measure(job, "after", trivial=False)
    summary["val"] = {
        "before": summary["val"]["before"],
        "after": numbers[DIRECT],
        "trivial": summary["val"]["trivial"],
    }
    if RECONSTRUCTED in numbers:
        summary["val_reconstructed"]["after"] = numbers[RECONSTRUCTED]
    summary |= {"finished": True, "steps": job.step, "epochs": job.step * job.stream.clips_per_step / job.stream.clips}
    if job.is_main and job.config.train.compare_steps:
        summary["step_times"] = _step_times(job)
    summary |= {"seconds": job.worked(), "training_seconds": job.training_seconds}
    if job.is_main:
        from mim4d.viz.report import write_report

        write_json(job.run / folder.SUMMARY, summary)
        job.display.line("writing the report")
        report = write_report(job.run)
        before, after = summary["val"]["before"]["depth_l1_m"], numbers[DIRECT]["depth_l1_m"]
        job.display.line(
            f"depth error {before:.2f} m -> {after:.2f} m in {clock(summary['seconds'])}; report: {report}"
        )
    job.accelerator.wait_for_everyone()
    return summary


def _step_times(job: Job) -> dict[str, Any]:
    """Of this run's backends and of the references, on the first batch of the stream."""
    job.display.line("timing a step with this run's backends and with the references")
    clips = [job.train_clips.load(index, epoch) for epoch, index in job.stream.batch_of(0, 0, 0)]
    with job.accelerator.autocast():
        found = compare_step_times(
            job.model, collate(clips).to(job.accelerator.device), job.config.train.compare_steps, job.config.train.seed
        )
    best = {name: min(found[name]["seconds"]) for name in (OWN, REFERENCE) if (found[name] or {}).get("seconds")}
    job.display.line("forward and backward: " + ", ".join(f"{name} {best[name]:.2f} s" for name in best))
    return found


def _train(job: Job, stop: StopRequest) -> None:
    """The loop, from ``job.step`` to the end; saves on the way, at the end, and when asked to stop."""
    train, accelerator = job.config.train, job.accelerator
    peak = peak_lr(train, accelerator.num_processes)
    sampler = StepSampler(job.stream, job.step, job.total, accelerator.process_index)
    on_gpu = accelerator.device.type == "cuda"
    batches = load_batches(job.train_clips, sampler, collate, job.config.data.workers, pin=on_gpu)
    job.wrapped.train()
    with job.display.steps(job.step, job.total, train.log_every) as display:
        for step in range(job.step, job.total):
            began = time.perf_counter()
            lr = peak * lr_factor(step, job.total, train.warmup_steps, train.warmup_from, train.final_lr)
            set_lr(job.optimizer, lr)
            row = _one_step(job, step, batches, stop)
            job.step = step + 1
            job.training_seconds += time.perf_counter() - began
            asked = bool(row.pop("stop"))
            if job.book and (job.step % train.log_every == 0 or job.step == job.total):
                epoch = job.stream.epoch(step)
                job.book.row({"step": job.step, "epoch": epoch, "lr": lr, "seconds": job.training_seconds, **row})
            display.step(_shown(row))
            due = bool(train.save_every) and job.step % train.save_every == 0
            if asked or due or job.step == job.total:
                _save(job)
                display.pause()
            if asked and job.step < job.total:
                raise Interrupted(
                    f"stopped after step {job.step} of {job.total}{_go_on(job)}", 128 + (stop.requested or 15)
                )


def _shown(row: dict[str, float]) -> dict[str, str]:
    shown = {"loss": f"{row['loss']:.3f}"}
    for path in (DIRECT, RECONSTRUCTED):
        if f"depth_l1_m_{path}" in row:
            shown[path] = f"{row[f'depth_l1_m_{path}']:.1f} m"
    return shown


def _one_step(job: Job, step: int, batches: Iterator[ClipBatch], stop: StopRequest) -> dict[str, float]:
    """One optimiser step; returns loss, gradient norm, losses and metrics (means over all passes), and ``stop``.

    Of passes without a ray to compare (no frame to rebuild a target from, no LiDAR) the numbers are left out, and a
    number that no pass gave is absent: a 0 would read as perfect.
    """
    train, accelerator, model = job.config.train, job.accelerator, job.wrapped
    job.optimizer.zero_grad(set_to_none=True)
    means = Means(accelerator.device)
    passes: list[tuple[torch.Tensor, list[str]]] = []
    for part in range(train.accumulate):
        batch = next(batches).to(accelerator.device, non_blocking=True)
        # by the place in the stream, not by the process: 2 processes draw what 1 process draws in 2 passes
        seed = mix(train.seed, step, part * accelerator.num_processes + accelerator.process_index)
        torch.manual_seed(seed)  # stochastic depth draws from torch's own generator
        last = part == train.accumulate - 1
        with contextlib.nullcontext() if last else accelerator.no_sync(model):
            output: Output = model(batch, torch.Generator().manual_seed(seed))
            accelerator.backward(output.loss / train.accumulate)
        passes.append((output.loss.detach(), batch.tokens))
        means.add("loss", output.loss)
        rebuilt = output.reconstructed_valid.any()
        for name, value in output.losses.items():
            means.add(name, value, rebuilt if name.endswith(RECONSTRUCTED) else None)
        for name, value in output.metrics.items():
            means.add(name, value, ~value.isnan())
    means.add("grad_norm", accelerator.clip_grad_norm_(job.model.parameters(), train.clip_norm))
    means.add("stop", torch.tensor(float(stop.requested)))
    row = means.numbers(accelerator)  # the step's one synchronisation, on the device and among the processes
    if not (math.isfinite(row["loss"]) and math.isfinite(row["grad_norm"])):
        _fail(job, step, row, passes)
    job.optimizer.step()
    return row


def _fail(job: Job, step: int, row: dict[str, float], passes: list[tuple[torch.Tensor, list[str]]]) -> None:
    """Stop before the weights are spoilt: say where, and what to try."""
    bad = [token for loss, tokens in passes if not bool(torch.isfinite(loss)) for token in tokens]
    tokens = gather_object(bad or [token for _, some in passes for token in some])
    what = "the loss" if not math.isfinite(row["loss"]) else "the gradient"
    saved = checkpoint.latest(job.run)
    raise TrainingFailed(
        f"{what} is not finite at step {step + 1} (loss {row['loss']}, gradient norm {row['grad_norm']}; clips "
        f"{', '.join(tokens[:4])}{' ...' if len(tokens) > 4 else ''}); the weights before it are "
        f"{f'in {saved}' if saved else 'not saved'}; try a lower train.lr or train.precision fp32"
    )


def _save(job: Job) -> None:
    if job.is_main:
        state = {
            "seconds": job.worked(),
            "training_seconds": job.training_seconds,
            "clips_per_step": job.stream.clips_per_step,
            "data": job.data,
        }
        checkpoint.save(job.run, job.step, job.model, job.optimizer, state, job.config.train.keep)
    job.accelerator.wait_for_everyone()


def _go_on(job: Job) -> str:
    return f"; go on with: mim4d pretrain --out {job.run}"


@contextlib.contextmanager
def _faults_in_words(job: Job) -> Iterator[None]:
    """What may end a run from outside, as one line each."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(f"stopped at once; saved is step {_last_saved(job)}{_go_on(job)}", 130) from None
    except torch.OutOfMemoryError:
        raise TrainingFailed(
            "out of GPU memory; what helps: train.precision bf16, model.checkpointing true, train.batch 1 with more "
            "train.accumulate, fewer data.rays_per_camera or data.targets, a smaller data.image_size"
        ) from None


def _last_saved(job: Job) -> int:
    return max(checkpoint.steps_saved(job.run), default=0)


@contextlib.contextmanager
def _warnings_as_lines(display: Display) -> Iterator[None]:
    """This package's own warnings (a backbone without trained weights) as lines to read; others stay as they are."""
    package = str(Path(__file__).resolve().parent.parent)
    usual = warnings.showwarning

    def show(message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: Any = None) -> None:
        if issubclass(category, UserWarning) and filename.startswith(package):
            display.line(f"note: {message}")
        else:
            usual(message, category, filename, lineno, file, line)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield

"""Configuration: round trip, strictness with suggestions, precedence, what may change on resume."""

from __future__ import annotations

import dataclasses

import pytest
import yaml

from mim4d.engine import config as configs
from mim4d.errors import UserError, did_you_mean


def test_what_is_written_is_read_again(tmp_path):
    config = configs.default_config()
    config.data.offsets = (-0.5, 0.0)
    config.train.lr = 1e-5
    config.preset = "demo"
    configs.save_config(config, tmp_path / "config.yaml")
    assert configs.load_config(tmp_path / "config.yaml") == config


def test_the_file_is_plain_yaml_with_one_entry_per_line(tmp_path):
    configs.save_config(configs.default_config(), tmp_path / "config.yaml")
    plain = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert set(plain) == {"data", "model", "train", "preset"}
    assert plain["train"]["clip_norm"] == 35.0
    assert plain["data"]["image_size"] == [450, 800]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"train": {"seeed": 1}}, ["unknown key train.seeed", "did you mean train.seed?"]),
        ({"steps": 3}, ["unknown key steps", "did you mean train.steps?"]),
        ({"trian": {}}, ["unknown key trian", "did you mean train?"]),
        ({"train": {"steps": "many"}}, ["train.steps must be a whole number", "'many'"]),
        ({"train": {"steps": 1.5}}, ["train.steps must be a whole number"]),
        ({"train": {"steps": True}}, ["train.steps must be a whole number"]),
        ({"train": {"compile": 1}}, ["train.compile must be true or false"]),
        ({"train": {"precision": "fp8"}}, ["train.precision must be one of fp32, bf16", "fp8"]),
        ({"train": {"lr": "fast"}}, ["train.lr must be a number"]),
        ({"train": [1, 2]}, ["train must hold keys and values"]),
        ({"data": {"image_size": [1, 2, 3]}}, ["data.image_size must be a list of 2"]),
        ({"data": {"offsets": 0.5}}, ["data.offsets must be a list"]),
        ({"data": {"version": 1}}, ["data.version must be text"]),
        ([1], ["must hold keys and values"]),
    ],
)
def test_a_wrong_file_is_refused_in_words(tmp_path, content, words):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError) as caught:
        configs.load_preset(str(path))
    for word in ["mine.yaml", *words]:
        assert word in str(caught.value)


def test_numbers_that_yaml_reads_as_text_are_numbers(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("train: {lr: 2e-4, clip_norm: 5}\n")
    train = configs.load_preset(str(path)).train
    assert train.lr == 2e-4
    assert isinstance(train.clip_norm, float)


def test_not_yaml_names_the_line(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("train:\n  lr: [1\n")
    with pytest.raises(UserError, match=r"mine.yaml, line 3"):
        configs.load_preset(str(path))


def test_unknown_preset_suggests():
    with pytest.raises(UserError, match="unknown preset 'dmeo'; did you mean demo\\?"):
        configs.load_preset("dmeo")
    with pytest.raises(UserError, match="no such preset file"):
        configs.load_preset("nowhere/mine.yaml")


def test_a_preset_changes_only_what_it_names(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("train:\n  steps: 7\n")
    config = configs.load_preset(str(path))
    expected = dataclasses.replace(configs.TrainConfig(), steps=7)
    assert config.train == expected
    assert config.data == configs.default_config().data


def test_differences_name_the_keys_that_matter():
    old, new = configs.default_config(), configs.default_config()
    assert configs.differences(old, new) == []
    for key in ("save_every", "keep", "log_every", "threads", "steps"):
        setattr(new.train, key, 77)
    new.data.workers, new.data.root, new.preset = 5, "/elsewhere", "other"
    assert configs.differences(old, new) == []
    new.train.seed = 3
    new.data.rays_per_camera = 8
    assert configs.differences(old, new) == ["data.rays_per_camera: 512 -> 8", "train.seed: 0 -> 3"]


def test_structural_similarity_needs_patches():
    config = configs.default_config()
    config.model.ssim_weight = 1.0
    with pytest.raises(UserError, match=r"--model.ssim-weight 1.0 compares patches: it needs --data.patch 3 or more"):
        configs.check(config)
    config.data.patch, config.data.rays_per_camera = 3, 513
    configs.check(config)


def test_free_keys_exist():
    assert set(configs.flatten(configs.default_config())) >= configs.FREE_KEYS | configs.LENGTH_KEYS


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("batch", 0),
        ("lr", -1.0),
        ("lr", float("nan")),
        ("steps", -1),
        ("warmup_from", 1.5),
        ("log_every", 0),
        ("keep", -1),
    ],
)
def test_values_that_cannot_be_meant_are_refused(key, value):
    config = configs.default_config()
    setattr(config.train, key, value)
    with pytest.raises(UserError, match=f"--train.{key.replace('_', '-')} "):
        configs.check(config)


@pytest.mark.parametrize(
    ("branch", "key", "value"),
    [
        ("data", "tolerance", float("nan")),
        ("data", "offsets", (float("nan"), 0.0)),
        ("data", "lidar_bounds", (-1.0, -1.0, -1.0, 1.0, float("inf"), 1.0)),
        ("model", "near", float("inf")),
        ("model", "bounds", (-1.0, -1.0, float("-inf"), 1.0, 1.0, 1.0)),
        ("model", "rgb_weight", float("nan")),
        ("train", "epochs", float("inf")),
    ],
)
def test_numbers_that_are_not_finite_are_refused_everywhere(branch, key, value):
    config = configs.default_config()
    setattr(getattr(config, branch), key, value)
    with pytest.raises(UserError, match=f"--{branch}.{key.replace('_', '-')} .* must be finite"):
        configs.check(config)


def test_steps_follow_from_epochs():
    train = configs.TrainConfig(steps=0, epochs=2.5)
    assert configs.total_steps(train, clips=10, clips_per_step=4) == 7  # 25 clips in steps of 4
    assert configs.total_steps(configs.TrainConfig(steps=3), clips=10, clips_per_step=4) == 3


def test_did_you_mean():
    known = ["train.seed", "train.steps", "data.root"]
    assert did_you_mean("train.seeds", known) == "; did you mean train.seed?"
    assert did_you_mean("seed", known) == "; did you mean train.seed?"
    assert did_you_mean("zzz", known) == ""

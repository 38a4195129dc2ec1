"""The command line from outside: exit codes, one line per fault, quick help."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

import mim4d
from mim4d.cli import main

ROOT = Path(mim4d.__file__).parent.parent


def command(*arguments: str, code: str = "", **variables: str) -> subprocess.CompletedProcess:
    """Run the command in a process of its own; ``code`` runs first in it."""
    program = f"{code}\nimport sys\nfrom mim4d.cli import main\nsys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **variables},
    )


def one_line(stderr: str) -> str:
    """The one line that a wrong command line must end in."""
    lines = stderr.strip().splitlines()
    assert len(lines) == 1, stderr
    assert lines[0].startswith("mim4d: error: ")
    return lines[0]


def test_help_is_quick_because_nothing_heavy_is_imported():
    heavy = "import atexit, sys\natexit.register(lambda: print('torch' in sys.modules or 'numpy' in sys.modules))"
    result = command("--help", code=heavy)
    assert result.returncode == 0
    assert "pretrain" in result.stdout
    assert result.stdout.splitlines()[-1] == "False"


def test_python_m_runs_it():
    result = subprocess.run(
        [sys.executable, "-m", "mim4d", "--version"], capture_output=True, text=True, timeout=60, cwd=ROOT
    )
    assert result.returncode == 0
    assert result.stdout.strip() == mim4d.__version__


PRETRAIN = ["pretrain", "--preset", "demo", "--data.root", "root"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["pretrian"], "unknown command 'pretrian'; did you mean pretrain?"),
        (["pretrain", "--out", "x"], "no preset given"),
        (["pretrain", "--preset", "dmeo", "--out", "x"], "unknown preset 'dmeo'; did you mean demo?"),
        (["pretrain", "--preset", "demo", "--out", "x"], "missing: --data.root"),
        ([*PRETRAIN], "missing: --out"),
        ([*PRETRAIN, "--train.step", "3"], "unknown option --train.step; did you mean --train.steps?"),
        ([*PRETRAIN, "--seed=3"], "unknown option --seed; did you mean --train.seed?"),
        ([*PRETRAIN, "--out=x", "--train.steps=x"], "--train.steps"),
        ([*PRETRAIN, "--out", "x", "--train.steps", "-3"], "--train.steps -3 must not be negative"),
        ([*PRETRAIN, "--out", "x", "--data.holdout", "z"], "--data.holdout"),
        ([*PRETRAIN, "--out", "x", "stray"], "stray"),
        ([*PRETRAIN, "--out", "x"], "root"),
        (["render", "nowhere"], "no such run: nowhere"),
        (["world"], "missing"),
        (["world", "x", "--image-size", "128"], "--image-size is HEIGHTxWIDTH"),
        (["world", "x", "--scenes", "1"], "scenes"),
        (["world", "x", "--preset", "smal"], "--preset is one of tiny, small, large, not 'smal'; did you mean small?"),
        (["world", "x", "--scenes", "11", "--version", "v1.0-mini"], "v1.0-mini holds 10 scenes at most"),
        (["world", "x", "--workers", "-1"], "--workers is 0 (one per core) or more, not -1"),
        (["world", "x", "--traffic", "99"], "traffic: got 99.0, want"),
        (["info", "--jsn"], "unknown option --jsn; did you mean --json?"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert words in one_line(capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_wrong_data_is_one_line_and_exit_code_2(tiny_world, tiny_preset, tmp_path, capsys):
    import shutil

    def refused(root: Path, version: str = "v1.0-mini") -> str:
        arguments = ["--preset", str(tiny_preset), "--data.root", str(root), "--data.version", version]
        assert main(["pretrain", *arguments, "--out", str(tmp_path / "run")]) == 2
        assert not (tmp_path / "run").exists()
        return one_line(capsys.readouterr().err)

    assert "v1.0-trainval" in refused(tiny_world, "v1.0-trainval")
    for name in ("v1.0-mini/sample_data.json", next((tiny_world / "samples" / "CAM_FRONT").iterdir())):
        path = Path(name)
        path = path.relative_to(tiny_world) if path.is_absolute() else path
        broken = tmp_path / path.name
        shutil.copytree(tiny_world, broken)
        (broken / path).unlink()
        assert path.name in refused(broken)


@pytest.mark.parametrize("place", ["file/x", "file/x/y", "/proc/x", "/proc/x/y"])
def test_a_folder_that_cannot_be_made_is_one_line_and_exit_code_2(place, tiny_preset, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    # the folder is looked at before the data: there are none
    assert main(["pretrain", "--preset", str(tiny_preset), "--data.root", "nowhere", "--out", place]) == 2
    line = one_line(capsys.readouterr().err)
    assert f"--out {place} cannot be written" in line
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_wrong_backbone_leaves_no_folder(tiny_world, tiny_preset, tmp_path, capsys):
    arguments = ["--preset", str(tiny_preset), "--data.root", str(tiny_world), "--out", str(tmp_path / "a" / "run")]
    assert main(["pretrain", *arguments, "--model.backbone", "convnext_nano_typo"]) == 2
    assert "convnext_nano_typo" in one_line(capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_a_missing_package_names_the_extra():
    for name, arguments in {"tyro": ["info"], "yaml": ["pretrain", "--preset", "demo"]}.items():
        result = command(*arguments, code=f"import sys; sys.modules[{name!r}] = None")
        assert result.returncode == 2
        line = one_line(result.stderr)
        assert f"the package {name!r} is missing" in line
        assert "pip install 'mim4d[train]'" in line


def test_help_of_pretrain_shows_the_values_of_the_preset(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["pretrain", "--preset", "demo", "--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--train.steps INT" in text
    assert "values of preset demo" in text
    assert "--data.root STR" in text
    assert "(default: 128 224)" in text


def test_the_command_line_goes_before_the_preset(tiny_world, tiny_preset, tmp_path, monkeypatch):
    import mim4d.engine.pretrain as job

    seen = []
    monkeypatch.setattr(job, "pretrain", lambda config, run: seen.append((config, run)))
    arguments = ["--preset", str(tiny_preset), "--data.root", str(tiny_world), "--out", str(tmp_path / "run")]
    options = ["--train.steps", "9", "--train.save-every=3", "--data.offsets", "-1", "0", "--train.compile"]
    assert main(["pretrain", *arguments, *options]) == 0
    config, run = seen[0]
    assert run == tmp_path / "run"
    assert (config.train.steps, config.train.save_every, config.train.compile) == (9, 3, True)
    assert config.data.offsets == (-1.0, 0.0)
    assert config.train.lr == 4e-3  # the preset's
    assert config.train.clip_norm == 35.0  # the code's


def test_info(capsys):
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    for word in ("torch", "voxel_sample", "reference", "[train]", "GPU", "processor"):
        assert word in text
    assert main(["info", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["extras"]["train"]["tyro"]
    assert found["backends"]["voxel_sample"]["reference"] is None


def test_world(tmp_path, capsys):
    pytest.importorskip("embreex")
    out = tmp_path / "w"
    assert main(["world", str(out), "--seconds", "0.5", "--image-size", "32x56"]) == 0
    assert (out / "v1.0-mini" / "sample.json").is_file()
    assert f"--data.root {out}" in capsys.readouterr().out
    assert main(["world", str(out), "--seconds", "0.5", "--image-size", "32x56"]) == 0  # it is there already
    assert main(["world", str(out), "--seconds", "1"]) == 2  # another world is there


def test_world_options_override_the_preset(tmp_path, monkeypatch):
    pytest.importorskip("embreex")
    from mim4d.engine import world

    calls = []
    monkeypatch.setattr(world, "generate", lambda out, **options: calls.append(options))
    wanted = {
        "small": (2, 4.0, (128, 224)),
        "tiny": (2, 1.5, (48, 80)),
        "large": (10, 20.0, (256, 704)),
    }
    for preset, values in wanted.items():
        assert main(["world", str(tmp_path), "--preset", preset]) == 0
        assert (calls[-1]["scenes"], calls[-1]["seconds"], calls[-1]["image_size"]) == values
    assert main(["world", str(tmp_path)]) == 0
    assert [{**call, "progress": None} for call in (calls[0], calls[-1])] == 2 * [{**calls[0], "progress": None}]
    assert (calls[-1]["version"], calls[-1]["workers"], calls[-1]["extras"]) == ("", None, False)
    line = ["--preset=large", "--scenes", "3", "--weather", "fog", "--extras", "--workers", "4", "--seed", "5"]
    assert main(["world", str(tmp_path), *line, "--version", "v1.0-trainval"]) == 0
    last = calls[-1]
    assert (last["scenes"], last["seconds"], last["image_size"]) == (3, 20.0, (256, 704))
    assert (last["knobs"].weather, last["extras"], last["workers"], last["seed"]) == ("fog", True, 4, 5)
    assert last["version"] == "v1.0-trainval"


def test_a_gallery_is_written_after_the_world_or_alone(tmp_path, monkeypatch, capsys):
    pytest.importorskip("embreex")
    from mim4d.engine import world

    made, drawn = [], []
    page = types.ModuleType("mim4d.viz.gallery")
    page.write_gallery = lambda root, progress: drawn.append(root) or root / "gallery.html"
    monkeypatch.setitem(sys.modules, "mim4d.viz.gallery", page)
    monkeypatch.setattr(world, "generate", lambda out, **options: made.append(out))
    assert main(["world", str(tmp_path), "--gallery"]) == 0
    assert (made, drawn) == ([tmp_path], [tmp_path])
    assert f"wrote {tmp_path}/gallery.html" in capsys.readouterr().out
    (tmp_path / "world.json").write_text("{}")  # made with whatever arguments
    assert main(["world", str(tmp_path), "--gallery"]) == 0
    assert (len(made), len(drawn)) == (1, 2)
    assert main(["world", str(tmp_path), "--gallery", "--seed", "3"]) == 0
    assert (len(made), len(drawn)) == (2, 3)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_backend_that_cannot_run_is_refused(tiny_world, tiny_preset, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MIM4D_BACKEND", "cuda")
    arguments = ["--preset", str(tiny_preset), "--data.root", str(tiny_world), "--out", str(tmp_path / "run")]
    assert main(["pretrain", *arguments]) == 2
    line = one_line(capsys.readouterr().err)
    assert "MIM4D_BACKEND=cuda" in line
    assert "cuda tensors" in line
    assert not (tmp_path / "run").exists()


def test_a_misspelt_backend_is_refused():
    result = command("info", MIM4D_BACKEND="cdua")
    assert result.returncode == 2
    line = one_line(result.stderr)
    assert "MIM4D_BACKEND" in line
    assert "cdua" in line

"""Making a world: whole or not at all, the same bytes for the same arguments, one clear line for a mistake."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mim4d.errors import UserError
from mim4d.world import Knobs, generate, open_scene
from mim4d.world.tables import scene_files

TINY: dict[str, Any] = {"seconds": 0.5, "image_size": (32, 40)}


def _digest(root: Path) -> dict[str, str]:
    files = sorted(p for p in root.rglob("*") if p.is_file())
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


CALLS: list[tuple[int, int]] = []


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tiny") / "world"
    out.mkdir()  # an empty folder is as good as none
    generate(out, seed=1, progress=lambda done, total: CALLS.append((done, total)), **TINY)
    return out


@dataclass
class Killed:
    """What a killed run left, and what stood there after the next one."""

    returncode: int
    litter: list[str]
    after: list[str]
    world: Path


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Killed:
    folder = tmp_path_factory.mktemp("killed")
    code = (
        "import os; from mim4d.world import generate\n"
        "def stop(done, total):\n    if done == 3: os.kill(os.getpid(), 9)\n"
        "generate('world', seconds=0.5, image_size=(32, 40), progress=stop)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, timeout=120)
    litter = [p.name for p in folder.iterdir()]
    busy = folder / ".world.partial-busy"  # of another run, which still lives
    busy.mkdir()
    handle = os.open(busy, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    generate(folder / "world", **TINY)
    os.close(handle)
    return Killed(done.returncode, litter, sorted(p.name for p in folder.iterdir()), folder / "world")


def test_a_killed_run_leaves_no_world_and_the_next_one_cleans_up(killed: Killed) -> None:
    assert killed.returncode == -9
    assert len(killed.litter) == 1
    assert killed.litter[0].startswith(".world.partial-")
    assert killed.after == [".world.partial-busy", "world"]
    assert json.loads((killed.world / "world.json").read_text())["seed"] == 0


def test_same_seed_same_bytes(tiny: Path, tmp_path: Path) -> None:
    generate(tmp_path / "again", seed=1, **TINY)
    assert _digest(tmp_path / "again") == _digest(tiny)


def test_other_seed_other_bytes(tiny: Path, killed: Killed) -> None:
    first, other = _digest(tiny), _digest(killed.world)
    for kind in (".jpg", ".bin"):
        files = {v for k, v in first.items() if k.endswith(kind)}
        assert files
        assert files.isdisjoint(other.values())


def test_train_and_validation_differ_in_streets_and_colours(tiny: Path) -> None:
    train, _, _ = open_scene(tiny, "scene-0061")
    val, _, _ = open_scene(tiny, "scene-0103")
    assert train.style != val.style
    assert train.roads.crossings_u != val.roads.crossings_u
    assert train.sun.tolist() != val.sun.tolist()


def test_a_second_run_does_nothing(tiny: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in tiny.rglob("*")}
    generate(tiny, seed=1, **TINY, progress=lambda done, total: pytest.fail("nothing is to be made"))
    assert {p: p.stat().st_mtime_ns for p in tiny.rglob("*")} == before


def test_other_contents_are_refused(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"already holds a world made with .*seed=1.*choose another folder"):
        generate(tiny, seed=2, **TINY)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="not empty and holds no synthetic world"):
        generate(tmp_path / "mine", **TINY)
    with pytest.raises(UserError, match="is a file"):
        generate(tmp_path / "mine" / "thesis.tex", **TINY)
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work"


def test_progress_counts_every_file(tiny: Path) -> None:
    total = 2 * scene_files(0.5)
    assert [(i, total) for i in range(total + 1)] == CALLS
    written = [p for top in ("samples", "sweeps") for p in (tiny / top).rglob("*.*")]
    assert len(written) == total == 2 * (6 * 7 + 11)


def test_an_interrupted_run_leaves_nothing(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path / "deep" / "world", progress=stop, **TINY)
    assert list((tmp_path / "deep").iterdir()) == []


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"scenes": 1}, "scenes: got 1, want 2 to 10"),
        ({"scenes": 11}, "scenes: got 11, want 2 to 10"),
        ({"scenes": 2.5}, "scenes: got 2.5"),
        ({"seed": -1}, "seed: got -1"),
        ({"seconds": 0.2}, "seconds: got 0.2"),
        ({"seconds": float("nan")}, "seconds: got nan"),
        ({"seconds": 21}, "seconds: got 21"),
        ({"image_size": (16, 224)}, "image_size: got (16, 224)"),
        ({"image_size": (128, 9000)}, "image_size: got (128, 9000)"),
        ({"image_size": (128.0, 224)}, "image_size: got (128.0, 224)"),
        ({"image_size": 128}, "image_size: got 128"),
        ({"image_size": (1, 2, 3)}, "image_size: got (1, 2, 3)"),
        ({"knobs": {"weather": "fog"}}, "knobs: got {'weather': 'fog'}, want a mim4d.world.Knobs"),
    ],
)
def test_arguments_out_of_range_are_named(tmp_path: Path, wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        generate(tmp_path / "world", **wrong)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write the world to .*file/world"):
        generate(tmp_path / "file" / "world", **TINY)


def test_missing_embreex_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "embreex.rtcore_scene", None)
    with pytest.raises(UserError, match=r"needs embreex .*pip install 'mim4d\[world\]'"):
        generate(tmp_path / "world", **TINY)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"weather": "fogg"}, "weather: got 'fogg'; did you mean fog?; want one of clear, overcast, rain, fog, mixed"),
        ({"weather": 3}, "weather: got 3; want one of"),
        ({"light": "noon"}, "light: got 'noon'; want one of day, low_sun, dusk, night, mixed"),
        ({"texture": -0.1}, "texture: got -0.1, want 0 to 2"),
        ({"texture": True}, "texture: got True"),
        ({"sensor_noise": float("nan")}, "sensor_noise: got nan, want 0 to 10"),
        ({"traffic": "dense"}, "traffic: got 'dense', want 0 to 3"),
    ],
)
def test_knobs_out_of_range_are_named(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        Knobs(**wrong)
    assert words in str(caught.value)


def test_knobs_reach_the_scene_and_the_manifest(tmp_path: Path) -> None:
    knobs = Knobs(weather="rain", light="dusk", texture=1, sensor_noise=2.5, traffic=0.5)
    generate(tmp_path / "world", seed=1, knobs=knobs, **TINY)
    recorded = json.loads((tmp_path / "world" / "world.json").read_text())["knobs"]
    assert recorded == {"weather": "rain", "light": "dusk", "texture": 1.0, "sensor_noise": 2.5, "traffic": 0.5}
    assert open_scene(tmp_path / "world", "scene-0061")[0].knobs == knobs
    with pytest.raises(UserError, match="already holds a world made with"):
        generate(tmp_path / "world", seed=1, **TINY)


def test_open_scene_names_what_is_missing(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no synthetic world"):
        open_scene(tmp_path, "scene-0061")
    with pytest.raises(UserError, match="holds no scene 'scene-0001'; it holds scene-0061, scene-0103"):
        open_scene(tiny, "scene-0001")

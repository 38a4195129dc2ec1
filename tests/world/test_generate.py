"""Making a world: whole or not at all, the same bytes for the same arguments, one clear line for a mistake."""

from __future__ import annotations

import datetime
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.world_truth import digest

from mim4d.errors import UserError
from mim4d.world import Knobs, caster, generate, generator, open_scene
from mim4d.world.crew import Plan
from mim4d.world.files import Folder
from mim4d.world.pieces import Piece, Workshop, scene_pieces
from mim4d.world.recipe import Recipe, grid
from mim4d.world.scene import Scene
from mim4d.world.writer import CHANNELS, scene_files

TINY: dict[str, Any] = {"seconds": 0.5, "image_size": (32, 40)}


CALLS: list[tuple[int, int]] = []


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tiny") / "world"
    out.mkdir()  # an empty folder is as good as none
    generate(out, seed=1, progress=lambda done, total: CALLS.append((done, total)), **TINY)
    return out


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("other") / "world"
    generate(out, seed=0, workers=1, **TINY)
    return out


def test_the_manifest_names_what_was_asked(tiny: Path) -> None:
    made = json.loads((tiny / "world.json").read_text())
    assert (made["version"], made["scenes"], made["seconds"], made["image_size"]) == ("v1.0-mini", 2, 0.5, [32, 40])
    assert (made["seed"], made["extras"]) == (1, False)


def test_same_seed_same_bytes(tiny: Path, tmp_path: Path) -> None:
    generate(tmp_path / "again", seed=1, **TINY)
    assert digest(tmp_path / "again") == digest(tiny)


def test_other_seed_other_bytes(tiny: Path, other: Path) -> None:
    first, second = digest(tiny), digest(other)
    for kind in (".jpg", ".bin"):
        files = {v for k, v in first.items() if k.endswith(kind)}
        assert files
        assert files.isdisjoint(second.values())


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


@pytest.mark.parametrize("scenes", [2, 5, 10, 11, 100, 850])
def test_scenes_are_named_by_the_devkits_splits_and_share_nothing(scenes: int) -> None:
    from nuscenes.utils import splits

    recipe = Recipe(scenes=scenes)
    slots = recipe.slots()
    assert [s.index for s in slots] == list(range(scenes))
    assert recipe.version == ("v1.0-mini" if scenes <= 10 else "v1.0-trainval")
    mini = scenes <= 10
    train = set(splits.mini_train if mini else splits.train)
    val = set(splits.mini_val if mini else splits.val)
    held = [s for s in slots if s.validation]
    assert slots[-len(held) :] == held
    assert len(held) == min(max(1, scenes // 5), 150)
    assert {s.name for s in held} <= val
    assert {s.name for s in slots if not s.validation} <= train
    for unique in ("name", "logfile", "vehicle", "date", "start_us"):
        assert len({getattr(s, unique) for s in slots}) == scenes, unique
    assert len({(s.location, s.tile) for s in slots}) == scenes
    assert {s.location for s in held}.isdisjoint(s.location for s in slots if not s.validation)
    for location in {s.location for s in slots}:
        tiles = [s.tile for s in slots if s.location == location]
        columns, rows = grid(len(tiles))
        assert max(c for c, _ in tiles) < columns
        assert max(r for _, r in tiles) < rows
        assert columns * rows - len(tiles) < columns <= rows + 1  # nearly square, no row empty
    for slot in slots:
        captured = datetime.datetime.fromtimestamp(slot.start_us / 1e6, datetime.timezone.utc)
        assert captured.isoformat() == f"{slot.date}T12:00:00+00:00"


def test_pieces_cover_every_frame_once_whatever_their_size() -> None:
    sizes = set()
    for image_size in ((32, 40), (128, 224), (256, 704), (900, 1600), (2048, 2048)):
        recipe = Recipe(seconds=20, image_size=image_size)
        pieces = list(scene_pieces(recipe, recipe.slots()[0]))
        for channel in CHANNELS:
            frames = [f for p in pieces if p.kind == channel for f in range(p.first, p.stop)]
            assert frames == list(range(20 * (20 if channel == "LIDAR_TOP" else 12) + 1))
        sizes.add(max(p.files for p in pieces if p.kind == "CAM_FRONT"))
        assert len({p.name for p in pieces}) == len(pieces)
    assert len(sizes) == 5  # large images: pieces of few
    assert min(sizes) == 1


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
def test_a_plan_hands_out_every_piece_once_and_rows_after_their_files(workers: int) -> None:
    recipe = Recipe(scenes=4, seconds=2)
    scenes = [[*scene_pieces(recipe, slot), Piece(slot.name, "rows")] for slot in recipe.slots()]
    pieces = [*(p for scene in scenes for p in scene), Piece("boston-seaport", "map")]
    plan = Plan(pieces)
    made: list[Piece] = []
    busy: list[tuple[str | None, Piece | None]] = [(None, None)] * workers
    while True:
        for i, (group, piece) in enumerate(busy):
            if piece is None and (given := plan.next(group)) is not None:
                busy[i] = (given.group, given)
        working = [i for i, (_, piece) in enumerate(busy) if piece is not None]
        if not working:
            break
        if len(made) == 0:  # each on a scene of its own, as long as there are enough
            assert len({busy[i][0] for i in working}) == min(workers, 5)
        i = working[len(made) % len(working)]
        group, piece = busy[i]
        assert piece is not None
        plan.finished(piece)
        made.append(piece)
        busy[i] = (group, None)
    assert sorted(made, key=str) == sorted(pieces, key=str)
    for scene in scenes:
        assert max(made.index(p) for p in scene[:-1]) < made.index(scene[-1])


def test_many_cores_do_not_take_much_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generator, "cores", lambda: 64)
    counts = [
        generator.default_workers(Recipe(image_size=s)) for s in ((128, 224), (256, 704), (900, 1600), (2048, 2048))
    ]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == 2
    monkeypatch.setattr(generator, "cores", lambda: 2)
    assert generator.default_workers(Recipe()) == 2


def test_several_scenes_lie_beside_each_other_on_one_map(tmp_path: Path) -> None:
    from nuscenes.map_expansion.map_api import NuScenesMap
    from PIL import Image

    recipe = Recipe(scenes=9, **TINY)
    slots = [s for s in recipe.slots() if s.location == "boston-seaport"]
    assert [s.tile for s in slots] == [(0, 0), (1, 0), (0, 1)]
    folder = Folder(tmp_path)
    folder.begin(recipe.record())
    Workshop(recipe, recipe.slots(), folder).make(Piece("boston-seaport", "map"), lambda: None)
    streets = NuScenesMap(str(folder.world), "boston-seaport")
    assert streets.canvas_edge == [960, 960]
    (mask,) = (folder.world / "maps").glob("*.png")
    with Image.open(mask) as image:
        assert image.size == (9600, 9600)
        for slot in slots:
            ego, _ = Scene.streets(seed=0, index=slot.index, validation=slot.validation, seconds=0.5, tile=slot.corner)
            x, y, _ = ego.pose(0.0)[0]
            assert slot.corner[0] < x < slot.corner[0] + 480
            assert slot.corner[1] < y < slot.corner[1] + 480
            assert streets.record_on_point(x, y, "drivable_area")
            assert image.getpixel((int(x * 10), int(9600 - y * 10))) == 255
        assert image.getpixel((9000, 600)) == 0  # the fourth tile is empty


def test_version_trainval_loads_with_few_scenes(tmp_path: Path) -> None:
    from nuscenes.eval.common.loaders import load_gt
    from nuscenes.eval.detection.data_classes import DetectionBox
    from nuscenes.nuscenes import NuScenes
    from nuscenes.utils import splits

    generate(tmp_path / "world", version="v1.0-trainval", workers=1, **TINY)
    nusc = NuScenes("v1.0-trainval", str(tmp_path / "world"), verbose=False)
    assert [s["name"] for s in nusc.scene] == [splits.train[0], splits.val[0]]
    for split in ("train", "val"):
        assert len(load_gt(nusc, split, DetectionBox).sample_tokens) == 2
        assert splits.get_scenes_of_custom_split(f"world_{split}", nusc) == [getattr(splits, split)[0]]
    scene, _, start = open_scene(tmp_path / "world", splits.val[0])
    assert (scene.index, start) == (1, nusc.sample[2]["timestamp"])


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
    (tmp_path / "old").mkdir()
    made = json.loads((tiny / "world.json").read_text())
    (tmp_path / "old" / "world.json").write_text(json.dumps({**made, "format": 1}))
    with pytest.raises(UserError, match=r"already holds a world made with .* by another version of mim4d; choose"):
        generate(tmp_path / "old", seed=1, **TINY)


def test_the_folder_one_stands_in_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(UserError, match="here is the current folder, which no finished world can replace"):
        generate(".", **TINY)
    assert [p.name for p in tmp_path.rglob("*")] == ["here"]


def test_progress_counts_every_file(tiny: Path) -> None:
    total = 2 * scene_files(0.5)
    assert [(i, total) for i in range(total + 1)] == CALLS
    written = [p for top in ("samples", "sweeps") for p in (tiny / top).rglob("*.*")]
    assert len(written) == total == 2 * (6 * 7 + 11)


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"scenes": 1}, "scenes: got 1, want 2 to 850"),
        ({"scenes": 851}, "scenes: got 851, want 2 to 850"),
        ({"scenes": 11, "version": "v1.0-mini"}, "version: v1.0-mini holds 10 scenes at most"),
        ({"version": "v1.0-test"}, "version: got 'v1.0-test', want v1.0-mini or v1.0-trainval"),
        ({"workers": 0}, "workers: got 0, want a whole number from 1 on"),
        ({"extras": 1}, "extras: got 1, want True or False"),
        ({"scenes": 2.5}, "scenes: got 2.5"),
        ({"seed": -1}, "seed: got -1"),
        ({"seconds": 0.2}, "seconds: got 0.2"),
        ({"seconds": float("nan")}, "seconds: got nan"),
        ({"seconds": 21}, "seconds: got 21"),
        ({"image_size": (16, 224)}, "image_size: got (16, 224)"),
        ({"image_size": (128, 9000)}, "image_size: got (128, 9000)"),
        ({"image_size": (2048, 2049)}, "image_size: got (2048, 2049), want 4194304 pixels at most"),
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
    with pytest.raises(UserError, match=r"cannot write the world to .*file/world: .*/file\)$"):
        generate(tmp_path / "file" / "world", **TINY)
    (tmp_path / ".world.partial").write_text("")
    with pytest.raises(UserError, match=r"cannot write the world to .*/world: .*/.world.partial\)$"):
        generate(tmp_path / "world", **TINY)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".world.partial", "file"]


def test_missing_embreex_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caster, "_library", lambda: None)
    monkeypatch.setitem(sys.modules, "embreex.rtcore_scene", None)
    with pytest.raises(UserError, match=r"needs mim4d.s native library .*embreex .*pip install 'mim4d\[world\]'"):
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
    (tmp_path / "old").mkdir()
    made = json.loads((tiny / "world.json").read_text())
    (tmp_path / "old" / "world.json").write_text(json.dumps({**made, "format": 1}))
    with pytest.raises(UserError, match=r"old: made by another version of mim4d \(format 1, this one makes"):
        open_scene(tmp_path / "old", "scene-0061")
    with pytest.raises(UserError, match="holds no synthetic world"):
        open_scene(tmp_path, "scene-0061")
    with pytest.raises(UserError, match="holds no scene 'scene-0001'; it holds scene-0061, scene-0103"):
        open_scene(tiny, "scene-0001")

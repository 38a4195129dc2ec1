"""The gallery: one file that shows every scene, with boxes where the things are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from helpers.html_page import Page, decode
from helpers.world_truth import SECONDS, SIZE
from nuscenes.utils.color_map import get_colormap

from mim4d.data import HdMap
from mim4d.errors import UserError
from mim4d.viz import gallery
from mim4d.viz.album import Shown, map_around, open_truth, read_manifest, read_world
from mim4d.viz.driving import CLASS_COLOURS, LocalMap, corners, draw_boxes, from_above, normals_to_rgb
from mim4d.viz.gallery import write_gallery
from mim4d.world import open_scene
from mim4d.world.models import KINDS
from mim4d.world.sensors import CAMERAS, camera_depth, look
from mim4d.world.taxonomy import DETECTION

SCENES = ["scene-0061", "scene-0103"]
CALLS: list[tuple[int, int]] = []


@pytest.fixture(scope="module")
def copy(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The world of this room, to write the page into."""
    return Path(shutil.copytree(root, tmp_path_factory.mktemp("gallery") / "world"))


@pytest.fixture(scope="module")
def page(copy: Path) -> Page:
    before = set(copy.rglob("*"))
    path = write_gallery(copy, lambda done, total: CALLS.append((done, total)))
    assert path == copy / "gallery.html"
    assert set(copy.rglob("*")) - before == {path}
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def scenes(root: Path) -> list[Shown]:
    return read_world(root)


# --- the page ---------------------------------------------------------------------------------------------------------


def test_page_is_one_file_that_needs_nothing_else(page: Page, copy: Path) -> None:
    page.check_self_contained()
    page.check_anchors()
    # With ten scenes and films of full length it must stay near 8 MB: see MOST in gallery.py.
    assert (copy / "gallery.html").stat().st_size < 2 * 0.9e6
    assert CALLS == [(0, 2), (1, 2), (2, 2)]


def test_every_scene_and_class_is_there(page: Page, root: Path) -> None:
    sections = [attributes["id"] for attributes in page.of("section")]
    assert sections == ["world", *SCENES]
    heads = page.text("thead")
    for name in CLASS_COLOURS:
        assert name.replace("_", " ") in heads
    words = page.text("tbody")
    made = json.loads((root / "world.json").read_text())
    for key in {*made, *made["knobs"]} - {"knobs"}:
        assert key in words
    assert "Knobs" in page.text("caption")
    assert "training" in words
    assert "validation" in words


def test_every_picture_decodes_and_is_described(page: Page) -> None:
    images = page.of("img")
    # cameras 6, the drive, LiDAR over an image, from above, distances 6, normals 6
    assert len(images) == 2 * (6 + 1 + 1 + 1 + 6 + 6)
    words = [attributes["alt"] or "" for attributes in images]
    assert len(set(words)) == len(words)
    for scene in SCENES:
        for camera in CAMERAS:
            name = camera.removeprefix("CAM_").replace("_", " ").lower()
            assert f"{scene}: {name} camera with boxes" in words
    assert len(page.pictures()) == len(images) + 2  # and a still for readers who asked for less motion


def test_the_drive_moves(page: Page) -> None:
    films = [decode(a["src"] or "") for a in page.of("img") if "the drive" in (a["alt"] or "")]
    stills = [a for a in page.of("source") if a["media"] == "(prefers-reduced-motion: reduce)"]
    assert len(films) == len(stills) == 2
    for film, still in zip(films, stills, strict=True):
        assert film.n_frames == 2 * SECONDS * 2 + 1  # four a second; the last key frame has no later moment
        shown = []
        for index in range(film.n_frames):
            film.seek(index)
            film.load()
            assert film.info["duration"] == 250
            shown.append(np.asarray(film.convert("RGB"), np.int64))
        for a, b in pairwise(shown):
            assert np.abs(a - b).mean() > 2
        first = np.asarray(decode(still["srcset"] or "").convert("RGB"), np.int64)
        assert np.abs(first - shown[0]).mean() < np.abs(first - shown[-1]).mean() / 2


def test_same_world_same_page(copy: Path, page: Page) -> None:
    before = (copy / "gallery.html").read_bytes()
    assert write_gallery(copy).read_bytes() == before


def test_text_of_the_files_is_escaped(copy: Path, tmp_path: Path) -> None:
    world = Path(shutil.copytree(copy, tmp_path / "world"))
    evil = '<script src="https://x.y/z.js"></script>"&'
    change(world / "world.json", lambda made: {**made, "knobs": {evil: evil}, evil: evil, "format": evil})
    change(world / "v1.0-mini" / "scene.json", lambda rows: [{**row, "description": evil} for row in rows])
    page = Page(write_gallery(world).read_text(encoding="utf-8"))
    page.check_self_contained()
    assert page.text().count(evil) == 5 + len(SCENES)


def test_a_world_of_another_format_is_shown_without_truth(copy: Path, tmp_path: Path) -> None:
    world = Path(shutil.copytree(copy, tmp_path / "world"))
    change(world / "world.json", lambda made: {**made, "format": 0})
    page = Page(write_gallery(world).read_text(encoding="utf-8"))
    assert "Depth and normals are not drawn" in page.text()
    assert not [a for a in page.of("img") if "normals" in (a["alt"] or "")]


def test_of_many_scenes_a_spread_is_pictured(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery, "MOST", 1)
    page = Page(write_gallery(copy).read_text(encoding="utf-8"))
    assert [attributes["id"] for attributes in page.of("section")] == ["world", SCENES[0]]
    assert all(scene in page.text("tbody") for scene in SCENES)
    page.check_anchors()


def change(path: Path, how: Callable) -> None:
    path.write_text(json.dumps(how(json.loads(path.read_text()))))


# --- what the pictures show -------------------------------------------------------------------------------------------


def test_boxes_enclose_the_pixels_of_their_things(root: Path, scenes: list[Shown]) -> None:
    """The truth's owner of every pixel against the projected box, each camera at its own time."""
    checked = 0
    for shown in scenes:
        scene, rig, start = open_scene(root, shown.name)
        for record in shown.moment.cameras:
            camera = rig.cameras[record.channel]
            t = (record.timestamp_us - start) / 1e6
            owner = look(scene, camera, t).owner.reshape(SIZE)
            global_from_cam = record.global_from_ego @ record.ego_from_cam
            boxes = list(shown.boxes(record.timestamp_us, np.linalg.inv(global_from_cam)))
            middles = np.array([box.mean(axis=0) for _, box, _ in boxes])
            for i in np.unique(owner[owner >= 0]):
                actor = scene.actors[i]
                middle = np.linalg.inv(global_from_cam) @ [*actor.pose(t)[0], 1.0]
                distance = np.linalg.norm(middles - middle[:3], axis=1)
                nearest = int(distance.argmin())
                if distance[nearest] > 1.0:  # beyond the range of annotations
                    continue
                # Interpolated between key frames a box leaves its thing by a few millimetres on a bend.
                assert distance[nearest] < 0.02
                name, box, _ = boxes[nearest]
                assert DETECTION[actor.category][0] == name
                if box[:, 2].min() < 0.2:
                    continue
                uv = (box @ record.intrinsics.T)[:, :2] / box[:, 2:]
                rows, columns = np.nonzero(owner == i)
                low, high = uv.min(axis=0), uv.max(axis=0)
                # A pixel belongs to what its centre shows; 0.02 m at 3 m are 0.4 pixels here.
                assert (columns + 0.5 >= low[0] - 0.5).all()
                assert (columns + 0.5 <= high[0] + 0.5).all()
                assert (rows + 0.5 >= low[1] - 0.5).all()
                assert (rows + 0.5 <= high[1] + 0.5).all()
                checked += 1
    assert checked > 10


def test_a_box_is_drawn_where_it_projects_to() -> None:
    """A cube of 2 m, 10 m ahead: its front face spans f * 1 / 9 to either side of the middle."""
    pose = np.eye(4)
    pose[:3, :3] = [[0, -1, 0], [0, 0, -1], [1, 0, 0]]  # the box's x (its heading) along the camera's z
    pose[2, 3] = 10.0
    box = corners(pose, (2.0, 2.0, 2.0))
    assert sorted(np.round(box[:4, 2], 9)) == [11.0] * 4  # it heads away: its front face is the far one
    intrinsics = np.array([[90.0, 0, 50], [0, 90, 40], [0, 0, 1]])
    drawn = draw_boxes(np.zeros((80, 100, 3), np.uint8), [("car", box)], intrinsics)
    rows, columns = np.nonzero(drawn.astype(int).sum(axis=-1) > 200)
    assert abs(columns.min() - 40) <= 1
    assert abs(columns.max() - 60) <= 1
    assert abs(rows.min() - 30) <= 1
    assert abs(rows.max() - 50) <= 1
    behind = box.copy()
    behind[:, 2] -= 20
    assert not draw_boxes(np.zeros((80, 100, 3), np.uint8), [("car", behind)], intrinsics).any()
    around = box.copy()
    around[:, 2] -= 10.5  # the far face 0.5 m ahead, the near one behind: cut off, not mirrored
    wide = np.array([[15.0, 0, 50], [0, 15, 40], [0, 0, 1]])  # f * 1 / 0.5: 30 to either side
    drawn = draw_boxes(np.zeros((80, 100, 3), np.uint8), [("car", around)], wide).astype(int).sum(axis=-1) > 200
    assert drawn[8:13, 18:83].any(axis=1).sum() >= 1
    assert not drawn[13:67, 23:77].any()
    assert drawn[2, 12]  # an edge goes on outwards from the corner (20, 10), away from the middle


def test_from_above_forward_is_up_and_left_is_left() -> None:
    pose = np.eye(4)
    pose[:2, 3] = 10.0, 5.0  # 10 m ahead, 5 m to the left
    square = lambda r: np.array([(r, r), (r, -r), (-r, -r), (-r, r)], float)
    ground = LocalMap([("walkway", square(19), [square(15)])], [])
    picture = from_above(200, 20.0, ground, np.zeros((0, 3)), [("bus", corners(pose, (2.0, 4.0, 3.0)), True)])
    rows, columns = np.nonzero((np.abs(picture.astype(int) - CLASS_COLOURS["bus"]) < 8).all(axis=-1))
    # 5 pixels a metre: x from 8 to 12 m lies in rows 40 to 59, y from 4 to 6 m in columns 70 to 79
    assert abs(rows.min() - 40) <= 1
    assert abs(rows.max() - 59) <= 1
    assert abs(columns.min() - 70) <= 1
    assert abs(columns.max() - 79) <= 1
    assert picture[100, 15].tolist() != picture[100, 40].tolist()  # the ring of the walkway, and the hole in it
    assert picture[100, 40].tolist() == picture[2, 2].tolist()


def test_the_map_around_the_car_is_the_worlds(root: Path, scenes: list[Shown]) -> None:
    for shown in scenes:
        ground = map_around(HdMap(root, shown.location), shown.moment, 40.0)
        inside = [layer for layer, outline, _ in ground.areas if _contains(outline, np.zeros(2))]
        assert "drivable_area" in inside
        assert "walkway" not in inside
        assert {layer for layer, _ in ground.lines} == {"lane_divider", "road_divider"}


def _contains(polygon: np.ndarray, point: np.ndarray) -> bool:
    from shapely.geometry import Point, Polygon

    return bool(Polygon(polygon).contains(Point(*point)))


def test_truth_at_another_size_is_the_same_truth(root: Path, scenes: list[Shown]) -> None:
    shown = scenes[0]
    truth = open_truth(root, read_manifest(root), shown.name)
    assert truth is not None
    scene, rig, start = open_scene(root, shown.name)
    record = shown.moment.cameras[1]
    full, _ = truth.image(record.channel, record.timestamp_us, SIZE[1])
    expected = camera_depth(scene, rig.cameras[record.channel], (record.timestamp_us - start) / 1e6)
    np.testing.assert_array_equal(full, expected)
    half, normals = truth.image(record.channel, record.timestamp_us, SIZE[1] // 2)
    assert half.shape == (SIZE[0] // 2, SIZE[1] // 2)
    sky = np.isinf(half)
    assert (np.isnan(normals).all(axis=-1) == sky).all()
    np.testing.assert_allclose(np.linalg.norm(normals[~sky], axis=-1), 1.0, atol=1e-5)  # float32 within
    assert normals[-1, :, 2].min() > 0.99  # the road at the lower edge faces up
    assert normals_to_rgb(normals)[-1, 0].tolist() == [128, 128, 255]
    assert (normals_to_rgb(normals)[sky] == normals_to_rgb(np.full(3, np.nan))).all()


def test_colours_are_those_of_nuscenes() -> None:
    known = get_colormap()
    for name, colour in CLASS_COLOURS.items():
        assert colour == known[KINDS[name].category], name
    assert set(CLASS_COLOURS) == set(KINDS)


# --- errors -----------------------------------------------------------------------------------------------------------


def test_folders_without_a_world_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere holds no synthetic world .*make one with mim4d world"):
        write_gallery(tmp_path / "nowhere")
    (tmp_path / "world.json").write_text("[1, 2")
    with pytest.raises(UserError, match="holds no synthetic world"):
        write_gallery(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["world.json"]


@pytest.mark.parametrize(
    "missing, words",
    [
        ("samples/CAM_BACK/*.jpg", "CAM_BACK"),
        ("samples/LIDAR_TOP/*.bin", "LIDAR_TOP"),
        ("maps/expansion/*.json", "no map .*expansion"),
        ("v1.0-mini/ego_pose.json", "missing table: .*ego_pose.json"),
        ("v1.0-mini/scene.json", "no version folder|missing table: .*scene.json"),
    ],
)
def test_missing_files_are_named(copy: Path, tmp_path: Path, missing: str, words: str) -> None:
    world = Path(shutil.copytree(copy, tmp_path / "world"))
    (world / "gallery.html").unlink(missing_ok=True)
    for path in world.glob(missing):
        path.unlink()
    with pytest.raises(UserError, match=words) as caught:
        write_gallery(world)
    assert "\n" not in str(caught.value)
    assert not list(world.glob("*gallery*"))


def test_a_broken_map_is_named(copy: Path, tmp_path: Path) -> None:
    world = Path(shutil.copytree(copy, tmp_path / "world"))
    for path in world.glob("maps/expansion/*.json"):
        change(path, lambda content: {**content, "node": []})
    with pytest.raises(UserError, match=r"the map .*expansion.* names a node '[0-9a-f]{32}' that it does not hold"):
        write_gallery(world)

"""Masks and vectors of a map: equal to nuscenes-devkit's where it gives any, right by hand where it fails."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from nuscenes.map_expansion.arcline_path_utils import discretize_lane
from nuscenes.map_expansion.map_api import NuScenesMap
from shapely.geometry import LineString, MultiLineString
from shapely.geometry import Polygon as Shape

from mim4d.data.clipping import Polygon, area, clip_line, clip_polygon, contains, crosses_itself
from mim4d.data.maps import LINE_LAYERS, POLYGON_LAYERS, HdMap, roll_out
from mim4d.data.raster import draw, fill
from mim4d.errors import UserError

NAME = "boston-seaport"
EMPTY: dict[str, Any] = {
    "version": "1.3",
    "canvas_edge": [400.0, 300.0],
    **{k: [] for k in ("node", "polygon", "line", "traffic_light", *POLYGON_LAYERS, *LINE_LAYERS)},
    "arcline_path_3": {},
    "connectivity": {},
}


def expansion(
    surfaces: dict[str, list[tuple[np.ndarray, list[np.ndarray]]]], lines: dict[str, list[np.ndarray]]
) -> dict[str, Any]:
    """The JSON of a map with these polygons (ring, holes) and polylines per layer."""
    out = json.loads(json.dumps(EMPTY))

    def nodes(points: np.ndarray) -> list[str]:
        at = len(out["node"])
        out["node"] += [{"token": f"n{at + i}", "x": float(x), "y": float(y)} for i, (x, y) in enumerate(points)]
        return [f"n{at + i}" for i in range(len(points))]

    def row(table: str, **fields: Any) -> str:
        out[table].append({"token": f"{table}{len(out[table])}", **fields})
        return out[table][-1]["token"]

    extra = {"lane": {"left_lane_divider_segments": [], "right_lane_divider_segments": []}}
    extra["stop_line"] = {"stop_line_type": "YIELD"}  # type: ignore[dict-item]
    for layer, shapes in surfaces.items():
        tokens = [
            row("polygon", exterior_node_tokens=nodes(r), holes=[{"node_tokens": nodes(h)} for h in holes])
            for r, holes in shapes
        ]
        if layer == "drivable_area":
            row(layer, polygon_tokens=tokens)
        else:
            for t in tokens:
                row(layer, polygon_token=t, **extra.get(layer, {}))
    for layer, curves in lines.items():
        for curve in curves:
            fields = {"lane_divider_segments": []} if layer == "lane_divider" else {}
            row(layer, line_token=row("line", node_tokens=nodes(curve)), **fields)
    return out


Write = Callable[[dict[str, Any]], Path]


@pytest.fixture(scope="module")
def write(tmp_path_factory: pytest.TempPathFactory) -> Write:
    def written(content: object) -> Path:
        root = tmp_path_factory.mktemp("maps")
        (root / "maps" / "expansion").mkdir(parents=True)
        text = content if isinstance(content, str) else json.dumps(content)
        (root / "maps" / "expansion" / f"{NAME}.json").write_text(text)
        return root

    return written


def star(rng: np.random.Generator, size: float, corners: int) -> np.ndarray:
    """A jagged ring (P, 2) about (0, 0), clockwise or not."""
    angle = np.linspace(0, 2 * math.pi, corners, endpoint=False)
    reach = size * rng.uniform(0.5, 1.0, corners)
    return np.stack([reach * np.cos(angle), reach * np.sin(angle)], -1)[:: rng.choice([-1, 1])]


@pytest.fixture(scope="module")
def both(write: Write) -> tuple[HdMap, NuScenesMap]:
    """A map of jagged shapes with holes and of slightly bent lines, read by us and by the devkit."""
    rng = np.random.default_rng(5)
    surfaces: dict[str, list[tuple[np.ndarray, list[np.ndarray]]]] = {}
    for layer in POLYGON_LAYERS[:-1]:
        shapes = []
        for _ in range(12):
            place, size = rng.uniform((50, 50), (350, 250)), float(rng.uniform(3, 45))
            holes = [place + 0.25 * star(rng, size, int(rng.integers(4, 9))) for _ in range(int(rng.integers(2)))]
            shapes.append((place + star(rng, size, int(rng.integers(5, 30))), holes))
        surfaces[layer] = shapes
    lines = {}
    for layer in LINE_LAYERS:
        curves = []
        for _ in range(60):
            s = np.linspace(0, rng.uniform(10, 200), 30)
            turn = rng.uniform(-math.pi, math.pi) + s * rng.uniform(-1, 1) / 400
            way = np.cumsum(np.stack([np.cos(turn), np.sin(turn)], -1) * s[1], 0)
            curves.append(rng.uniform((50, 50), (350, 250)) + way)
        lines[layer] = curves
    root = write(expansion(surfaces, lines))
    return HdMap(root, NAME), NuScenesMap(str(root), NAME)


PATCHES = [
    ((200.0, 150.0, 60.0, 120.0), 0.0, (120, 240)),
    ((150.3, 120.7, 100.0, 100.0), 33.0, (200, 200)),
    ((200.0, 170.0, 40.0, 80.0), -121.5, (100, 200)),
    ((120.0, 160.0, 50.0, 102.4), 90.0, (200, 400)),
    ((220.5, 99.1, 200.0, 300.0), 178.9, (100, 150)),
    ((240.0, 140.0, 80.0, 40.0), 250.0, (77, 41)),  # pixels that are not square
]


@pytest.mark.parametrize("box, angle, canvas", PATCHES)
def test_masks_are_the_devkits(
    both: tuple[HdMap, NuScenesMap], box: Any, angle: float, canvas: tuple[int, int]
) -> None:
    ours, devkit = both
    layers = [*POLYGON_LAYERS[:-1], *LINE_LAYERS]
    want = devkit.get_map_mask(box, angle, layers, canvas)
    got = ours.masks(box, angle, layers, canvas)
    assert got.shape == want.shape
    assert got.dtype == np.uint8
    there = [i for i, mask in enumerate(want) if mask.any()]
    assert len(there) >= 7
    for i, layer in enumerate(layers):
        a, b = got[i], want[i]
        if i in there:
            # Measured: 1 for all polygons; lines 0.9918 and more: where a line ends on the patch's edge, the last
            # digit decides which pixel that is.
            assert (a & b).sum() / (a | b).sum() > 0.98, layer
        else:
            assert not a.any(), layer


@pytest.mark.parametrize("box, angle, canvas", PATCHES)
def test_vectors_are_the_devkits(
    both: tuple[HdMap, NuScenesMap], box: Any, angle: float, canvas: tuple[int, int]
) -> None:
    ours, devkit = both
    for layer, shapes in devkit.explorer.get_map_geom(box, angle, [*POLYGON_LAYERS[:-1], *LINE_LAYERS]):
        if layer in LINE_LAYERS:
            # Where a line leaves and comes back the devkit gives several at once; what they cover must be the same.
            parts = [p for g in shapes for p in (g.geoms if isinstance(g, MultiLineString) else [g])]
            want = MultiLineString(parts)
            pieces = ours.lines(layer, box, angle)
            got = MultiLineString([LineString(p) for p in pieces])
            assert len(pieces) == len(parts)
            assert got.length == pytest.approx(want.length, rel=1e-9)
            assert got.hausdorff_distance(want) < 1e-9  # metres; measured: 1e-12
            starts = {tuple(np.round(p.coords[0], 6) + 0.0) for p in parts}
            assert {tuple(np.round(p[0], 6) + 0.0) for p in pieces} == starts  # the same direction
        else:
            want_parts = [g for m in shapes for g in m.geoms]
            got_parts = [Shape(p.exterior, p.holes) for p in ours.polygons(layer, box, angle)]
            assert len(got_parts) == len(want_parts)
            for a, b in zip(_sorted(got_parts), _sorted(want_parts), strict=True):
                assert a.is_valid
                assert a.symmetric_difference(b).area < 1e-6 * max(1.0, b.area)
                assert len(a.interiors) == len(b.interiors)


def _sorted(shapes: list[Shape]) -> list[Shape]:
    return sorted(shapes, key=lambda s: (round(s.area, 6), round(s.centroid.x, 6)))


def test_pixels_are_opencvs() -> None:
    rng = np.random.default_rng(1)
    for _ in range(200):
        rings = [rng.integers(0, 41, (int(rng.integers(3, 8)), 2)) for _ in range(2)]
        want, got = np.zeros((40, 40), np.uint8), np.zeros((40, 40), np.uint8)
        cv2.fillPoly(want, [r.astype(np.int32) for r in rings], 1)
        fill(got, rings, 1)
        np.testing.assert_array_equal(got, want)
        line = rng.integers(0, 201, (int(rng.integers(2, 7)), 2))
        want, got = np.zeros((200, 200), np.uint8), np.zeros((200, 200), np.uint8)
        cv2.polylines(want, [line.astype(np.int32)], False, 1, 2)
        draw(got, [line])
        np.testing.assert_array_equal(got, want)


def test_a_polygon_that_only_touches_the_patch_is_not_there(write: Write) -> None:
    """The devkit's mask code fails on these: what is left of them is a line or a point."""
    square = np.array([(0.0, 0.0), (10.0, 0.0), (10.0, 10.0), (0.0, 10.0)]) + 50.0
    comb = np.array([(60, 40), (90, 40), (90, 60), (60, 60), (60, 55), (70, 55), (70, 45), (60, 45)], float)
    root = write(expansion({"walkway": [(square, [])], "stop_line": [(comb, [])]}, {}))
    ours, devkit = HdMap(root, NAME), NuScenesMap(str(root), NAME)
    for box in ((70.0, 55.0, 10.0, 20.0), (70.0, 70.0, 20.0, 20.0)):  # along an edge; at a corner
        with pytest.raises(AttributeError):
            devkit.explorer.get_map_mask(box, 0.0, ["walkway"], (20, 20))
        assert ours.polygons("walkway", box) == []
        assert not ours.masks(box, 0.0, ["walkway"], (20, 20)).any()
    with pytest.raises(AttributeError):  # two teeth and, along the edge, nothing: a collection with a line in it
        devkit.explorer.get_map_mask((65.0, 65.0, 20.0, 10.0), 0.0, ["stop_line", "walkway"], (20, 20))
    (piece,) = ours.polygons("stop_line", (65.0, 57.5, 15.0, 10.0))
    assert area(piece.exterior) == pytest.approx(50.0)
    assert ours.masks((65.0, 57.5, 15.0, 10.0), 0.0, ["stop_line"], (15, 10))[0].sum() == 6 * 10  # rows 5 to 10


def test_polygons_that_cross_themselves_are_left_out(write: Write) -> None:
    bow = np.array([(40.0, 40.0), (60.0, 60.0), (60.0, 40.0), (40.0, 60.0)])
    box = (50.0, 50.0, 30.0, 30.0)
    root = write(expansion({"walkway": [(bow, []), (bow[[0, 2, 1, 3]] + (0.0, 15.0), [])]}, {}))
    ours, devkit = HdMap(root, NAME), NuScenesMap(str(root), NAME)
    want = devkit.get_map_mask(box, 0.0, ["walkway"], (60, 60))
    assert want.any()
    np.testing.assert_array_equal(ours.masks(box, 0.0, ["walkway"], (60, 60)), want)
    assert len(ours.polygons("walkway", box)) == 1
    assert crosses_itself(bow)
    assert not crosses_itself(star(np.random.default_rng(0), 5.0, 40))


def test_a_line_that_comes_back_is_two(write: Write) -> None:
    way = np.array([(0.0, 0.0), (30.0, 0.0), (30.0, 8.0), (0.0, 8.0)])
    root = write(expansion({}, {"lane_divider": [way], "road_divider": [way[:1]]}))
    ours, devkit = HdMap(root, NAME), NuScenesMap(str(root), NAME)
    box = (5.0, 4.0, 20.0, 20.0)
    with pytest.raises(TypeError):
        devkit.explorer.get_map_mask(box, 0.0, ["lane_divider"], (20, 20))
    first, second = ours.lines("lane_divider", box)
    np.testing.assert_allclose(first, [(-5, -4), (10, -4)])
    np.testing.assert_allclose(second, [(10, 4), (-5, 4)])
    mask = ours.masks(box, 0.0, ["lane_divider"], (20, 20))[0]
    assert mask[5:8, 5:].all()  # three rows about y = -4
    assert mask[13:16, 5:].all()
    assert mask.sum() == 6 * 15 + 2
    assert ours.lines("road_divider", box) == []  # a line of one node is none


def test_holes_stay_holes_when_cut() -> None:
    ring = np.array([(-10.0, -10.0), (10.0, -10.0), (10.0, 10.0), (-10.0, 10.0)])
    hole = 0.5 * ring[::-1]
    (whole,) = clip_polygon(Polygon(ring, (hole,)), 30.0, 30.0)
    assert len(whole.holes) == 1
    (open_,) = clip_polygon(Polygon(ring, (hole + (3.0, 0.0),)), 14.0, 30.0)  # the cut at x = 7 opens the hole
    assert open_.holes == ()
    assert area(open_.exterior) == pytest.approx(14 * 20 - 9 * 10)
    pair = clip_polygon(Polygon(ring, (hole * (1.0, 1.9),)), 30.0, 18.0)  # the hole reaches both cuts: two parts
    assert sorted(area(p.exterior) for p in pair) == pytest.approx([90, 90])
    assert clip_polygon(Polygon(ring, (1.6 * hole,)), 10.0, 10.0) == []  # all of the patch lies in the hole
    ahead = Polygon(ring + (40.0, 0.0), ())
    assert clip_polygon(ahead, 30.0, 30.0) == []
    assert contains(ring, np.zeros(2))
    assert not contains(ring, np.array([11.0, 0.0]))


def test_lines_are_cut_where_they_cross() -> None:
    assert clip_line(np.array([(-50.0, 0.0), (50.0, 0.0)]), 20.0, 10.0)[0].tolist() == [[-10, 0], [10, 0]]
    assert clip_line(np.array([(-50.0, 5.1), (50.0, 5.1)]), 20.0, 10.0) == []
    assert len(clip_line(np.array([(-50.0, 5.0), (50.0, 5.0)]), 20.0, 10.0)) == 1  # along the edge is in
    assert clip_line(np.array([(-50.0, -45.0), (50.0, 55.0)]), 20.0, 30.0)[0].tolist() == [[-10, -5], [10, 15]]
    assert clip_line(np.array([(-20.0, 5.0), (-10.0, 15.0), (0.0, 25.0)]), 20.0, 30.0) == []  # a corner alone
    repeated = np.array([(-20.0, 0.0), (0.0, 0.0), (0.0, 0.0), (0.0, 9.0)])
    assert clip_line(repeated, 20.0, 10.0)[0].tolist() == [[-10, 0], [0, 0], [0, 5]]


@pytest.mark.parametrize("shape", ["LSR", "RSL", "LSL", "RSR", "LRL", "RLR"])
def test_arcs_roll_out_as_the_devkits(shape: str) -> None:
    arc = {"start_pose": [3.0, -2.0, 0.7], "shape": shape, "radius": 12.0, "segment_length": [7.0, 4.0, 9.0]}
    ours, devkit = roll_out(arc, 1.0), np.array(discretize_lane([arc], 1.0))
    np.testing.assert_allclose(ours[:, :2], devkit[:, :2], atol=1e-9)  # metres; measured: 1e-14
    np.testing.assert_allclose(np.cos(ours[:, 2] - devkit[:, 2]), 1.0, atol=1e-12)
    assert np.abs(np.diff(ours[:, :2], axis=0)).max() <= 1.0
    assert len(ours) == 21


def test_boundaries_have_the_road_on_their_right(write: Write) -> None:
    def box(x0: float, x1: float, y0: float, y1: float) -> np.ndarray:
        return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])

    surfaces: dict[str, Any] = {
        "road_segment": [(box(0, 60, 0, 10), []), (box(60, 70, -60, 60), [box(64, 66, -5, 5)])],
        "lane": [(box(0, 61, 2, 5), [])],
    }
    ours = HdMap(write(expansion(surfaces, {})), NAME)
    lines = ours.boundaries((60.0, 0.0, 60.0, 60.0))
    assert len(lines) == 4
    inside = lambda p: (np.abs(p[:, 0]) < 29.81).all() and (np.abs(p[:, 1]) < 29.81).all()
    assert all(inside(line) for line in lines)
    length = sum(float(np.linalg.norm(np.diff(line, axis=0), axis=1).sum()) for line in lines)
    assert length == pytest.approx(29.8 * 2 + 59.6 + 59.6 - 10 + 24)
    for line in lines:
        ahead = np.diff(line, axis=0)
        right = np.stack([ahead[:, 1], -ahead[:, 0]], -1) / np.linalg.norm(ahead, axis=1)[:, None]
        for point in 0.5 * (line[:-1] + line[1:]) + 0.1 * right + (60.0, 0.0):
            assert any(
                Shape(r, h).contains(Shape(point + box(-0.01, 0.01, -0.01, 0.01))) for r, h in surfaces["road_segment"]
            )


def test_mistakes_end_in_one_line(write: Write, tmp_path: Path) -> None:
    good = write(EMPTY)
    ours = HdMap(good, NAME)
    box = (0.0, 0.0, 10.0, 10.0)
    assert ours.masks(box).shape == (10, 100, 100)
    assert ours.boundaries(box) == []
    assert ours.centre_lines(box) == []
    old, broken_line = {**EMPTY, "version": "1.2"}, {**EMPTY, "lane_divider": [{"line_token": "l"}]}
    broken_line["line"] = [{"token": "l", "node_tokens": ["gone"]}]
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: HdMap(tmp_path, NAME), "unpack nuScenes' 'Map expansion' there"),
        (lambda: HdMap(good, "boston"), f"it has {NAME}"),
        (lambda: HdMap(write("{"), NAME), "unpack it again"),
        (lambda: HdMap(write([]), NAME), "holds a list"),
        (lambda: HdMap(write(old), NAME), "has version 1.2"),
        (lambda: HdMap(write({k: v for k, v in EMPTY.items() if k != "lane"}), NAME), "lacks lane"),
        (lambda: HdMap(write(broken_line), NAME).lines("lane_divider", box), "names a node 'gone'"),
        (
            lambda: HdMap(write({**EMPTY, "lane": [{"polygon_token": "p"}]}), NAME).polygons("lane", box),
            "a polygon 'p'",
        ),
        (lambda: HdMap(write({**EMPTY, "lane_divider": [{"line_token": "l"}]}), NAME).masks(box), "names a line 'l'"),
        (lambda: ours.masks(box, 0.0, ["walkways"]), "did you mean walkway?"),
        (lambda: ours.lines("lane", box), "want one of road_divider, lane_divider"),
        (lambda: ours.polygons("lane", (0.0, 0.0, 0.0, 10.0)), "patch_box"),
        (lambda: ours.lines("lane_divider", box, math.nan), "patch_box"),
        (lambda: ours.masks(box, 0.0, ["lane"], (0, 10)), "canvas_size"),
        (lambda: ours.centre_lines(box, step=0.0), "step"),
    ]
    for call, words in cases:
        with pytest.raises(UserError, match=words.replace("?", r"\?")) as error:
            call()
        assert "\n" not in str(error.value)

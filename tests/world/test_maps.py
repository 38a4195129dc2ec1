"""The map of the world: whole, true to what is painted and driven, and equal to what nuscenes-devkit makes of it."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from helpers.world_truth import Truth
from nuscenes.map_expansion import map_api
from nuscenes.map_expansion.map_api import NuScenesMap
from nuscenes.utils.map_mask import MapMask
from shapely.geometry import Point
from shapely.geometry import Polygon as Shape
from shapely.ops import unary_union

from mim4d.data.maps import HdMap, roll_out
from mim4d.world.geometry import outlines, yaw_matrix
from mim4d.world.lanes import connectors
from mim4d.world.layouts import BACK_STREETS, CURVES, LANES, bends, lay_out
from mim4d.world.maps import LAYERS, Expansion, write_mask
from mim4d.world.roads import LANE, Roads, make_roads

matplotlib.use("Agg")

AREAS = ["drivable_area", "road_segment", "road_block", "lane", "ped_crossing", "walkway", "stop_line", "carpark_area"]
LINES = ["road_divider", "lane_divider"]
# nuScenes' names of what may be painted beside a lane.
PAINTS = {"NIL", "DOUBLE_DASHED_WHITE", "SINGLE_SOLID_WHITE", "SINGLE_SOLID_YELLOW"}


@pytest.fixture(scope="module")
def roads() -> Roads:
    """Everything at once: an S, two lanes each way, parking bays, back streets on both sides."""
    return make_roads(
        np.random.default_rng(4),
        (240.0, 240.0),
        curvature=1 / 180,
        turns=((8.0, -1 / 200),),
        lanes_each_way=2,
        reach=85.0,
        crossings_u=[-82.0, 3.0, 90.0],
        back=(1, -1),
    )


@pytest.fixture(scope="module")
def root_of(tmp_path_factory: pytest.TempPathFactory, roads: Roads) -> Path:
    import json

    root = tmp_path_factory.mktemp("map")
    (root / "maps" / "expansion").mkdir(parents=True)
    expansion = Expansion("test")
    expansion.add(roads)
    (root / "maps" / "expansion" / "boston-seaport.json").write_text(json.dumps(expansion.finish(1)))
    return root


@pytest.fixture(scope="module")
def devkit(root_of: Path) -> NuScenesMap:
    return NuScenesMap(str(root_of), "boston-seaport")


@pytest.fixture(scope="module")
def ours(root_of: Path) -> HdMap:
    return HdMap(root_of, "boston-seaport")


def test_every_layer_is_filled_and_every_token_leads_somewhere(ours: HdMap) -> None:
    json = ours.json
    assert [k for k in LAYERS if not json[k]] == ["traffic_light"]
    by_table = {k: {r["token"] for r in json[k]} for k in ("node", "polygon", "line", *LAYERS)}
    assert len(set().union(*by_table.values())) == sum(len(json[k]) for k in by_table)  # no token twice
    leads = {"road_segment_token": "road_segment", "road_block_token": "road_block"}
    leads |= {"drivable_area_token": "drivable_area", "polygon_token": "polygon", "line_token": "line"}
    leads |= {"from_edge_line_token": "line", "to_edge_line_token": "line"}
    many = {"polygon_tokens": "polygon", "ped_crossing_tokens": "ped_crossing", "node_tokens": "node"}
    many |= {"exterior_node_tokens": "node", "traffic_light_tokens": "traffic_light"}
    followed = set()
    for table in by_table:
        for row in json[table]:
            for field, value in row.items():
                if field in leads:
                    assert value in by_table[leads[field]], (table, field)
                elif field in many:
                    assert set(value) <= by_table[many[field]], (table, field)
                elif field.endswith("_segments"):
                    assert {s["node_token"] for s in value} <= by_table["node"]
                    assert {s["segment_type"] for s in value} <= PAINTS
                    assert len(value) >= 2
                followed.add(field)
    assert followed >= {*leads, *many}
    assert len(by_table["node"]) == len({(n["x"], n["y"]) for n in json["node"]})  # places are shared
    assert set(json["connectivity"]) == by_table["lane"] | by_table["lane_connector"] == set(json["arcline_path_3"])


def test_lanes_go_on_where_they_lead(ours: HdMap) -> None:
    ways, links = ours.json["arcline_path_3"], ours.json["connectivity"]
    through = {r["token"] for r in ours.json["lane_connector"]}
    joints = 0
    for token, way in ways.items():
        for arc in way:
            assert sum(length > 0 for length in arc["segment_length"]) == 1
            assert _gap(roll_out(arc, 1.0)[-1], arc["end_pose"]) < 1e-6  # measured: 1e-13
        for a, b in pairwise(way):
            assert _gap(a["end_pose"], b["start_pose"]) < 1e-6
        for following in links[token]["outgoing"]:
            assert token in links[following]["incoming"]
            assert (token in through) != (following in through)  # lane, connector, lane ...
            assert _gap(way[-1]["end_pose"], ways[following][0]["start_pose"]) < 1e-6
            joints += 1
        for before in links[token]["incoming"]:
            assert token in links[before]["outgoing"]
        if token in through:
            assert len(links[token]["incoming"]) == len(links[token]["outgoing"]) == 1
    assert joints == 2 * len(through)
    # Lanes that end at a junction lead on, and those that begin at one are reached.
    loose = [t for t in ways if not links[t]["outgoing"] or not links[t]["incoming"]]
    assert len(loose) == 2 * 4  # the two ends of the main road with two lanes each way


def _gap(a: Any, b: Any) -> float:
    """The greatest difference of two poses."""
    return max(abs(a[0] - b[0]), abs(a[1] - b[1]), abs(math.remainder(a[2] - b[2], 2 * math.pi)))


def test_junctions_offer_straight_right_and_left(roads: Roads) -> None:
    kinds: dict[int, list[str]] = {}
    for c in connectors(roads):
        turn = sum(arc.curvature * arc.length for arc in c.arcs)
        kind = "left" if turn > 1 else "right" if turn < -1 else "straight"
        at = next(i for i, j in enumerate(roads.junctions) if j.side(c.before.end))
        kinds.setdefault(at, []).append(kind)
        if kind != "straight":
            assert min(1 / abs(arc.curvature) for arc in c.arcs if arc.curvature) > 2.0  # metres: a car can follow
    for i, junction in enumerate(roads.junctions):
        cross, corner = junction.v0 < 0 < junction.v1, junction.u0 < -80 or junction.u1 > 90
        got = [kinds[i].count(k) for k in ("straight", "right", "left")]
        assert got == ([6, 4, 4] if cross else [0, 1, 1] if corner else [2, 2, 2])  # crossing, corner, T


def test_connectors_stay_on_the_road(roads: Roads) -> None:
    ((ring, holes),) = roads.drivable()
    road = Shape(ring, holes)
    for c in connectors(roads):
        outline = Shape(c.outline)
        assert outline.is_valid
        assert outline.exterior.is_ccw
        # Where the streets run together a lane is narrower than its strip; chords of the kerb miss it by 3 cm.
        assert outline.difference(road.buffer(0.05)).area < 0.2


def test_drivable_area_has_the_blocks_as_holes(roads: Roads) -> None:
    ((ring, holes),) = roads.drivable()
    area, parts = Shape(ring, holes), unary_union([Shape(p).buffer(1e-6) for p, _ in roads.segments])
    assert area.is_valid
    assert len(holes) == 4  # two blocks on either side between three streets
    assert area.symmetric_difference(parts).area < 0.5  # of 11 000 m2: chords
    inner = [b for b in roads.blocks if b.street_before and b.street_after]
    for block in inner:
        middle = roads.bend.point(np.array([(block.u0 + block.u1) / 2, (block.v0 + block.v1) / 2]))
        assert sum(Shape(h).contains(Point(middle)) for h in holes) == 1
        assert not area.contains(Point(middle))
    assert [len(r) for r in outlines([(0, 4, 0, 1), (0, 1, 1, 3), (3, 4, 1, 3), (0, 4, 3, 4)])] == [12, 4]


def test_dividers_are_what_is_painted(truth: Truth) -> None:
    """Coverage of the paint along every divider near the ego, in the raster that the cameras see."""
    ground, roads = truth.scene.ground, truth.scene.roads

    def along(line: np.ndarray, aside: float) -> tuple[np.ndarray, np.ndarray]:
        step = np.diff(line, axis=0)
        s = np.concatenate([[0], np.cumsum(np.hypot(*step.T))])
        at = np.arange(0.5, s[-1] - 0.5, 0.1)
        i = np.clip(np.searchsorted(s, at) - 1, 0, len(step) - 1)
        unit = step[i] / np.hypot(*step[i].T)[:, None]
        xy = line[i] + (at - s[i])[:, None] * unit + aside * np.stack([-unit[:, 1], unit[:, 0]], -1)
        local = (xy - ground.low).astype(np.float32)
        far = 4 * np.array([ground._widths[0], ground._heights[0]]) / 64 - 2
        seen = ((local > 2) & (local < far)).all(1)
        white, yellow = ground.paint(*local[seen].T, np.full(seen.sum(), 0.01, np.float32))
        return white > 0.6, yellow > 0.25  # bare asphalt has 0.5 and 0; a line of two texels is softened

    checked = {"SINGLE_SOLID_WHITE": 0, "DOUBLE_DASHED_WHITE": 0, "SINGLE_SOLID_YELLOW": 0}
    for divider in roads.lane_dividers:
        white, _ = along(divider.line, 0.0)
        if len(white) < 200:
            continue
        checked[divider.paint] += 1
        if divider.paint == "SINGLE_SOLID_WHITE":
            assert white.mean() > 0.98
        else:  # three metres of every seven
            assert 0.3 < white.mean() < 0.55
            assert 1 <= (np.diff(white.astype(int)) == 1).sum() / len(white) * 70 + 1 < 3
    for divider, _ in roads.road_dividers:
        for aside in (-0.14, 0.14):  # two solid lines
            _, yellow = along(divider.line, aside)
            if len(yellow) > 200:
                checked[divider.paint] += 1
                assert yellow.mean() > 0.98
    assert checked["SINGLE_SOLID_WHITE"] > 2
    assert checked["SINGLE_SOLID_YELLOW"] > 2
    assert (checked["DOUBLE_DASHED_WHITE"] > 0) == (roads.lanes_each_way > 1)


def test_stop_lines_lie_before_their_crossings(roads: Roads) -> None:
    for stop in roads.stop_lines:
        line, crossing = Shape(stop.outline), Shape(roads.ped_crossings[stop.crossing].outline)
        way = roads.carriageways[stop.carriageway]
        assert 0.2 < line.distance(crossing) < 1.0  # 0.6 m where streets do not run together or apart
        assert Shape(way.outline).buffer(0.05).contains(line)
        assert line.distance(Shape([*way.end, *way.end[::-1]]).buffer(0.01)) < 7.0  # at the end where they arrive
        assert Shape(roads.segments[way.segment][0]).buffer(0.05).contains(crossing)


def test_bays_lie_along_the_kerb_and_may_be_missing(roads: Roads) -> None:
    for park in roads.carparks:
        bay = Shape(park.outline)
        way = Shape(roads.carriageways[park.carriageway].outline)
        assert bay.intersection(way.buffer(0.05)).area < 0.1 * bay.area
        assert bay.distance(way) < 0.05
        start = roads.carriageways[park.carriageway].start.mean(0)
        ahead = roads.carriageways[park.carriageway].end.mean(0) - start
        assert ahead @ (math.cos(park.heading), math.sin(park.heading)) > 0.9 * np.linalg.norm(ahead)
    plain = make_roads(
        np.random.default_rng(0), (0, 0), curvature=0.0, lanes_each_way=1, reach=60.0, crossings_u=[5.0], bays=False
    )
    assert plain.carparks == []
    assert len(plain.paint) < len(
        make_roads(
            np.random.default_rng(0), (0, 0), curvature=0.0, lanes_each_way=1, reach=60.0, crossings_u=[5.0]
        ).paint
    )


def test_layouts_differ() -> None:
    seen = set()
    for seed in range(30):
        roads = lay_out(np.random.default_rng(seed), ("bend", "left", "right")[seed % 3], (240.0, 240.0))
        assert len(roads.crossings_u) == 3
        assert roads.crossings_u == sorted(roads.crossings_u)
        gap = np.abs(roads.bend.cuts[:, None] - roads.crossings_u)
        assert (gap > roads.half_cross - 1e-9).all()  # no arc ends within a cross street
        assert (np.diff(roads.bend.cuts) > 1.0).all()
        points = np.concatenate([p for p, _ in roads.segments])
        assert points.min() > 0.0  # inside the tile
        assert points.max() < 480.0
        ((ring, holes),) = roads.drivable()
        assert Shape(ring, holes).is_valid
        back = len([j for j in roads.junctions if not j.v0 < 0 < j.v1]) // 3
        seen |= {("lanes", roads.lanes_each_way), ("bays", roads.bays), ("back", back), ("arcs", len(roads.bend.cuts))}
    assert {n for k, n in seen if k == "lanes"} == set(LANES)
    assert {n for k, n in seen if k == "bays"} == {True, False}
    assert {n for k, n in seen if k == "back"} == {len(b) for b in BACK_STREETS}
    assert {n for k, n in seen if k == "arcs"} == {len(bends(np.random.default_rng(0), c, 0.01)[1]) for c in CURVES}


def _patches(truth: Truth) -> list[tuple[tuple[float, float, float, float], float, tuple[int, int]]]:
    x, y, _ = truth.scene.ego.pose(0.7)[0]
    yaw = math.degrees(float(truth.scene.ego.pose(0.7)[1]))
    u, v = truth.scene.roads.bend.origin
    return [
        ((x, y, 60.0, 30.0), yaw - 90.0, (200, 100)),  # MapTR's patch
        ((x, y, 100.0, 100.0), yaw, (200, 200)),  # BEVFusion's
        ((x, y, 50.0, 100.0), yaw + 37.0, (100, 200)),
        ((u, v, 160.0, 120.0), 0.0, (320, 240)),
    ]


def test_masks_of_the_world_are_the_devkits(root: Path, truth: Truth) -> None:
    name = truth.nusc.get("log", truth.row["log_token"])["location"]
    devkit, ours = NuScenesMap(str(root), name), HdMap(root, name)
    filled = dict.fromkeys((*AREAS, *LINES), 0)
    for box, angle, canvas in _patches(truth):
        got = ours.masks(box, angle, [*AREAS, *LINES], canvas)
        for layer, mine in zip((*AREAS, *LINES), got, strict=True):
            want = devkit.explorer.get_map_mask(box, angle, [layer], canvas)[0]
            assert mine.any() == want.any()
            if want.any():
                filled[layer] += 1
                # Measured over both scenes: 1 for all polygons, 0.998 and more for lines.
                assert (mine & want).sum() / (mine | want).sum() > 0.98, layer
    expected = {"carpark_area"} if not truth.scene.roads.bays else set()
    assert {layer for layer, n in filled.items() if n == 0} <= expected


def test_mask_picture_and_polygons_agree(tmp_path: Path, roads: Roads) -> None:
    """At points more than two pixels from any border; the devkit reads the picture."""
    write_mask(tmp_path / "mask.png", [roads], 1)
    ((ring, holes),) = roads.drivable()
    surface = unary_union([Shape(ring, holes), *(Shape(w) for w in roads.walkways)])
    xy = np.random.default_rng(0).uniform(60, 420, (4000, 2))
    sure = np.array([surface.boundary.distance(Point(p)) > 0.2 for p in xy])
    inside = np.array([surface.contains(Point(p)) for p in xy])
    found = MapMask(str(tmp_path / "mask.png")).is_on_mask(*xy.T)
    np.testing.assert_array_equal(found[sure], inside[sure])
    assert inside.sum() > 300
    assert sure.mean() > 0.97


def test_mask_of_many_tiles_is_that_of_each(tmp_path: Path, roads: Roads) -> None:
    from PIL import Image

    moved = make_roads(
        np.random.default_rng(4), (720.0, 720.0), curvature=1 / 180, lanes_each_way=1, reach=85.0, crossings_u=[3.0]
    )
    write_mask(tmp_path / "grid.png", [roads, moved], 2, 2)
    write_mask(tmp_path / "one.png", [roads], 1)
    grid, one = (np.asarray(Image.open(tmp_path / f"{n}.png")) for n in ("grid", "one"))
    assert grid.shape == (9600, 9600)
    np.testing.assert_array_equal(grid[4800:, :4800], one)  # the first tile lies at the lower left
    assert not grid[:4800, :4800].any()
    assert grid[2400, 7200] == 255


def test_what_people_use_of_the_devkit_works(
    monkeypatch: pytest.MonkeyPatch, devkit: NuScenesMap, roads: Roads
) -> None:
    import matplotlib.pyplot as plt
    from matplotlib.patches import Polygon as MplPolygon

    start = roads.bend.point(np.array([40.0, -LANE / 2]))
    found = devkit.get_records_in_radius(*start, 20.0, [*devkit.non_geometric_layers, "lane_connector"])
    assert all(found[layer] for layer in ("drivable_area", "road_segment", "lane", "lane_divider", "walkway"))
    lane = devkit.get_closest_lane(*start, radius=5)
    (points,) = devkit.discretize_lanes([lane], 0.5).values()
    assert np.hypot(*(np.array(points)[:, :2] - start).T).min() < 0.5
    assert devkit.get_arcline_path(lane)[0]["shape"] == "LSR"
    through = devkit.get_outgoing_lane_ids(lane)
    assert len(through) == 2  # the inner lane: straight on, left
    assert all(devkit.get_incoming_lane_ids(t) == [lane] for t in through)
    beyond = [devkit.get_outgoing_lane_ids(t)[0] for t in through]
    assert lane not in beyond
    on = devkit.layers_on_point(*start)
    assert on["lane"] == lane
    assert on["drivable_area"] == devkit.drivable_area[0]["token"]
    assert on["road_block"]
    assert on["walkway"] == ""
    assert set(devkit.get_next_roads(*start)) == {"road_segment", "road_block", "lane"}
    assert len(devkit.discretize_centerlines(1.0)) == len(devkit.lane) + len(devkit.lane_connector)
    assert [len(s["cue"]) for s in devkit.stop_line] == [1] * len(devkit.stop_line)
    for lane_row in devkit.lane[:4]:
        assert lane_row["left_lane_divider_segment_nodes"]
        assert lane_row["right_lane_divider_segment_nodes"]
    x, y = start
    # descartes, with which the devkit fills polygons, cannot read shapely 2's: matplotlib's own patch stands in.
    monkeypatch.setattr(map_api.descartes, "PolygonPatch", lambda shape, **kw: MplPolygon(shape.exterior.coords, **kw))
    box = (x - 60, y - 60, x + 60, y + 60)
    figure, axes = devkit.render_map_patch(box, figsize=(3, 3), render_egoposes_range=False)
    assert len(axes.patches) > 20
    plt.close(figure)
    plt.close(devkit.render_centerlines(2.0, figsize=1)[0])
    plt.close(devkit.render_next_roads(x, y, figsize=1)[0])


def test_centre_lines_are_where_one_drives(ours: HdMap, roads: Roads) -> None:
    box = (*roads.bend.origin, 120.0, 120.0)
    ((ring, holes),) = roads.drivable()
    area = Shape(ring, holes).buffer(0.05)
    lines = ours.centre_lines(box, 0.0, step=0.5)
    assert len(lines) > 14 + 8  # through the middle junction, and the lanes that lead to it
    for line in lines:
        assert np.hypot(*np.diff(line, axis=0).T).max() < 0.5 + 1e-9
        assert all(area.contains(Point(p + roads.bend.origin)) for p in line[::5])
    inner = next(lane for lane in roads.lanes if lane.name == "main2/0/1")  # towards +u
    start = roads.bend.point(np.array(inner.start)) - roads.bend.origin
    found = min(lines, key=lambda line: float(np.hypot(*(line[0] - start))))
    np.testing.assert_allclose(found[0], start, atol=1e-9)


def test_boundaries_are_the_kerbs(ours: HdMap, roads: Roads) -> None:
    """Of the union of road segments and lanes: as the outline of the drivable area, without the patch's own edge."""
    box = (*roads.bend.origin, 100.0, 80.0)
    ((ring, holes),) = roads.drivable()
    kerb = Shape(ring, holes).boundary
    for angle in (0.0, 33.0, -100.0):  # corners that meet to fifteen digits leave no cracks across the road
        lines = ours.boundaries(box, angle)
        assert len(lines) == 4  # one around each of the four corners of the middle crossing
        turn = yaw_matrix(math.radians(angle))[:2, :2]
        for line in lines:
            assert max(kerb.distance(Point(turn @ p + roads.bend.origin)) for p in line) < 1e-9  # measured: 5e-14
            ends = np.abs(line[[0, -1]]) - (39.8, 49.8)
            np.testing.assert_allclose(ends.max(1), 0.0, atol=1e-9)  # just inside the patch


def test_a_lanes_sides_are_its_own(ours: HdMap) -> None:
    """The nodes named on the left lie to the left of the traffic, in its direction."""
    at = {n["token"]: (n["x"], n["y"]) for n in ours.json["node"]}
    types = set()
    for lane in ours.json["lane"]:
        way = np.concatenate([roll_out(arc, 0.5) for arc in ours.json["arcline_path_3"][lane["token"]]])
        for name, sign in (("left", 1), ("right", -1)):
            segments = lane[f"{name}_lane_divider_segments"]
            nodes = np.array([at[s["node_token"]] for s in segments])
            near = ((nodes[:, None] - way[None, :, :2]) ** 2).sum(-1).argmin(1)
            assert (np.diff(near) > 0).all()
            delta, yaw = nodes - way[near, :2], way[near, 2]
            across = np.cos(yaw) * delta[:, 1] - np.sin(yaw) * delta[:, 0]
            assert (sign * across > 0.3 * LANE / 2).all()  # at the end of a cross street inside a bend lanes narrow
            assert (sign * across < 1.7 * LANE / 2).all()
            types |= {(name, s["segment_type"]) for s in segments}
    assert types == {
        ("left", "SINGLE_SOLID_YELLOW"),
        ("left", "DOUBLE_DASHED_WHITE"),
        ("right", "DOUBLE_DASHED_WHITE"),
        ("right", "SINGLE_SOLID_WHITE"),
    }

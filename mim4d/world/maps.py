"""The map of a location as nuScenes stores it: the expansion (polygons and lines in JSON) and the drivable mask."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from mim4d.world.roads import LANE, TILE_SIZE, Lane, Roads

Array = NDArray[np.float64]

MASK_RESOLUTION = 0.1  # metres a pixel, what nuscenes-devkit expects
# In the order in which nuscenes-devkit lists them.
LAYERS = ["drivable_area", "road_segment", "road_block", "lane", "ped_crossing", "walkway", "stop_line", "carpark_area"]
LAYERS += ["road_divider", "lane_divider", "traffic_light", "lane_connector"]
LOCATIONS = ("boston-seaport", "singapore-onenorth", "singapore-queenstown", "singapore-hollandvillage")


def token(*parts: object) -> str:
    """32 hexadecimal digits, the same for the same parts."""
    return hashlib.md5("/".join(map(str, parts)).encode(), usedforsecurity=False).hexdigest()


class Expansion:
    """Collects the streets of one location and gives the JSON of nuScenes' map expansion, version 1.3."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.json: dict[str, Any] = {k: [] for k in ("polygon", "line", "node", *LAYERS)}
        self.json.update(version="1.3", arcline_path_3={}, connectivity={})

    def _node(self, xy: Array) -> str:
        t = token(self.name, "node", len(self.json["node"]))
        self.json["node"].append({"token": t, "x": float(xy[0]), "y": float(xy[1])})
        return t

    def _polygon(self, points: Array) -> str:
        t = token(self.name, "polygon", len(self.json["polygon"]))
        self.json["polygon"].append({"token": t, "exterior_node_tokens": [self._node(p) for p in points], "holes": []})
        return t

    def _line(self, points: Array) -> str:
        t = token(self.name, "line", len(self.json["line"]))
        self.json["line"].append({"token": t, "node_tokens": [self._node(p) for p in points]})
        return t

    def _record(self, layer: str, **fields: object) -> str:
        t = token(self.name, layer, len(self.json[layer]))
        self.json[layer].append({"token": t, **fields})
        return t

    def add(self, roads: Roads) -> None:
        """Writes one scene's streets into the layers."""
        area = self._record("drivable_area", polygon_tokens=[self._polygon(p) for p in roads.drivable])
        first = ""
        for polygon, junction in roads.segments:
            segment = self._record(
                "road_segment", polygon_token=self._polygon(polygon), is_intersection=junction, drivable_area_token=area
            )
            first = first or segment
        for polygon in roads.ped_crossings:
            self._record("ped_crossing", polygon_token=self._polygon(polygon), road_segment_token=first)
        for polygon in roads.walkways:
            self._record("walkway", polygon_token=self._polygon(polygon))
        for polygon in roads.stop_lines:
            fields = {
                "stop_line_type": "PED_CROSSING",
                "ped_crossing_tokens": [],
                "traffic_light_tokens": [],
                "road_block_token": "",
            }
            self._record("stop_line", polygon_token=self._polygon(polygon), **fields)
        for line in roads.road_dividers:
            self._record("road_divider", line_token=self._line(line), road_segment_token=None)
        for line in roads.lane_dividers:
            self._record("lane_divider", line_token=self._line(line), lane_divider_segments=[])
        for lane in roads.lanes:
            self._lane(roads, lane)

    def _lane(self, roads: Roads, lane: Lane) -> None:
        polygon = self._polygon(lane.outline)
        nodes = self.json["polygon"][-1]["exterior_node_tokens"]
        (u0, v0), (u1, v1) = lane.start, lane.end
        along_u = abs(u1 - u0) > abs(v1 - v0)
        half = np.array([0.0, LANE / 2]) if along_u else np.array([LANE / 2, 0.0])
        edges = [
            self._line(roads.bend.point(np.array([e - half, e + half])))
            for e in (np.array(lane.start), np.array(lane.end))
        ]
        segments = {
            f"{s}_lane_divider_segments": [{"node_token": n, "segment_type": "NIL"} for n in (nodes[0], nodes[-1])]
            for s in ("left", "right")
        }
        t = self._record(
            "lane",
            polygon_token=polygon,
            lane_type="CAR",
            from_edge_line_token=edges[0],
            to_edge_line_token=edges[1],
            **segments,
        )
        bend = roads.bend
        pose = lambda uv, sign: [*map(float, bend.point(np.array(uv))), float(bend.yaw(uv[0])) + sign]
        if along_u:
            forward = 1.0 if u1 > u0 else -1.0
            turn = 0.0 if forward > 0 else np.pi
            length = abs(u1 - u0) * (1 - bend.curvature * v0)  # of the arc at this distance from the centre line
            curvature = bend.curvature / (1 - bend.curvature * v0) * forward
        else:
            turn, length, curvature = (np.pi / 2 if v1 > v0 else -np.pi / 2), abs(v1 - v0), 0.0
        bent = abs(curvature) > 1e-9
        lengths = [
            length if bent and curvature > 0 else 0.0,
            0.0 if bent else length,
            length if bent and curvature < 0 else 0.0,
        ]
        arc = {"start_pose": pose(lane.start, turn), "end_pose": pose(lane.end, turn), "shape": "LSR"}
        self.json["arcline_path_3"][t] = [
            {**arc, "radius": 1 / abs(curvature) if bent else 999.999, "segment_length": lengths}
        ]
        self.json["connectivity"][t] = {"incoming": [], "outgoing": []}

    def finish(self, columns: int, rows: int = 1) -> dict[str, Any]:
        """The JSON with the size of the canvas: so many tiles side by side and above each other."""
        self.json["canvas_edge"] = [TILE_SIZE * columns, TILE_SIZE * rows]
        return self.json


def write_mask(path: Path, roads: list[Roads], columns: int, rows: int = 1) -> None:
    """255 where one can drive or walk, 0 elsewhere; ``columns`` x ``rows`` tiles, y upwards."""
    side = round(TILE_SIZE / MASK_RESOLUTION)
    image = Image.new("L", (side * columns, side * rows), 0)
    draw = ImageDraw.Draw(image)
    for r in roads:
        for polygon in (*r.drivable, *r.walkways):
            points = [(x / MASK_RESOLUTION, side * rows - y / MASK_RESOLUTION) for x, y in polygon.tolist()]
            draw.polygon(points, fill=255)
    image.save(path, "PNG", compress_level=1)

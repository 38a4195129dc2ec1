"""The map of a location as nuScenes stores it: the expansion (polygons and lines in JSON) and the drivable mask."""

from __future__ import annotations

import hashlib
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from mim4d.world.lanes import Arc, along, connectors
from mim4d.world.roads import LANE, TILE_SIZE, Divider, Lane, Roads

Array = NDArray[np.float64]

MASK_RESOLUTION = 0.1  # metres a pixel, what nuscenes-devkit expects
STRIP = 240  # pixel rows of a mask drawn at a time
# In the order in which nuscenes-devkit lists them.
LAYERS = ["drivable_area", "road_segment", "road_block", "lane", "ped_crossing", "walkway", "stop_line", "carpark_area"]
LAYERS += ["road_divider", "lane_divider", "traffic_light", "lane_connector"]
STRAIGHT = 1e-9  # 1/m; less is no curvature
LOCATIONS = ("boston-seaport", "singapore-onenorth", "singapore-queenstown", "singapore-hollandvillage")


def token(*parts: object) -> str:
    """32 hexadecimal digits, the same for the same parts."""
    return hashlib.md5("/".join(map(str, parts)).encode(), usedforsecurity=False).hexdigest()


class Expansion:
    """Collects the streets of one location and gives the JSON of nuScenes' map expansion, version 1.3.

    What meets shares its nodes: a place has one node, whatever polygons and lines go through it.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.json: dict[str, Any] = {k: [] for k in ("polygon", "line", "node", *LAYERS)}
        self.json.update(version="1.3", arcline_path_3={}, connectivity={})
        self._nodes: dict[tuple[float, float], str] = {}

    def _node(self, xy: Array) -> str:
        at = (round(float(xy[0]), 6), round(float(xy[1]), 6))  # micrometres
        if at not in self._nodes:
            self._nodes[at] = self._record("node", x=float(xy[0]), y=float(xy[1]))
        return self._nodes[at]

    def _nodes_of(self, points: Array) -> list[str]:
        return [self._node(p) for p in points]

    def _polygon(self, points: Array, holes: list[Array] | None = None) -> str:
        rings = [{"node_tokens": self._nodes_of(hole)} for hole in holes or []]
        return self._record("polygon", exterior_node_tokens=self._nodes_of(points), holes=rings)

    def _line(self, points: Array) -> str:
        return self._record("line", node_tokens=self._nodes_of(points))

    def _record(self, layer: str, **fields: object) -> str:
        t = token(self.name, layer, len(self.json[layer]))
        self.json[layer].append({"token": t, **fields})
        return t

    def add(self, roads: Roads) -> None:
        """Writes one scene's streets into the layers."""
        area = self._record("drivable_area", polygon_tokens=[self._polygon(*p) for p in roads.drivable()])
        segments = [
            self._record("road_segment", polygon_token=self._polygon(p), is_intersection=j, drivable_area_token=area)
            for p, j in roads.segments
        ]
        blocks = [
            self._record(
                "road_block",
                polygon_token=self._polygon(way.outline),
                from_edge_line_token=self._line(way.start),
                to_edge_line_token=self._line(way.end),
                road_segment_token=segments[way.segment],
            )
            for way in roads.carriageways
        ]
        crossings = [
            self._record("ped_crossing", polygon_token=self._polygon(c.outline), road_segment_token=segments[c.segment])
            for c in roads.ped_crossings
        ]
        for polygon in roads.walkways:
            self._record("walkway", polygon_token=self._polygon(polygon))
        for stop in roads.stop_lines:
            self._record(
                "stop_line",
                polygon_token=self._polygon(stop.outline),
                stop_line_type="PED_CROSSING",
                ped_crossing_tokens=[crossings[stop.crossing]],
                traffic_light_tokens=[],
                road_block_token=blocks[stop.carriageway],
            )
        for park in roads.carparks:
            fields = {"orientation": park.heading, "road_block_token": blocks[park.carriageway]}
            self._record("carpark_area", polygon_token=self._polygon(park.outline), **fields)
        for divider, segment in roads.road_dividers:
            self._record("road_divider", line_token=self._line(divider.line), road_segment_token=segments[segment])
        for divider in roads.lane_dividers:
            line = self._line(divider.line)
            self._record("lane_divider", line_token=line, lane_divider_segments=self._segments(divider, 1))
        tokens = {lane.name: self._lane(roads, lane) for lane in roads.lanes}
        for c in connectors(roads):
            through = self._record("lane_connector", polygon_token=self._polygon(c.outline))
            before, after = tokens[c.before.name], tokens[c.after.name]
            self._way(through, c.arcs)
            self.json["connectivity"][through] = {"incoming": [before], "outgoing": [after]}
            self.json["connectivity"][before]["outgoing"].append(through)
            self.json["connectivity"][after]["incoming"].append(through)

    def _segments(self, divider: Divider, direction: int) -> list[dict[str, str]]:
        return [{"node_token": n, "segment_type": divider.paint} for n in self._nodes_of(divider.line[::direction])]

    def _lane(self, roads: Roads, lane: Lane) -> str:
        along_u = abs(lane.end[0] - lane.start[0]) > abs(lane.end[1] - lane.start[1])
        half = np.array([0.0, LANE / 2]) if along_u else np.array([LANE / 2, 0.0])
        first, last = (self._line(roads.bend.point(np.array([e - half, e + half]))) for e in (lane.start, lane.end))
        forward = 1 if sum(lane.end) > sum(lane.start) else -1
        t = self._record(
            "lane",
            polygon_token=self._polygon(lane.outline),
            lane_type="CAR",
            from_edge_line_token=first,
            to_edge_line_token=last,
            left_lane_divider_segments=self._segments(lane.left, forward),
            right_lane_divider_segments=self._segments(lane.right, forward),
        )
        self._way(t, along(roads.bend, lane.start, lane.end))
        self.json["connectivity"][t] = {"incoming": [], "outgoing": []}
        return t

    def _way(self, lane: str, arcs: list[Arc]) -> None:
        """The centre line of a lane or a connector: per arc a path left, straight on, right, one of them of length."""
        self.json["arcline_path_3"][lane] = [
            {
                "start_pose": list(arc.start),
                "end_pose": list(arc.end),
                "shape": "LSR",
                "radius": 1.0 / abs(arc.curvature) if abs(arc.curvature) > STRAIGHT else 999.999,
                "segment_length": [
                    arc.length if arc.curvature > STRAIGHT else 0.0,
                    arc.length if abs(arc.curvature) <= STRAIGHT else 0.0,
                    arc.length if arc.curvature < -STRAIGHT else 0.0,
                ],
            }
            for arc in arcs
        ]

    def finish(self, columns: int, rows: int = 1) -> dict[str, Any]:
        """The JSON with the size of the canvas: so many tiles side by side and above each other."""
        self.json["canvas_edge"] = [TILE_SIZE * columns, TILE_SIZE * rows]
        return self.json


def write_mask(path: Path, roads: list[Roads], columns: int, rows: int = 1) -> None:
    """A PNG, 255 where one can drive or walk, 0 elsewhere, of ``columns`` x ``rows`` tiles, y upwards.

    It is drawn and written strip by strip: memory grows with the number of columns alone.
    """
    side = round(TILE_SIZE / MASK_RESOLUTION)
    width, height = side * columns, side * rows
    shapes = []
    for r in roads:
        for polygon in (*(p for p, _ in r.segments), *r.walkways):  # together the segments are the drivable area
            pixels = polygon / MASK_RESOLUTION * (1.0, -1.0) + (0.0, height)
            shapes.append((pixels, pixels[:, 1].min(), pixels[:, 1].max()))
    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)))
        stream = zlib.compressobj(level=1)
        above = np.zeros((1, width), np.uint8)
        for top in range(0, height, STRIP):
            image = Image.new("L", (width, min(STRIP, height - top)), 0)
            draw = ImageDraw.Draw(image)
            for pixels, low, high in shapes:
                if low < top + STRIP and high > top:
                    draw.polygon([(x, y - top) for x, y in pixels.tolist()], fill=255)
            lines = np.asarray(image)
            packed = np.full((len(lines), width + 1), 2, np.uint8)  # 2: what follows are differences to the line above
            packed[:, 1:] = lines - np.concatenate([above, lines[:-1]])
            above = lines[-1:]
            file.write(_chunk(b"IDAT", stream.compress(packed.tobytes())))
        file.write(_chunk(b"IDAT", stream.flush()) + _chunk(b"IEND", b""))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

"""The vector map of a nuScenes location: masks and vectors of any patch, straight from the map expansion's JSON.

A patch is named as in nuscenes-devkit: ``patch_box`` = (x, y, height, width) in map coordinates, metres, and
``patch_angle`` in degrees, counter-clockwise. Vectors come in the patch's own frame: its middle is (0, 0), x runs along
its width, y along its height. Row 0 of a mask is the patch's lower edge (y = -height / 2), column 0 its left one.
With the car's place and its heading in degrees, x is forward and y left: the ego frame seen from above.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mim4d.data.clipping import Polygon, clip_line, clip_polygon, crosses_itself, oriented
from mim4d.data.raster import draw, fill
from mim4d.errors import UserError, did_you_mean

Array = NDArray[np.float64]
Box = tuple[float, float, float, float]

POLYGON_LAYERS = (
    "drivable_area", "road_segment", "road_block", "lane", "ped_crossing", "walkway", "stop_line", "carpark_area",
    "lane_connector",
)  # fmt: skip
LINE_LAYERS = ("road_divider", "lane_divider")
BOUNDARY_MARGIN = 0.2
"""Boundaries are cut to a patch smaller by this much on each side, as MapTR does; metres."""
CRACK = 2e-3
"""Gaps up to this between neighbours are closed before boundaries are drawn: what meets in fifteen digits and not in
sixteen would leave them; metres."""

_NEEDED = ("version", "node", "polygon", "line", "arcline_path_3", "connectivity", *POLYGON_LAYERS, *LINE_LAYERS)


class HdMap:
    """One location's map. Reading it takes seconds for a real one; asking for a patch takes milliseconds.

    ``json`` is what the file holds; ``name`` the location.
    """

    def __init__(self, root: str | os.PathLike[str], name: str) -> None:
        """Reads ``root``/maps/expansion/``name``.json.

        Raises:
            UserError: there is no such file (those present are named); it is damaged, of a version before 1.3, or
                lacks a layer.
        """
        folder = Path(root).expanduser() / "maps" / "expansion"
        self.path, self.name = folder / f"{name}.json", name
        if not self.path.is_file():
            present = sorted(p.stem for p in folder.glob("*.json"))
            there = f"it has {', '.join(present)}" if present else "unpack nuScenes' 'Map expansion' there"
            raise UserError(f"no map {name!r} in {folder}: {there}")
        try:
            self.json: dict[str, Any] = json.loads(self.path.read_text())
        except (ValueError, OSError) as e:
            raise UserError(f"cannot read the map {self.path}: {e}; unpack it again") from None
        if not isinstance(self.json, dict):
            raise UserError(f"the map {self.path} holds a {type(self.json).__name__}, want an object with layers")
        lacking = [k for k in _NEEDED if k not in self.json]
        if lacking or str(self.json["version"]) < "1.3":
            what = f"lacks {', '.join(lacking)}" if lacking else f"has version {self.json['version']}"
            raise UserError(f"the map {self.path} {what}: want nuScenes' map expansion 1.3 or later")
        self._nodes: dict[str, tuple[float, float]] = {n["token"]: (n["x"], n["y"]) for n in self.json["node"]}
        self._by_token = {k: {r["token"]: r for r in self.json[k]} for k in ("polygon", "line")}
        self._shapes: dict[str, tuple[list[Polygon], Array]] = {}
        self._lines: dict[str, tuple[list[Array], Array]] = {}

    # ---- vectors

    def polygons(self, layer: str, patch_box: Box, patch_angle: float = 0.0) -> list[Polygon]:
        """The layer's polygons, cut to the patch and in its frame. One polygon may come in several pieces.

        Raises UserError for a layer that is none of POLYGON_LAYERS, or a patch without size.
        """
        return [piece for pieces in self._cut(layer, patch_box, patch_angle) for piece in pieces]

    def lines(self, layer: str, patch_box: Box, patch_angle: float = 0.0) -> list[Array]:
        """The layer's lines (P, 2), cut to the patch and in its frame, each in the direction in which it is stored.

        Raises UserError for a layer that is none of LINE_LAYERS, or a patch without size.
        """
        _known(layer, LINE_LAYERS)
        _check_patch(patch_box, patch_angle)
        if layer not in self._lines:
            rows = [self._points(self._row("line", r["line_token"])["node_tokens"]) for r in self.json[layer]]
            lines = [line for line in rows if len(line) > 1]
            self._lines[layer] = lines, _bounds(lines)
        lines, bounds = self._lines[layer]
        return self._cut_lines([lines[i] for i in _near(bounds, patch_box)], patch_box, patch_angle)

    def centre_lines(self, patch_box: Box, patch_angle: float = 0.0, step: float = 1.0) -> list[Array]:
        """The ways of traffic (P, 2) through lanes and lane connectors, in driving direction, cut to the patch and in
        its frame, with a point at least every ``step`` metres. UserError for a patch or a step without size.
        """
        if not step > 0:
            raise UserError(f"step: got {step}, want a length in metres above 0")
        _check_patch(patch_box, patch_angle)
        key = f"centre lines every {step} m"
        if key not in self._lines:
            ways = [
                self.json["arcline_path_3"].get(r["token"]) for k in ("lane", "lane_connector") for r in self.json[k]
            ]
            lines = [np.concatenate([roll_out(arc, step)[:, :2] for arc in arcs]) for arcs in ways if arcs]
            self._lines[key] = lines, _bounds(lines)
        lines, bounds = self._lines[key]
        return self._cut_lines([lines[i] for i in _near(bounds, patch_box)], patch_box, patch_angle)

    def boundaries(self, patch_box: Box, patch_angle: float = 0.0) -> list[Array]:
        """The road's edges (P, 2), cut to the patch and in its frame, with the road on their right: the outlines of the
        union of road segments and lanes, as MapTR derives them. They end ``BOUNDARY_MARGIN`` before the patch does.

        Needs shapely, which nuscenes-devkit brings. Raises UserError without it, or for a patch without size.
        """
        try:
            import shapely
            from shapely.geometry import MultiPolygon
        except ImportError as e:
            raise UserError(f"road boundaries need shapely ({e}): pip install 'mim4d[train]'") from None
        _check_patch(patch_box, patch_angle)
        surfaces = []
        for layer in ("road_segment", "lane"):  # whole: cut ones no longer share their corners, and cracks would show
            shapes, bounds = self._layer(layer)
            surfaces += [shapes[i] for i in _near(bounds, patch_box)]
        grown = [shapely.Polygon(p.exterior, p.holes).buffer(CRACK / 2, join_style="mitre") for p in surfaces]
        union = shapely.union_all(grown).buffer(-CRACK / 2, join_style="mitre")
        parts = union.geoms if isinstance(union, MultiPolygon) else [union] if not union.is_empty else []
        inner = (patch_box[3] - 2 * BOUNDARY_MARGIN, patch_box[2] - 2 * BOUNDARY_MARGIN)
        out = []
        for part in parts:
            for i, ring in enumerate((part.exterior, *part.interiors)):
                points = _local(oriented(np.asarray(ring.coords), counter_clockwise=i > 0), patch_box, patch_angle)
                pieces = clip_line(np.concatenate([points, points[:1]]), *inner)
                if len(pieces) > 1 and (pieces[0][0] == pieces[-1][-1]).all():  # cut at the ring's seam
                    pieces = [np.concatenate([pieces[-1], pieces[0][1:]]), *pieces[1:-1]]
                out += pieces
        return out

    # ---- masks

    def masks(
        self,
        patch_box: Box,
        patch_angle: float = 0.0,
        layers: Sequence[str] = (*POLYGON_LAYERS[:-1], *LINE_LAYERS),
        canvas_size: tuple[int, int] = (100, 100),
    ) -> NDArray[np.uint8]:
        """Which pixels each layer covers, 0 or 1: (L, H, W) for ``canvas_size`` (H, W).

        Coordinates are rounded to pixels and outlines belong to their polygons; lines are two pixels thick, whatever
        a pixel measures; a polygon's holes clear what polygons before it have set. These are nuscenes-devkit's rules,
        so that the masks are those that others train and report on.

        Raises UserError for an unknown layer, a patch without size, or a canvas without pixels.
        """
        height, width = (int(n) for n in canvas_size)
        if (height, width) != tuple(canvas_size) or min(height, width) < 1:
            raise UserError(f"canvas_size: got {canvas_size}, want (height, width) in whole pixels above 0")
        _check_patch(patch_box, patch_angle)
        half = np.array([patch_box[3], patch_box[2]]) / 2
        scale = np.array([width, height]) / (2 * half)
        pixels = lambda points: (points + half) * scale
        out = np.zeros((len(layers), height, width), np.uint8)
        for mask, layer in zip(out, layers, strict=True):
            if _known(layer, (*POLYGON_LAYERS, *LINE_LAYERS)) in LINE_LAYERS:
                lines = self.lines(layer, patch_box, patch_angle)
                draw(mask, [pixels(line).astype(np.int64) for line in lines])
                continue
            for pieces in self._cut(layer, patch_box, patch_angle):
                for rings, value in (([p.exterior for p in pieces], 1), ([h for p in pieces for h in p.holes], 0)):
                    fill(mask, [np.rint(pixels(r)).astype(np.int64) for r in rings], value)
        return out

    # ---- inside

    def _row(self, table: str, token: str) -> dict[str, Any]:
        row = self._by_token[table].get(token)
        if row is None:
            raise UserError(f"the map {self.path} names a {table} {token!r} that it does not hold; unpack it again")
        return row

    def _points(self, tokens: Sequence[str]) -> Array:
        try:
            return np.array([self._nodes[t] for t in tokens], np.float64).reshape(-1, 2)
        except KeyError as e:
            raise UserError(f"the map {self.path} names a node {e} that it does not hold; unpack it again") from None

    def _surface(self, token: str) -> Polygon | None:
        """A polygon as stored; None where it has less than three corners."""
        row = self._row("polygon", token)
        rings = [self._points(row["exterior_node_tokens"]), *(self._points(h["node_tokens"]) for h in row["holes"])]
        if len(rings[0]) < 3:
            return None
        holes = tuple(oriented(r, counter_clockwise=False) for r in rings[1:] if len(r) > 2)
        return Polygon(oriented(rings[0], counter_clockwise=True), holes)

    def _layer(self, layer: str) -> tuple[list[Polygon], Array]:
        """The layer's polygons in map coordinates and their bounds (R, 4).

        Those that cross themselves are left out of all layers but the drivable area: so does nuscenes-devkit.
        """
        if layer not in self._shapes:
            rows = self.json[layer]
            tokens = [t for r in rows for t in (r["polygon_tokens"] if "polygon_tokens" in r else [r["polygon_token"]])]
            shapes = [p for p in map(self._surface, tokens) if p is not None]
            if layer != "drivable_area":
                shapes = [p for p in shapes if not crosses_itself(p.exterior)]
            self._shapes[layer] = shapes, _bounds([p.exterior for p in shapes])
        return self._shapes[layer]

    def _cut(self, layer: str, patch_box: Box, patch_angle: float) -> list[list[Polygon]]:
        """Per polygon of the layer that the patch holds anything of: its pieces in the patch's frame."""
        _known(layer, POLYGON_LAYERS)
        _check_patch(patch_box, patch_angle)
        shapes, bounds = self._layer(layer)
        out = []
        for i in _near(bounds, patch_box):
            rings = [_local(r, patch_box, patch_angle) for r in shapes[i].rings]
            pieces = clip_polygon(Polygon(rings[0], tuple(rings[1:])), patch_box[3], patch_box[2])
            if pieces:
                out.append(pieces)
        return out

    @staticmethod
    def _cut_lines(lines: list[Array], patch_box: Box, patch_angle: float) -> list[Array]:
        local = [_local(line, patch_box, patch_angle) for line in lines]
        return [piece for line in local for piece in clip_line(line, patch_box[3], patch_box[2])]


def roll_out(arc: dict[str, Any], step: float) -> Array:
    """One arcline path of the map -> (P, 3) x, y and heading along it, evenly, at most ``step`` metres apart.

    Such a path is three pieces of one radius: the letters of its shape say left, straight or right.
    """
    lengths = np.array(arc["segment_length"], np.float64)  # (3,)
    sign = np.array([{"L": 1.0, "S": 0.0, "R": -1.0}[letter] for letter in arc["shape"]])
    s = np.linspace(0.0, lengths.sum(), max(2, math.ceil(lengths.sum() / step) + 1))
    x, y, yaw = arc["start_pose"]
    out = np.empty((len(s), 3))
    begin = 0.0
    for i, length in enumerate(lengths):
        here = (s >= begin) if i == 0 else (s > begin)
        k = sign[i] / arc["radius"]
        # A chord of an arc of angle a is sinc(a / 2) of its length and points half the angle aside.
        for at, target in ((s[here] - begin, here), (np.array([length]), None)):
            chord = at * np.sinc(k * at / (2 * math.pi))
            end = np.stack(
                [x + chord * np.cos(yaw + k * at / 2), y + chord * np.sin(yaw + k * at / 2), yaw + k * at], -1
            )
            if target is not None:
                out[target] = end
        (x, y, yaw), begin = end[0], begin + length
    return out


def _known(layer: str, layers: Sequence[str]) -> str:
    if layer not in layers:
        raise UserError(f"layer: got {layer!r}, want one of {', '.join(layers)}{did_you_mean(layer, layers)}")
    return layer


def _check_patch(patch_box: Box, patch_angle: float) -> None:
    if len(patch_box) != 4 or not np.isfinite([*patch_box, patch_angle]).all() or min(patch_box[2:]) <= 0:
        raise UserError(
            f"patch_box: got {tuple(patch_box)} at angle {patch_angle}, want finite (x, y, height, width) in metres "
            "with height and width above 0"
        )


def _bounds(curves: list[Array]) -> Array:
    """(R, 4) least and greatest x, y of point lists (P, 2)."""
    return np.array([(*c.min(0), *c.max(0)) for c in curves]).reshape(-1, 4)


def _near(bounds: Array, patch_box: Box) -> list[int]:
    """Which of the bounds (R, 4) come within reach of the patch, however it is turned."""
    x, y, height, width = patch_box
    reach = math.hypot(height, width) / 2
    apart = np.maximum(bounds[:, :2] - (x, y), (x, y) - bounds[:, 2:]).max(1)
    return np.flatnonzero(apart <= reach).tolist()


def _local(points: Array, patch_box: Box, patch_angle: float) -> Array:
    """Map coordinates (P, 2) -> the patch's frame."""
    c, s = math.cos(math.radians(patch_angle)), math.sin(math.radians(patch_angle))
    x, y = (points - patch_box[:2]).T
    return np.stack([c * x + s * y, c * y - s * x], -1)

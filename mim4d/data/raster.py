"""Polygons and lines as pixels, by the rules of the raster that nuScenes' map masks are made with.

Pixels are addressed by whole numbers (x, y), which stand for their centres. The rules are OpenCV's for ``fillPoly`` and
for ``polylines`` of thickness 2, as nuscenes-devkit calls them, so that masks and published numbers compare; measured
against them in tests/data/test_maps.py. numpy alone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Mask = NDArray[np.uint8]

ONE = 1 << 16
"""A pixel in the fixed-point numbers in which the edges of thick lines are followed."""
CROSS = np.array([(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)])
"""A disc of one pixel's radius: what stands at the ends of a line of thickness 2."""


def _counts(lengths: Ints) -> tuple[Ints, Ints]:
    """Lengths (E,) -> for each of their sum's items: the index of its run and its place in the run."""
    run = np.repeat(np.arange(len(lengths)), lengths)
    return run, np.arange(len(run)) - np.repeat(np.cumsum(lengths) - lengths, lengths)


def fill(mask: Mask, rings: list[Ints], value: int) -> None:
    """Sets the pixels (H, W) inside rings (P, 2) of x, y, with their outlines; inside is where rings nest oddly.

    A row is filled between every other pair of crossings with the edges, each followed in fixed point from its lower
    end; an edge that leaves the picture is one through the rounded ends of what is left of it.
    """
    height, width = mask.shape
    if not rings:
        return
    a = np.concatenate(rings)
    b = np.concatenate([np.roll(r, -1, 0) for r in rings])
    start, end, seen = _shortened(a, b, np.array([width - 1, height - 1]))
    _set(mask, *_outline(start[seen], end[seen]), value)
    flat = (start[:, 1] == end[:, 1])[:, None]  # what is left of a shortened edge may say nothing about its lean
    start[:, 1:], end[:, 1:] = np.where(flat, a[:, 1:], start[:, 1:]), np.where(flat, b[:, 1:], end[:, 1:])
    down = (a[:, 1] > b[:, 1])[:, None]
    low, high = np.where(down, b, a), np.where(down, a, b)
    start, end = np.where(down, end, start), np.where(down, start, end)
    first, last = np.clip(low[:, 1], 0, height), np.clip(high[:, 1], 0, height)  # rows first..last-1 are crossed
    edge, k = _counts(last - first)
    row = first[edge] + k
    lean = np.trunc((end - start)[:, 0] * ONE / np.maximum((end - start)[:, 1], 1)).astype(np.int64)
    at = start[edge, 0] * ONE + (row - start[edge, 1]) * lean[edge]
    order = np.lexsort((at, row))  # a row's crossings come in pairs: in, out
    row, at = row[order], at[order]
    into, out = np.clip((at[::2] + ONE - 1) >> 16, 0, width), np.clip((at[1::2] >> 16) + 1, 0, width)
    depth = np.zeros((height, width + 1), np.int64)
    np.add.at(depth, (row[::2], into), 1)
    np.add.at(depth, (row[1::2], out), -1)
    mask[np.cumsum(depth, 1)[:, :width] > 0] = value


def _shortened(a: Ints, b: Ints, most: Ints) -> tuple[Ints, Ints, NDArray[np.bool_]]:
    """Lines a -> b (E, 2) of whole numbers without what lies outside 0..``most`` (2,), and which of them are left (E,).

    An end that is moved to an edge is rounded towards where it came from, and the line is followed anew from there:
    that is seen in the picture.
    """
    ends = [a.copy(), b.copy()]
    for axis in (1, 0):  # first to the upper and lower edge, then to the sides
        for i in (0, 1):
            one, other = ends[i], ends[1 - i]
            to = np.clip(one[:, axis], 0, most[axis])
            delta = other - one
            # The other end of a line that is worth keeping lies on the other side of this edge.
            moved = (to != one[:, axis]) & ((other[:, axis] - to) * (one[:, axis] - to) <= 0) & (delta[:, axis] != 0)
            aside = (to - one[:, axis]) * delta[:, 1 - axis] / np.where(moved, delta[:, axis], 1)
            one[moved, 1 - axis] += np.trunc(aside).astype(np.int64)[moved]
            one[moved, axis] = to[moved]
    kept = np.logical_and(*(((e >= 0) & (e <= most)).all(1) for e in ends))
    return ends[0], ends[1], kept


def _outline(a: Ints, b: Ints) -> tuple[Ints, Ints]:
    """Pixels x, y of the lines a -> b (E, 2), one per step of the longer side, halves rounded towards the left end."""
    swap = (b[:, 0] < a[:, 0])[:, None]
    a, b = np.where(swap, b, a), np.where(swap, a, b)
    delta = b - a
    steep = np.abs(delta[:, 1]) > delta[:, 0]
    major, minor = np.where(steep[:, None], delta[:, ::-1], delta).T
    steps = np.abs(major)
    edge, k = _counts(steps + 1)
    along = np.sign(major)[edge] * k
    n = np.maximum(steps, 1)[edge]
    aside = np.sign(minor)[edge] * ((2 * k * np.abs(minor)[edge] + n - 1) // (2 * n))
    return a[edge, 0] + np.where(steep[edge], aside, along), a[edge, 1] + np.where(steep[edge], along, aside)


def _set(mask: Mask, x: Ints, y: Ints, value: int) -> None:
    inside = (x >= 0) & (y >= 0) & (x < mask.shape[1]) & (y < mask.shape[0])
    mask[y[inside], x[inside]] = value


def draw(mask: Mask, lines: list[Ints]) -> None:
    """Sets the pixels (H, W) of polylines (P, 2) of x, y, two pixels thick with round ends."""
    height, width = mask.shape
    if not lines:
        return
    ends = np.concatenate(lines)
    spots = (ends[:, None] + CROSS).reshape(-1, 2)
    _set(mask, spots[:, 0], spots[:, 1], 1)
    a, b = np.concatenate([l[:-1] for l in lines]), np.concatenate([l[1:] for l in lines])
    long = (a != b).any(1)
    a, b = a[long], b[long]  # (S, 2)
    # Each piece is a rectangle that reaches one pixel to either side. What lies between the outermost pixels of a row
    # is filled; its edges are followed twice, row by row and in steps of the longer side, from the rounded start on.
    length = np.sqrt(((b - a) ** 2).sum(1))
    aside = np.rint(np.stack([a[:, 1] - b[:, 1], b[:, 0] - a[:, 0]], 1) * (ONE / length)[:, None]).astype(np.int64)
    corners = np.stack([a * ONE - aside, a * ONE + aside, b * ONE + aside, b * ONE - aside], 1)  # (S, 4, 2)
    canvas = np.array([width, height]) * ONE - 1
    p, q = corners.reshape(-1, 2), np.roll(corners, -1, 1).reshape(-1, 2)
    swap = (q[:, 1] < p[:, 1])[:, None]
    low, high = np.where(swap, q, p), np.where(swap, p, q)
    first, last = ((c[:, 1] + ONE // 2) >> 16 for c in (low, high))
    rise = np.maximum(last - first, 1)
    lean = np.trunc(((high - low)[:, 0] * 2 + rise) / (2 * rise)).astype(np.int64)
    side, k = _counts(last - first)
    across = (low[side, 0] + k * lean[side] + ONE // 2) >> 16, first[side] + k, side // 4  # x, y, piece
    p, q, seen = _shortened(p, q, canvas)
    piece = np.flatnonzero(seen) // 4
    p, q = p[seen], q[seen]
    steep = np.abs(q - p)[:, 0] <= np.abs(q - p)[:, 1]
    p, q = (np.where(steep[:, None], c[:, ::-1], c) for c in (p, q))  # the longer side first
    swap = (q[:, 0] < p[:, 0])[:, None]
    p, q = np.where(swap, q, p), np.where(swap, p, q)
    run = q[:, 0] - p[:, 0]
    slope = np.trunc((q[:, 1] - p[:, 1]) * ONE / (run | 1)).astype(np.int64)
    edge, k = _counts((run >> 16) + 1)
    major = np.concatenate([((p[edge, 0] + ONE // 2) >> 16) + k, (q[:, 0] + ONE // 2) >> 16])
    minor = np.concatenate([(p[edge, 1] + ONE // 2 + k * slope[edge]) >> 16, (q[:, 1] + ONE // 2) >> 16])
    edge = np.concatenate([edge, np.arange(len(p))])
    x, y = np.where(steep[edge], minor, major), np.where(steep[edge], major, minor)
    x, y, piece = (np.concatenate(c) for c in zip((x, y, piece[edge]), across, strict=True))
    seen = (y >= 0) & (y < height)
    x, row = x[seen], piece[seen] * height + y[seen]  # a row of one piece
    rows, at = np.unique(row, return_inverse=True)
    left, right = np.full(len(rows), np.iinfo(np.int64).max), np.full(len(rows), np.iinfo(np.int64).min)
    np.minimum.at(left, at, x)
    np.maximum.at(right, at, x)
    depth = np.zeros((height, width + 1), np.int64)
    np.add.at(depth, (rows % height, np.clip(left, 0, width)), 1)
    np.add.at(depth, (rows % height, np.clip(right + 1, 0, width)), -1)
    mask[np.cumsum(depth, 1)[:, :width] > 0] = 1

"""How a voxel volume is read at points: ``locate`` a coordinate on its axis, the ``taps`` around it, and what they hold
``interpolate``-d. docs/ops/voxel_sample.md derives the formulas in the same symbols.
"""

from __future__ import annotations

import triton
import triton.language as tl

A = tl.constexpr(-0.75)  # Keys' parameter. Always the right operand: the interpreter keeps `A * s` a constant


# ---- one axis


@triton.jit
def locate(c, size, CUBIC: tl.constexpr, BORDER: tl.constexpr, ALIGN: tl.constexpr):
    """The first tap of an axis for the normalised coordinate c, the fraction t, and dp/dc (0 where p was clamped)."""
    n = size.to(c.dtype)
    if ALIGN:
        scale = (n - 1) * 0.5
        shift = 0.0
    else:
        scale = n * 0.5
        shift = 0.5
    # An axis of size 1 may have scale 0, and inf * 0 is NaN; 1e30 lies outside of any grid, in cells too.
    finite = tl.minimum(tl.maximum(c, -1e30), 1e30)
    p = (finite + 1) * scale - shift
    # A linear axis with `border` clamps by definition. Otherwise every tap lies beyond the border outside of these
    # limits: clamping there changes no result and makes any p safe to convert to an integer.
    if BORDER and not CUBIC:
        first = n * 0
        last = n - 1
    else:
        first = n * 0 - 3
        last = n + 2
    free = (p > first) & (p < last)
    p = tl.minimum(tl.maximum(p, first), last)
    i = tl.floor(p)
    low = i.to(tl.int64)
    if CUBIC:
        low -= 1
    return low, p - i, tl.where(free, scale, 0.0)


@triton.jit
def keys_near(s):
    """K(s) for s <= 1, and dK/ds."""
    return (s * (A + 2) - (A + 3)) * s * s + 1, (s * (3 * (A + 2)) - 2 * (A + 3)) * s


@triton.jit
def keys_far(s):
    """K(s) for 1 < s < 2, and dK/ds."""
    return ((s - 5) * s + 8) * s * A - 4 * A, ((3 * s - 10) * s + 8) * A


@triton.jit
def tap(axis, k, size, CUBIC: tl.constexpr, SMOOTH: tl.constexpr, BORDER: tl.constexpr):
    """Tap k of an axis: its cell, whether that lies in the volume, its weight w, and dw/dt."""
    low, t, _ = axis
    cell = low + k
    if BORDER:
        cell = tl.minimum(tl.maximum(cell, 0), size - 1)
    if CUBIC:
        u = t + (1 - k)  # from the tap to the point
        s = tl.abs(u)
        near, dnear = keys_near(s)
        far, dfar = keys_far(s)
        w = tl.where(s <= 1, near, far)
        dw = tl.where(s <= 1, dnear, dfar)
        dw = tl.where(u < 0, -dw, dw)
    else:
        if SMOOTH:
            s = t * t * (3 - 2 * t)
            ds = 6 * t * (1 - t)
        else:
            s = t
            ds = tl.full(t.shape, 1.0, t.dtype)
        w = tl.where(k == 0, 1 - s, s)
        dw = tl.where(k == 0, -ds, ds)
    return cell, (cell >= 0) & (cell < size), w, dw


@triton.jit
def taps(axis, size, CUBIC: tl.constexpr, SMOOTH: tl.constexpr, BORDER: tl.constexpr):
    """The 2 or 4 taps of an axis."""
    first, second = tap(axis, 0, size, CUBIC, SMOOTH, BORDER), tap(axis, 1, size, CUBIC, SMOOTH, BORDER)
    if CUBIC:
        third, fourth = tap(axis, 2, size, CUBIC, SMOOTH, BORDER), tap(axis, 3, size, CUBIC, SMOOTH, BORDER)
        return first, second, third, fourth
    else:
        return first, second


# ---- three axes


@triton.jit
def interpolate(
    volume, channel, valid, C, item, x, y, z, X, Y, Z,
    CUBIC_XY: tl.constexpr, CUBIC_Z: tl.constexpr, SMOOTH: tl.constexpr, BORDER: tl.constexpr,
    DERIVATIVES: tl.constexpr,
):  # fmt: skip
    """f, and with DERIVATIVES those by t_x, t_y and t_z: rows of taps first, of rows planes, of planes the result."""
    f = tl.zeros(valid.shape, z[1].dtype)
    fx, fy, fz = f, f, f
    # The 64 taps of tricubic unrolled would need more registers than there are.
    for kz in tl.range(0, 4 if CUBIC_Z else 2, loop_unroll_factor=1 if CUBIC_Z else 2):
        cz, in_z, wz, dz = tap(z, kz, Z, CUBIC_Z, SMOOTH, BORDER)
        plane = tl.zeros(valid.shape, f.dtype)
        plane_x, plane_y = plane, plane
        for ky in tl.static_range(4 if CUBIC_XY else 2):
            cy, in_y, wy, dy = y[ky]
            row = tl.zeros(valid.shape, f.dtype)
            row_x = row
            for kx in tl.static_range(4 if CUBIC_XY else 2):
                cx, in_x, wx, dx = x[kx]
                voxel = (((item * Z + cz) * Y + cy) * X + cx) * C
                inside = (in_x & in_y & in_z)[:, None] & valid
                v = tl.load(volume + voxel[:, None] + channel[None, :], mask=inside, other=0.0).to(f.dtype)
                row += wx[:, None] * v
                if DERIVATIVES:
                    row_x += dx[:, None] * v
            plane += wy[:, None] * row
            if DERIVATIVES:
                plane_x += wy[:, None] * row_x
                plane_y += dy[:, None] * row
        f += wz[:, None] * plane
        if DERIVATIVES:
            fx += wz[:, None] * plane_x
            fy += wz[:, None] * plane_y
            fz += dz[:, None] * plane
    return f, fx, fy, fz

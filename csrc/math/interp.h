#pragma once
// Interpolation on a regular grid: where a point lies on an axis, and the taps of the axis with their weights. A volume
// has the product of the taps of its three axes, in all modes. docs/ops/voxel_sample.md derives these formulas and
// their adjoints in the same symbols.

#include "math/macros.h"
#include "math/modes.h"
#include "math/scalar.h"

namespace mim4d::math {

// A point on one axis: position = low + t, in cells.
template <class T>
struct LinearAxis {
  T low;    // a whole number in [-3, size + 2]
  T t;      // in [0, 1); NaN for a NaN coordinate, and then low is -3
  T slope;  // d position / d coordinate; 0 where the position was clamped
  T free;   // 0 where the position was clamped: nothing depends on the coordinate; else 1
};

// The point for a normalised coordinate; -1 and 1 are the outer faces of the grid, or with `align` the outer cell
// centres. `clamp`: to the centres of the outer cells.
template <class T>
MIM4D_HD LinearAxis<T> axis_position(T coordinate, T size, bool align, bool clamp) {
  const T scale = (align ? size - T(1) : size) * T(0.5);
  // An axis of size 1 may have scale 0, and inf * 0 is NaN; 1e30 lies outside of any grid, in cells too.
  const T finite = clamp_(coordinate, T(-1e30), T(1e30));
  const T position = (finite + T(1)) * scale - T(align ? 0.0 : 0.5);  // in cells
  // Without `clamp` all taps lie outside beyond the limits, or all on one border, so that this changes no result and
  // makes any coordinate, infinite ones too, safe to convert to an integer.
  const T first = clamp ? T(0) : T(-3);
  const T last = clamp ? size - T(1) : size + T(2);
  const auto free = (position > first) & (position < last);
  const auto lost = coordinate != coordinate;
  const T clamped = clamp_(position, first, last);
  const T low = floor_(clamped);
  return {select(lost, T(-3), low), select(lost, coordinate, clamped - low), select(free, scale, T(0)),
          select(free, T(1), T(0))};
}

// The axis of a trilinear interpolation: the cells low and low + 1 have the weights 1 - t and t.
template <class T>
MIM4D_HD LinearAxis<T> linear_axis(T coordinate, T size, bool align, Padding padding) {
  return axis_position(coordinate, size, align, padding == Padding::border);
}

// The K = 2 or 4 taps of one axis: cells first .. first + K - 1. Of these, [from, to) lie in the grid; the others are
// not to be read.
template <class T, int K>
struct Taps {
  T first, from, to;  // whole numbers; from == to: no tap lies in the grid
  T w[K];             // weights
  T d[K], dd[K];      // their first and second derivatives by the coordinate
  T nothing;          // the value where no tap lies in the grid: 0, or NaN for a NaN coordinate
  T free;             // 0 where the position was clamped; else 1

  // A derivative by the coordinate: 0 where nothing depends on it, though 0 times an infinite voxel is NaN.
  MIM4D_HD T kept(T slope) const { return select(free != T(0), slope, T(0)); }
};

// Linear interpolation, or with `smooth` of t * t * (3 - 2 t) in the place of t.
template <class T>
MIM4D_HD void linear_weights(T t, bool smooth, T (&w)[2], T (&d)[2], T (&dd)[2]) {
  w[1] = t, d[1] = T(1), dd[1] = T(0);
  if (smooth) {
    w[1] = t * t * (T(3) - T(2) * t);
    d[1] = T(6) * t * (T(1) - t);
    dd[1] = T(6) - T(12) * t;
  }
  w[0] = T(1) - w[1], d[0] = T(0) - d[1], dd[0] = T(0) - dd[1];
}

// Cubic convolution (Keys 1981, eq. 4), its polynomials factored: small weights lose no digits.
template <class T>
MIM4D_HD void cubic_weights(T t, T (&w)[4], T (&d)[4], T (&dd)[4]) {
  constexpr double a = -0.75;
  const T A(a), B(a + 2), C(a + 3), u = T(1) - t;
  w[0] = A * t * u * u;
  w[1] = T(1) - t * t * (C - B * t);
  w[2] = T(1) - u * u * (C - B * u);
  w[3] = A * t * t * u;
  d[0] = A * u * (T(1) - T(3) * t);
  d[1] = t * (T(3) * B * t - T(2) * C);
  d[2] = u * (T(2) * C - T(3) * B * u);
  d[3] = A * t * (T(2) - T(3) * t);
  dd[0] = A * (T(6) * t - T(4));
  dd[1] = T(6) * B * t - T(2) * C;
  dd[2] = T(6) * B * u - T(2) * C;
  dd[3] = A * (T(2) - T(6) * t);
}

// Weights of taps outside of [from, to) go to the tap at that end: each tap is clamped into the grid.
template <class T, int K>
MIM4D_HD void merge_outside(T from, T to, T (&w)[K]) {
  T merged[K];
  MIM4D_UNROLL
  for (int k = 0; k < K; ++k) merged[k] = T(0);
  MIM4D_UNROLL
  for (int i = 0; i < K; ++i) {
    const T end = clamp_(T(i), from, to - T(1));
    MIM4D_UNROLL
    for (int k = 0; k < K; ++k) merged[k] = merged[k] + select(end != T(k), T(0), w[i]);
  }
  MIM4D_UNROLL
  for (int k = 0; k < K; ++k) w[k] = merged[k];
}

// The taps around a point on an axis; `at` was not clamped, unless K = 2 and the padding is border.
template <int K, class T>
MIM4D_HD Taps<T, K> taps_at(const LinearAxis<T>& at, T size, bool smooth, Padding padding) {
  const bool border = padding == Padding::border;
  const auto lost = at.t != at.t;
  const T t = select(lost, T(0), at.t);
  Taps<T, K> taps;
  if constexpr (K == 2)
    linear_weights(t, smooth, taps.w, taps.d, taps.dd);
  else
    cubic_weights(t, taps.w, taps.d, taps.dd);
  MIM4D_UNROLL
  for (int k = 0; k < K; ++k) {
    taps.d[k] = taps.d[k] * at.slope;
    taps.dd[k] = taps.dd[k] * at.slope * at.slope;
  }
  const bool merges = border && K == 4;
  // A tap that is clamped is in the grid: at least one of them stays there.
  const T low = merges ? clamp_(at.low, T(-2), size) : at.low;
  taps.first = select(lost, T(-K - 1), low - T(K / 2 - 1));
  taps.from = clamp_(T(0) - taps.first, T(0), T(K));
  taps.to = clamp_(size - taps.first, T(0), T(K));
  if (merges) {
    merge_outside(taps.from, taps.to, taps.w);
    merge_outside(taps.from, taps.to, taps.d);
    merge_outside(taps.from, taps.to, taps.dd);
  }
  taps.nothing = select(lost, at.t, T(0));
  taps.free = at.free;
  return taps;
}

template <int K, class T>
MIM4D_HD Taps<T, K> axis_taps(T coordinate, T size, bool smooth, bool align, Padding padding) {
  const bool clamp = padding == Padding::border && K == 2;
  return taps_at<K>(axis_position(coordinate, size, align, clamp), size, smooth, padding);
}

// The functions below contract one number s(k) a tap with the weights; k counts taps with x fastest, then y, then z.

// slope += the gradient of sum_k w_k s_k by the coordinates x, y, z
template <class T, int K, int KZ, class S>
MIM4D_HD void add_gradient(const Taps<T, K>& x, const Taps<T, K>& y, const Taps<T, KZ>& z, S&& s, T (&slope)[3]) {
  for (int iz = 0; iz < KZ; ++iz) {
    T plane[3] = {T(0), T(0), T(0)};  // value, d/dx and d/dy of this slice of z
    MIM4D_UNROLL
    for (int iy = 0; iy < K; ++iy) {
      T row = T(0), row_x = T(0);
      MIM4D_UNROLL
      for (int ix = 0; ix < K; ++ix) {
        const T value = s((iz * K + iy) * K + ix);
        row = row + x.w[ix] * value;
        row_x = row_x + x.d[ix] * value;
      }
      plane[0] = plane[0] + y.w[iy] * row;
      plane[1] = plane[1] + y.w[iy] * row_x;
      plane[2] = plane[2] + y.d[iy] * row;
    }
    slope[0] = slope[0] + z.w[iz] * plane[1];
    slope[1] = slope[1] + z.w[iz] * plane[2];
    slope[2] = slope[2] + z.d[iz] * plane[0];
  }
}

// slope += the matrix of second derivatives of sum_k w_k s_k times q
template <class T, int K, int KZ, class S>
MIM4D_HD void add_curvature(const Taps<T, K>& x, const Taps<T, K>& y, const Taps<T, KZ>& z, S&& s, const T (&q)[3],
                            T (&slope)[3]) {
  for (int iz = 0; iz < KZ; ++iz) {
    T v = T(0), vx = T(0), vy = T(0), vxx = T(0), vxy = T(0), vyy = T(0);  // of this slice of z
    MIM4D_UNROLL
    for (int iy = 0; iy < K; ++iy) {
      T row = T(0), row_x = T(0), row_xx = T(0);
      MIM4D_UNROLL
      for (int ix = 0; ix < K; ++ix) {
        const T value = s((iz * K + iy) * K + ix);
        row = row + x.w[ix] * value;
        row_x = row_x + x.d[ix] * value;
        row_xx = row_xx + x.dd[ix] * value;
      }
      v = v + y.w[iy] * row;
      vx = vx + y.w[iy] * row_x;
      vxx = vxx + y.w[iy] * row_xx;
      vy = vy + y.d[iy] * row;
      vxy = vxy + y.d[iy] * row_x;
      vyy = vyy + y.dd[iy] * row;
    }
    slope[0] = slope[0] + z.w[iz] * (q[0] * vxx + q[1] * vxy) + z.d[iz] * (q[2] * vx);
    slope[1] = slope[1] + z.w[iz] * (q[0] * vxy + q[1] * vyy) + z.d[iz] * (q[2] * vy);
    slope[2] = slope[2] + z.d[iz] * (q[0] * vx + q[1] * vy) + z.dd[iz] * (q[2] * v);
  }
}

// Weights of the eight taps; bit 0 of a tap's number is its step in x, bit 1 in y, bit 2 in z.
template <class T>
MIM4D_HD void trilinear_weights(T tx, T ty, T tz, T (&w)[8]) {
  const T sx = T(1) - tx, sy = T(1) - ty, sz = T(1) - tz;
  const T lower[4] = {sx * sy, tx * sy, sx * ty, tx * ty};
  MIM4D_UNROLL
  for (int k = 0; k < 4; ++k) {
    w[k] = lower[k] * sz;
    w[k + 4] = lower[k] * tz;
  }
}

// Derivatives of the interpolation of the taps v by tx, ty and tz.
template <class T>
MIM4D_HD void trilinear_gradient(const T (&v)[8], T tx, T ty, T tz, T& dx, T& dy, T& dz) {
  T step[4], edge[4];  // along x: difference and interpolation
  MIM4D_UNROLL
  for (int k = 0; k < 4; ++k) {
    step[k] = v[2 * k + 1] - v[2 * k];
    edge[k] = v[2 * k] + step[k] * tx;
  }
  const T step_low = step[0] + (step[1] - step[0]) * ty, step_high = step[2] + (step[3] - step[2]) * ty;
  const T rise_low = edge[1] - edge[0], rise_high = edge[3] - edge[2];
  dx = step_low + (step_high - step_low) * tz;
  dy = rise_low + (rise_high - rise_low) * tz;
  dz = (edge[2] + rise_high * ty) - (edge[0] + rise_low * ty);
}

}  // namespace mim4d::math

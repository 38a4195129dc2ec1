#pragma once
// Interpolation on a regular grid. docs/ops/voxel_sample.md derives these formulas and their adjoints in the same
// symbols.

#include "math/macros.h"
#include "math/modes.h"
#include "math/scalar.h"

namespace mim4d::math {

// One axis of a linear interpolation: the cells low and low + 1 have the weights 1 - t and t.
template <class T>
struct LinearAxis {
  T low;    // a whole number in [-2, size + 1]; either cell may lie outside
  T t;      // in [0, 1); NaN for a NaN coordinate, and then both cells lie outside
  T slope;  // d position / d coordinate; 0 where the position was clamped
};

// The axis for a normalised coordinate; -1 and 1 are the outer faces of the grid, or with `align` the outer cell
// centres.
template <class T>
MIM4D_HD LinearAxis<T> linear_axis(T coordinate, T size, bool align, Padding padding) {
  const T scale = (align ? size - T(1) : size) * T(0.5);
  // An axis of size 1 may have scale 0, and inf * 0 is NaN; 1e30 lies outside of any grid, in cells too.
  const T finite = clamp_(coordinate, T(-1e30), T(1e30));
  const T position = (finite + T(1)) * scale - T(align ? 0.0 : 0.5);  // in cells
  // `border` clamps by definition. With `zeros` both cells lie outside beyond the limits, so that the clamp changes no
  // result and makes any coordinate, infinite ones too, safe to convert to an integer.
  const T first = padding == Padding::border ? T(0) : T(-2);
  const T last = padding == Padding::border ? size - T(1) : size + T(1);
  const auto free = (position > first) & (position < last);
  const auto lost = coordinate != coordinate;
  const T clamped = clamp_(position, first, last);
  const T low = floor_(clamped);
  return {select(lost, T(-2), low), select(lost, coordinate, clamped - low), select(free, scale, T(0))};
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

#pragma once
// Derivatives of a trilinear interpolation beyond math/interp.h: along a direction, and mixed.

#include "math/macros.h"

namespace mim4d::math {

// Derivatives of the eight tap weights along the direction (vx, vy, vz), in cells.
template <class T>
MIM4D_HD void trilinear_weights_along(T tx, T ty, T tz, T vx, T vy, T vz, T (&w)[8]) {
  const T sx = T(1) - tx, sy = T(1) - ty, sz = T(1) - tz;
  const T lower[4] = {sx * sy, tx * sy, sx * ty, tx * ty};
  const T slope[4] = {-(vx * sy + vy * sx), vx * sy - vy * tx, vy * sx - vx * ty, vx * ty + vy * tx};
  MIM4D_UNROLL
  for (int k = 0; k < 4; ++k) {
    w[k] = slope[k] * sz - lower[k] * vz;
    w[k + 4] = slope[k] * tz + lower[k] * vz;
  }
}

// The change of the interpolation's derivatives along the direction (vx, vy, vz): its second derivatives times it.
template <class T>
MIM4D_HD void trilinear_bend(const T (&v)[8], T tx, T ty, T tz, T vx, T vy, T vz, T& bx, T& by, T& bz) {
  const T low_xy = (v[3] - v[2]) - (v[1] - v[0]), high_xy = (v[7] - v[6]) - (v[5] - v[4]);
  const T low_xz = (v[5] - v[4]) - (v[1] - v[0]), high_xz = (v[7] - v[6]) - (v[3] - v[2]);
  const T low_yz = (v[6] - v[4]) - (v[2] - v[0]), high_yz = (v[7] - v[5]) - (v[3] - v[1]);
  const T xy = low_xy + (high_xy - low_xy) * tz;
  const T xz = low_xz + (high_xz - low_xz) * ty;
  const T yz = low_yz + (high_yz - low_yz) * tx;
  bx = xy * vy + xz * vz;
  by = xy * vx + yz * vz;
  bz = xz * vx + yz * vy;
}

}  // namespace mim4d::math

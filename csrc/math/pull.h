#pragma once
// Reading a feature map and a volume of depth weights at one place, and the derivative of their product by the place.
// docs/ops/voxel_pull.md has them in the same symbols.

#include "math/interp.h"

namespace mim4d::math {

// A place in a map with D bins of depth: two taps on each axis.
template <class T>
struct PullTaps {
  Taps<T, 2> x, y, z;
};

// Cells outside count 0, and the outer faces are at -1 and 1.
template <class T>
MIM4D_HD PullTaps<T> pull_taps(T u, T v, T d, T W, T H, T D) {
  return {axis_taps<2>(u, W, false, false, Padding::zeros), axis_taps<2>(v, H, false, false, Padding::zeros),
          axis_taps<2>(d, D, false, false, Padding::zeros)};
}

template <class T>
MIM4D_HD bool inside(const Taps<T, 2>& axis, int k) {
  return !(T(k) < axis.from) && T(k) < axis.to;
}

// f(iy, ix) for each tap of the map that lies in it.
template <class T, class F>
MIM4D_HD void for_pixels(const PullTaps<T>& at, F&& f) {
  MIM4D_UNROLL
  for (int iy = 0; iy < 2; ++iy) {
    MIM4D_UNROLL
    for (int ix = 0; ix < 2; ++ix)
      if (inside(at.y, iy) && inside(at.x, ix)) f(iy, ix);
  }
}

// The weight of a place's depth, and with `slope` its derivatives by the place (in the map's normalised units). The
// volume of one image: D maps of H * W.
template <bool slope, class T, class S>
MIM4D_HD T read_depth(const PullTaps<T>& at, const S* depth, int64_t H, int64_t W, T (&d)[3]) {
  const int64_t z0 = static_cast<int64_t>(at.z.first), y0 = static_cast<int64_t>(at.y.first),
                x0 = static_cast<int64_t>(at.x.first);
  T value = T(0);
  d[0] = d[1] = d[2] = T(0);
  MIM4D_UNROLL
  for (int iz = 0; iz < 2; ++iz) {
    if (!inside(at.z, iz)) continue;
    for_pixels(at, [&](int iy, int ix) {
      const T tap = static_cast<T>(depth[((z0 + iz) * H + y0 + iy) * W + x0 + ix]);
      value = value + at.z.w[iz] * at.y.w[iy] * at.x.w[ix] * tap;
      if constexpr (slope) {
        d[0] = d[0] + at.z.w[iz] * at.y.w[iy] * at.x.d[ix] * tap;
        d[1] = d[1] + at.z.w[iz] * at.y.d[iy] * at.x.w[ix] * tap;
        d[2] = d[2] + at.z.d[iz] * at.y.w[iy] * at.x.w[ix] * tap;
      }
    });
  }
  return value;
}

// slope += the gradient of (F . G) D by the place: dot[2 iy + ix] are the products of G with the rows of the taps (0
// for those outside), `value` is D and d its derivatives.
template <class T>
MIM4D_HD void add_pull_gradient(const PullTaps<T>& at, const T (&dot)[4], T value, const T (&d)[3], T (&slope)[3]) {
  T f = T(0), fx = T(0), fy = T(0);
  MIM4D_UNROLL
  for (int k = 0; k < 4; ++k) {
    f = f + at.y.w[k / 2] * at.x.w[k % 2] * dot[k];
    fx = fx + at.y.w[k / 2] * at.x.d[k % 2] * dot[k];
    fy = fy + at.y.d[k / 2] * at.x.w[k % 2] * dot[k];
  }
  slope[0] = slope[0] + value * fx + d[0] * f;
  slope[1] = slope[1] + value * fy + d[1] * f;
  slope[2] = slope[2] + d[2] * f;
}

}  // namespace mim4d::math

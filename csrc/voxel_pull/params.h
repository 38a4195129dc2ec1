#pragma once

#include <stdint.h>

#include "math/macros.h"

namespace mim4d {

// One level of the pyramid. S: the dtype of the features; T: that of the places, and of all arithmetic.
template <class S, class T = S>
struct VoxelPullLevel {
  const S* features;  // [B, N, H, W, C]
  const T* depth;     // [B, N, D, H, W]
  S* grad_features;   // [B, N, H, W, C], or null: not wanted
  T* grad_depth;      // [B, N, D, H, W], or null: not wanted
  int64_t H, W;
};

template <class S, class T = S>
struct VoxelPullSizes {
  const T* uvd;   // [B, N, V, 3]
  S* out;         // [B, V, C]
  const S* grad;  // [B, V, C]
  T* grad_uvd;    // [B, N, V, 3]
  int64_t B, N, V, C, D, levels;
};

// Whether a camera sees a place: all three strictly inside, NaN is not.
template <class T>
MIM4D_HD bool sees(T u, T v, T d) {
  return u > T(-1) && u < T(1) && v > T(-1) && v < T(1) && d > T(-1) && d < T(1);
}

}  // namespace mim4d

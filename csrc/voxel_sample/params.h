#pragma once

#include <stdint.h>

#include "math/macros.h"
#include "math/modes.h"

namespace mim4d {

// S: the dtype of the volume; T: that of the points, and of all arithmetic.
template <class S, class T = S>
struct VoxelSampleParams {
  const S* volume;  // [B, Z, Y, X, C]: channels last
  const T* points;  // [B, N, 3]: (x, y, z) in [-1, 1]
  S* out;           // [B, N, C]
  const S* grad;    // [B, N, C]
  T* grad_volume;   // [B, Z, Y, X, C], or null: not wanted
  T* grad_points;   // [B, N, 3], or null: not wanted
  int64_t B, N, C, Z, Y, X;
  Padding padding;
  bool align;

  MIM4D_HD int64_t count() const { return B * N; }
};

}  // namespace mim4d

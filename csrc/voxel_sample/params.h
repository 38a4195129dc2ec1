#pragma once

#include <stdint.h>

#include "math/macros.h"
#include "math/modes.h"

namespace mim4d {

struct VoxelSampleOptions {
  Mode mode;
  Padding padding;
  bool align;

  MIM4D_HD bool cubic() const { return mode == Mode::bicubic || mode == Mode::tricubic; }
  MIM4D_HD int taps() const { return cubic() ? 4 : 2; }  // of an axis; of z bicubic has two
  MIM4D_HD int taps_z() const { return mode == Mode::tricubic ? 4 : 2; }
};

// S: the dtype of the volume; T: that of the points, and of all arithmetic. A kernel uses what it needs; of the rest,
// and of what is not there or not wanted, the pointers are null.
template <class S, class T = S>
struct VoxelSampleParams : VoxelSampleOptions {
  const S* volume;            // [B, Z, Y, X, C]: channels last
  const T* points;            // [B, N, 3]: (x, y, z) in [-1, 1]
  S* out;                     // [B, N, C]
  S* jacobian;                // [B, N, C, 3]
  const S* grad;              // [B, N, C]
  const S* grad_jacobian;     // [B, N, C, 3]
  T* grad_volume;             // [B, Z, Y, X, C]
  T* grad_points;             // [B, N, 3]
  const S* grad_grad_volume;  // [B, Z, Y, X, C]: cotangent of grad_volume
  const T* grad_grad_points;  // [B, N, 3]: cotangent of grad_points
  S* grad_grad;               // [B, N, C]
  int64_t B, N, C, Z, Y, X;

  MIM4D_HD int64_t count() const { return B * N; }
};

}  // namespace mim4d

#pragma once

#include <stdint.h>

#include "math/macros.h"

namespace mim4d {

// One feature map: the cells [start, start + H * W) of value, row by row.
struct DeformLevel {
  int64_t H, W, start;

  // Has it cells, and are positions among them exact in float32?
  MIM4D_HD bool exact() const {
    constexpr int64_t most = int64_t{1} << 24;
    return H >= 1 && W >= 1 && H < most && W < most;
  }
};

// V: the dtype of value; T: that of locations and weights, and of all arithmetic.
template <class V, class T = V>
struct MsDeformAttnParams {
  const V* value;      // [B, S, M, D]
  const T* locations;  // [B, Q, M, L, P, 2]: (x, y) in [0, 1]
  const T* weights;    // [B, Q, M, L, P]
  V* out;              // [B, Q, M, D]
  const V* grad;       // [B, Q, M, D]
  T* grad_value;       // [B, S, M, D], or null: not wanted
  T* grad_locations;   // [B, Q, M, L, P, 2], or null
  T* grad_weights;     // [B, Q, M, L, P], or null
  int64_t B, S, M, D, Q, L, P;

  // A row is one head of one query: (b * Q + q) * M + m.
  MIM4D_HD int64_t rows() const { return B * Q * M; }
  MIM4D_HD int64_t row_points() const { return L * P; }
};

}  // namespace mim4d

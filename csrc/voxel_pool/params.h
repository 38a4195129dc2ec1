#pragma once

#include <stdint.h>

#include "math/divide.h"
#include "math/macros.h"

namespace mim4d {

// S: the dtype of features and volume; T: that of the depth weights, and of all arithmetic. Points are numbered as they
// lie in `cells`, pixels as rows of `features`.
template <class S, class T = S>
struct VoxelPoolParams {
  const T* depth;         // [B, N, D, area]
  const S* features;      // [B, N, area, C]
  const int32_t* cells;   // [B, N, D, area]: cell of each point in its own item, or any number outside: dropped
  const int32_t* points;  // [count()]: the points by cell
  const int32_t* starts;  // [rows() + 1]: where in `points` each cell begins
  S* out;                 // [B, volume, C]
  const S* grad;          // [B, volume, C]
  T* grad_depth;          // [B, N, D, area], or null: not wanted
  S* grad_features;       // [B, N, area, C], or null: not wanted
  int64_t B, N, D, area, C, volume;  // area: H * W; volume: Z * Y * X
  math::Divider by_area, by_D;

  MIM4D_HD int64_t count() const { return B * N * D * area; }
  MIM4D_HD int64_t pixels() const { return B * N * area; }
  MIM4D_HD int64_t rows() const { return B * volume; }

  // The pixel of a point.
  MIM4D_HD int64_t pixel(int32_t point) const {
    const int64_t bin = by_area(point);  // in [0, B N D)
    return by_D(bin) * area + (point - bin * area);
  }
  MIM4D_HD bool has(int32_t point) const { return static_cast<uint32_t>(point) < static_cast<uint32_t>(count()); }
  MIM4D_HD bool keeps(int32_t cell) const { return static_cast<uint32_t>(cell) < static_cast<uint32_t>(volume); }
};

}  // namespace mim4d

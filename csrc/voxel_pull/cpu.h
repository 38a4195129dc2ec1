#pragma once

#include <stdint.h>

#include "cpu/isa.h"
#include "voxel_pull/params.h"

namespace mim4d {

template <class T>
struct VoxelPullCpuParams : VoxelPullSizes<T> {
  const VoxelPullLevel<T>* level;  // [levels]
};

// A pixel that a voxel reads.
template <class T>
struct PulledRow {
  const T* row;
  T weight;
};

// Some rows of one level of one camera, [y_begin, y_end).
struct PullBand {
  int64_t camera;  // in [0, B * N)
  int64_t level, y_begin, y_end;
};

// What one instruction set offers. Ranges and bands are independent of each other and may run in parallel.
template <class T>
struct VoxelPullCpu {
  using Params = VoxelPullCpuParams<T>;
  // of voxels, in [0, B * V) -> their rows; `scratch` has room for `block` * N * levels * 4 rows
  void (*forward)(const Params& p, int64_t begin, int64_t end, T* out, PulledRow<T>* scratch);
  int block;
  // grad -> these rows of grad_features and grad_depth
  void (*backward_maps)(const Params& p, const PullBand& band);
  // of places, in [0, B * N * V): grad -> grad_uvd
  void (*backward_places)(const Params& p, int64_t begin, int64_t end);
};

}  // namespace mim4d

MIM4D_DECLARE_ISA(::mim4d::VoxelPullCpu<float>, voxel_pull_float)
MIM4D_DECLARE_ISA(::mim4d::VoxelPullCpu<double>, voxel_pull_double)

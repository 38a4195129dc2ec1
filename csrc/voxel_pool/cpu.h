#pragma once

#include <stdint.h>

#include "cpu/isa.h"
#include "voxel_pool/params.h"

namespace mim4d {

// What one instruction set offers. Ranges [begin, end) are independent of each other and may run in parallel.
template <class T>
struct VoxelPoolCpu {
  using Params = VoxelPoolParams<T>;
  void (*forward)(const Params& p, int64_t begin, int64_t end, T* out);  // of cells of all items -> their rows
  // of pixels: grad -> grad_depth, grad_features; `scratch` has room for D values
  void (*backward)(const Params& p, int64_t begin, int64_t end, T* scratch);
};

}  // namespace mim4d

MIM4D_DECLARE_ISA(::mim4d::VoxelPoolCpu<float>, voxel_pool_float)
MIM4D_DECLARE_ISA(::mim4d::VoxelPoolCpu<double>, voxel_pool_double)

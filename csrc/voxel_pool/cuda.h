#pragma once

#include <cuda_runtime_api.h>
#include <span>

#include "cuda/kernel_entry.h"
#include "voxel_pool/params.h"

namespace mim4d {

// The index as it is made on the device.
struct PoolIndexParams {
  const int32_t* cells;   // [points]: cell of each point in its own item, or any number outside: dropped
  int32_t* key;           // [points]: row of each point; `rows` of the dropped ones
  const int32_t* sorted;  // [points]: the keys in ascending order
  const int64_t* order;   // [points]: where in `cells` each of them was
  int32_t* points;        // [points]
  int32_t* starts;        // [rows + 1]
  int64_t count, rows, points_of_item, volume;
};

// cells -> key
cudaError_t launch_pool_index_keys(const PoolIndexParams& p, cudaStream_t stream);

// sorted, order -> points, starts
cudaError_t launch_pool_index_starts(const PoolIndexParams& p, cudaStream_t stream);

// S: float, double, __half or __nv_bfloat16.

// depth, features, points, starts -> out
template <class S, class T>
cudaError_t launch_voxel_pool_forward(const VoxelPoolParams<S, T>& p, cudaStream_t stream);

// grad -> grad_depth, grad_features, each of them unless it is null
template <class S, class T>
cudaError_t launch_voxel_pool_backward(const VoxelPoolParams<S, T>& p, cudaStream_t stream);

std::span<const KernelEntry> voxel_pool_kernels();

}  // namespace mim4d

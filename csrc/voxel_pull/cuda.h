#pragma once

#include <cuda_runtime_api.h>
#include <span>

#include "cuda/kernel_entry.h"
#include "voxel_pull/params.h"

namespace mim4d {

constexpr int64_t kPullLevels = 16;  // at most, for the levels are parameters of the kernels

template <class S, class T>
struct VoxelPullCudaParams : VoxelPullSizes<S, T> {
  VoxelPullLevel<S, T> level[kPullLevels];

  MIM4D_HD int64_t views() const { return this->B * this->N * this->V; }  // of voxels by cameras
};

// The gradients of the maps: views are sorted by the pixel of their first tap, and every pixel gathers from the views
// that touch it, in their order. A list is that of one pixel of one level of one camera, or of one that lies before its
// row or its column: (H + 1) * (W + 1) lists an image, those of the levels one after the other.
template <class T>
struct PulledViews {
  T* depth;               // [levels, views]: depth weight that a view reads
  T* dot;                 // [levels, views]: its feature times the gradient of its voxel
  int32_t* key;           // [levels, views]: list of each view, `lists` where the camera does not see the voxel
  const int32_t* sorted;  // [levels, views]: the keys in ascending order
  const int64_t* order;   // [levels, views]: where in `key` each of them was
  int64_t* start;         // [lists + 1]: where in `sorted` a list begins
  int64_t lists, listed;  // listed: levels * views
  int64_t first_list[kPullLevels];
};

// S: float, double, __half or __nv_bfloat16.

// features, depth, uvd -> out
template <class S, class T>
cudaError_t launch_voxel_pull_forward(const VoxelPullCudaParams<S, T>& p, cudaStream_t stream);

// grad -> grad_uvd unless it is null, and depth, dot and key of the views unless these are
template <class S, class T>
cudaError_t launch_voxel_pull_views(const VoxelPullCudaParams<S, T>& p, const PulledViews<T>& views,
                                    cudaStream_t stream);

// sorted -> start
template <class T>
cudaError_t launch_voxel_pull_starts(const PulledViews<T>& views, cudaStream_t stream);

// grad, the sorted views -> grad_features and grad_depth of one level, each of them unless it is null
template <class S, class T>
cudaError_t launch_voxel_pull_gather(const VoxelPullCudaParams<S, T>& p, const PulledViews<T>& views, int level,
                                     cudaStream_t stream);

std::span<const KernelEntry> voxel_pull_kernels();

}  // namespace mim4d

#pragma once

#include <cuda_runtime_api.h>
#include <span>

#include "cuda/kernel_entry.h"
#include "voxel_sample/params.h"

namespace mim4d {

// S: float, double, __half or __nv_bfloat16.

// volume -> out
template <class S, class T>
cudaError_t launch_voxel_sample_forward(const VoxelSampleParams<S, T>& p, cudaStream_t stream);

// volume -> out, jacobian
template <class S, class T>
cudaError_t launch_voxel_sample_with_grad(const VoxelSampleParams<S, T>& p, cudaStream_t stream);

// grad -> grad_points, and with linear axes -> grad_volume, which must hold zeros; each of them unless it is null
template <class S, class T>
cudaError_t launch_voxel_sample_backward(const VoxelSampleParams<S, T>& p, cudaStream_t stream);

// The derivatives below are of float and double alone; halves are widened before.

// grad, grad_jacobian -> grad_points, or, where one of their cotangents is there:
// grad, grad_grad_volume, grad_grad_points -> grad_points
template <class T>
cudaError_t launch_voxel_sample_second_points(const VoxelSampleParams<T>& p, cudaStream_t stream);

// grad_grad_volume, grad_grad_points -> grad_grad
template <class T>
cudaError_t launch_voxel_sample_second_grad(const VoxelSampleParams<T>& p, cudaStream_t stream);

// grad, grad_jacobian -> grad_volume, which must hold zeros; or grad, grad_grad_points. Linear axes alone.
template <class T>
cudaError_t launch_voxel_sample_second_volume(const VoxelSampleParams<T>& p, cudaStream_t stream);

// ---- The gradient of the volume without atomics: points are sorted by the voxel of their first tap, and every voxel
// ---- gathers from the points that touch it, in their order.

// What a voxel must know of a point.
template <class T>
struct ListedPoint {
  T w[3][4], d[3][4];  // weights of the taps of the axes x, y, z, and their derivatives
  int64_t index;       // in [0, B * N)
  int64_t first;       // the voxel of the first tap along x, in the volume or not
};

// Lists are those of the voxels that may hold a first tap: as many below the volume as the axis has taps, less one.
template <class T>
struct VoxelLists {
  const int64_t* key;    // [listed]: list of each point, ascending; count() for those that touch nothing
  const int64_t* order;  // [listed]: index of each point
  int64_t* start;        // [count() + 1]: where in `key` a list begins
  ListedPoint<T>* points;
  int64_t listed, X, Y, Z, B;  // X, Y, Z: lists along an axis

  MIM4D_HD int64_t count() const { return B * Z * Y * X; }
};

template <class S, class T>
VoxelLists<T> voxel_lists(const VoxelSampleParams<S, T>& p) {
  return {nullptr, nullptr, nullptr, nullptr, p.count(), p.X + p.taps() - 1, p.Y + p.taps() - 1, p.Z + p.taps_z() - 1,
          p.B};
}

// points -> key, which are not sorted yet
template <class T>
cudaError_t launch_voxel_sample_keys(const VoxelSampleParams<T>& p, const VoxelLists<T>& lists, int64_t* key,
                                     cudaStream_t stream);

// key, order, points -> start, lists.points
template <class T>
cudaError_t launch_voxel_sample_lists(const VoxelSampleParams<T>& p, const VoxelLists<T>& lists, cudaStream_t stream);

// grad -> gathered, [B, Z, Y, X, C]
template <class S, class T>
cudaError_t launch_voxel_sample_gather(const VoxelSampleParams<S, T>& p, const VoxelLists<T>& lists, S* gathered,
                                       cudaStream_t stream);

// grad, grad_jacobian -> gathered, or grad, grad_grad_points
template <class T>
cudaError_t launch_voxel_sample_second_gather(const VoxelSampleParams<T>& p, const VoxelLists<T>& lists, T* gathered,
                                              cudaStream_t stream);

// Of all files, and of each.
std::span<const KernelEntry> voxel_sample_kernels();
std::span<const KernelEntry> voxel_sample_forward_kernels();
std::span<const KernelEntry> voxel_sample_backward_kernels();
std::span<const KernelEntry> voxel_sample_second_kernels();

}  // namespace mim4d

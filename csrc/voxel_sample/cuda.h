#pragma once

#include <cuda_runtime_api.h>
#include <span>

#include "cuda/kernel_entry.h"
#include "voxel_sample/params.h"

namespace mim4d {

// S: float, double, __half or __nv_bfloat16. The gradient of the volume must hold zeros before the backward.
template <class S, class T>
cudaError_t launch_voxel_sample_forward(const VoxelSampleParams<S, T>& p, cudaStream_t stream);

template <class S, class T>
cudaError_t launch_voxel_sample_backward(const VoxelSampleParams<S, T>& p, cudaStream_t stream);

std::span<const KernelEntry> voxel_sample_kernels();

}  // namespace mim4d

#pragma once

#include <span>

#include "cuda/kernel_entry.h"

namespace mim4d {

// The kernels of each file, for voxel_sample_kernels().
std::span<const KernelEntry> voxel_sample_forward_kernels();
std::span<const KernelEntry> voxel_sample_backward_kernels();
std::span<const KernelEntry> voxel_sample_second_kernels();

}  // namespace mim4d

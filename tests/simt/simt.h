#pragma once
// What a kernel sees of CUDA C++ when it runs on the CPU. The stand-ins in include/ bring it in under the names of the
// CUDA headers, so a .cu file is compiled as it is. tests/simt/README.md says what is emulated.

// ---- qualifiers. A __shared__ variable belongs to the OS thread, which runs one block at a time; AddressSanitizer
// ---- guards no thread-local variables, so there is one OS thread there, and a plain static variable.
#define __global__
#define __device__
#define __host__
#if defined(__SANITIZE_ADDRESS__)
#define __shared__ static
#else
#define __shared__ static thread_local
#endif
#define __constant__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __grid_constant__

#include "simt/atomics.h"
#include "simt/block.h"
#include "simt/grid.h"
#include "simt/half.h"
#include "simt/host.h"
#include "simt/intrinsics.h"
#include "simt/types.h"
#include "simt/warp.h"

#define __CUDA_ARCH__ SIMT_ARCH

// ---- built-in variables
#define threadIdx (::simt::current.thread->index)
#define blockIdx (::simt::current.block->index)
#define blockDim (::simt::current.block->block_dim)
#define gridDim (::simt::current.block->grid_dim)
inline constexpr int warpSize = simt::kWarp;

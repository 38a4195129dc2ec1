#pragma once

#include <cuda_runtime.h>

namespace mim4d {

// The sum of x over each group of `lanes` neighbouring threads, a power of two up to 32. All threads of the warp take
// part.
template <class T>
__device__ __forceinline__ T group_sum(T x, int lanes) {
  for (int step = lanes / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}

// x[i] += those of the other threads of the warp that are a multiple of `lanes` away.
template <int V, class T>
__device__ __forceinline__ void sum_apart(T (&x)[V], int lanes) {
#pragma unroll
  for (int i = 0; i < V; ++i)
    for (int step = lanes; step < 32; step *= 2) x[i] += __shfl_xor_sync(0xffffffffu, x[i], step);
}

}  // namespace mim4d

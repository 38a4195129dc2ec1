#pragma once
// How kernels are launched, so that one source compiles for the GPU (nvcc) and for the tests' SIMT emulator, which runs
// CUDA kernels as C++ on the CPU and cannot parse <<<>>>.

#if defined(__CUDACC__)

#include <cuda_runtime.h>

// Dynamic shared memory as an array of T: MIM4D_DYN_SHARED(float, buffer);
#define MIM4D_DYN_SHARED(T, name)                                 \
  extern __shared__ __align__(16) unsigned char mim4d_dynamic_[]; \
  T* name = reinterpret_cast<T*>(mim4d_dynamic_)

namespace mim4d {

template <class... Params, class... Args>
cudaError_t launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared, cudaStream_t stream, Args... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return cudaSuccess;  // nothing to do is no error
  kernel<<<grid, block, shared, stream>>>(static_cast<Params>(args)...);
  return cudaGetLastError();
}

}  // namespace mim4d

#else  // the emulator

#include "simt_cpu.h"

#define MIM4D_DYN_SHARED(T, name) SIMT_DYN_SHARED(T, name)

namespace mim4d {

template <class... Params, class... Args>
cudaError_t launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared, cudaStream_t stream, Args... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return cudaSuccess;
  return simt::launch(kernel, grid, block, shared, stream, args...);
}

}  // namespace mim4d

#endif

#pragma once
// How kernels are launched: with arguments converted to the parameters, and with the error of the launch as result.
// Here alone the sources know of the emulator (tests/simt), which runs them on the CPU.

#include <cuda_runtime.h>

// Declares `name`, a pointer to the launch's dynamic shared memory: its one extern array, whatever the type.
#ifdef MIM4D_SIMT
#define MIM4D_DYN_SHARED(T, name) T* const name = reinterpret_cast<T*>(::simt::current.block->shared())
#else
#define MIM4D_DYN_SHARED(T, name)                                       \
  extern __shared__ __align__(16) unsigned char mim4d_dynamic_shared[]; \
  T* const name = reinterpret_cast<T*>(mim4d_dynamic_shared)
#endif

namespace mim4d {

// Lets a kernel be launched with so much dynamic shared memory; more than 48 KiB must be asked for.
template <class Kernel>
cudaError_t allow_shared(Kernel* kernel, size_t bytes) {
  if (bytes <= (48 << 10)) return cudaSuccess;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
}

template <class... Params, class... Args>
cudaError_t launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared, cudaStream_t stream, Args... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return cudaSuccess;  // nothing to do is no error
#ifdef MIM4D_SIMT
  return simt::launch(kernel, grid, block, shared, stream, static_cast<Params>(args)...);
#else
  kernel<<<grid, block, shared, stream>>>(static_cast<Params>(args)...);
  return cudaGetLastError();
#endif
}

}  // namespace mim4d

#pragma once
// How kernels are launched: with arguments converted to the parameters, and with the error of the launch as result.

#include <cuda_runtime.h>

namespace mim4d {

template <class... Params, class... Args>
cudaError_t launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared, cudaStream_t stream, Args... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return cudaSuccess;  // nothing to do is no error
  kernel<<<grid, block, shared, stream>>>(static_cast<Params>(args)...);
  return cudaGetLastError();
}

}  // namespace mim4d

#pragma once
// What the op_cuda.cpp files share: registration, torch's device and stream, errors of launches, dispatch over the
// dtypes of a GPU.

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include "torch/stable.h"

// Opens the block that registers CUDA kernels: MIM4D_CUDA_IMPL(m) { m.impl("op", TORCH_BOX(&op_cuda)); }
#ifdef MIM4D_SIMT
#define MIM4D_CUDA_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(mim4d_simt, CPU, m)
#else
#define MIM4D_CUDA_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(mim4d, CUDA, m)
#endif

namespace mim4d {

#ifdef MIM4D_SIMT  // tests/simt: CPU tensors, and one stream, on which everything has happened when a call returns

struct DeviceGuard {
  explicit DeviceGuard(int32_t) {}
};

inline cudaStream_t current_stream(const Tensor&) { return nullptr; }

#else

using torch::stable::accelerator::DeviceGuard;

// torch's current stream, looked up at run time in the libtorch_cuda that torch has loaded. Linking to that library
// would keep ops_cuda.so from loading under a torch built for the CPU alone, where it still registers its kernels.
inline cudaStream_t current_stream(const Tensor& t) {
  using Get = AOTITorchError (*)(int32_t, void**);
  static const Get get = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return library ? reinterpret_cast<Get>(dlsym(library, "aoti_torch_get_current_cuda_stream")) : nullptr;
  }();
  void* stream = nullptr;
  STD_TORCH_CHECK(get != nullptr && get(t.get_device_index(), &stream) == 0, "mim4d: this torch has no CUDA streams");
  return static_cast<cudaStream_t>(stream);
}

#endif

inline void check_launch(const char* op, cudaError_t status) {
  STD_TORCH_CHECK(status == cudaSuccess, "mim4d::", op, ": ", cudaGetErrorString(status));
}

// f.operator()<S, T>(): S the dtype in memory, T that of the arithmetic: float for halves.
template <class F>
decltype(auto) dispatch_storage(const char* op, ScalarType dtype, F&& f) {
  if (dtype == ScalarType::Half) return f.template operator()<__half, float>();
  if (dtype == ScalarType::BFloat16) return f.template operator()<__nv_bfloat16, float>();
  return dispatch_floating(op, dtype, [&]<class T>() { return f.template operator()<T, T>(); });
}

}  // namespace mim4d

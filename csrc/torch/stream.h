#pragma once

#include <dlfcn.h>

#include <torch/csrc/stable/accelerator.h>
#include <torch/headeronly/util/Exception.h>

namespace mim4d {

// torch's current CUDA stream, looked up at run time in the libtorch_cuda that torch has loaded. Linking to that
// library would keep ops_cuda.so from loading under a torch built for the CPU alone, where it still registers its
// kernels.
inline void* current_cuda_stream(int32_t device) {
  using Get = AOTITorchError (*)(int32_t, void**);
  static const Get get = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return library ? reinterpret_cast<Get>(dlsym(library, "aoti_torch_get_current_cuda_stream")) : nullptr;
  }();
  void* stream = nullptr;
  STD_TORCH_CHECK(get != nullptr && get(device, &stream) == 0, "mim4d: this torch has no CUDA streams");
  return stream;
}

}  // namespace mim4d

#pragma once

namespace mim4d {

// A kernel as mim4d._C.kernel_attributes() lists it.
struct KernelEntry {
  const char* name;
  const void* function;
  int threads;  // of a block, as it is launched
};

}  // namespace mim4d

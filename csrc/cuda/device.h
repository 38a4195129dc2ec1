#pragma once
// What launches ask the current device.

#include <cuda_runtime_api.h>
#include <stddef.h>

namespace mim4d {

inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&value, attribute, device);
  return value;
}

inline int multiprocessors() {
  const int count = device_attribute(cudaDevAttrMultiProcessorCount);
  return count > 0 ? count : 1;
}

// Bytes that the blocks of a multiprocessor share out among them.
inline size_t shared_of_multiprocessor() {
  return static_cast<size_t>(device_attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor));
}

// Whether one atomic adds 16 bytes (pack.cuh).
inline bool atomics_of_packs() { return device_attribute(cudaDevAttrComputeCapabilityMajor) >= 9; }

}  // namespace mim4d

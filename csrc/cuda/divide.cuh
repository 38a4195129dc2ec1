#pragma once

#include <stdint.h>

namespace mim4d {

// a / b for a >= 0, b > 0. A GPU divides 64-bit numbers in about 70 instructions, 32-bit ones in about 20.
__device__ __forceinline__ int64_t divide(int64_t a, int64_t b) {
  if ((a | b) >> 32 == 0) return static_cast<uint32_t>(a) / static_cast<uint32_t>(b);
  return a / b;
}

}  // namespace mim4d

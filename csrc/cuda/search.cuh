#pragma once

#include <cuda_runtime.h>
#include <stdint.h>

namespace mim4d {

// Where in `count` ascending keys the first stands that is not below `key`.
template <class Key>
__device__ __forceinline__ int64_t first_not_below(const Key* sorted, int64_t count, int64_t key) {
  int64_t low = 0, high = count;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (sorted[middle] < key)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

}  // namespace mim4d

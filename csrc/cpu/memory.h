#pragma once

#include <memory>
#include <new>
#include <stdint.h>

namespace mim4d::cpu {

struct FreeAligned {
  void operator()(void* p) const { ::operator delete(p, std::align_val_t(64)); }
};

// n uninitialised numbers, aligned for any vector register.
template <class T>
using Aligned = std::unique_ptr<T[], FreeAligned>;

template <class T>
Aligned<T> aligned(int64_t n) {
  return Aligned<T>(static_cast<T*>(::operator new(static_cast<size_t>(n) * sizeof(T), std::align_val_t(64))));
}

}  // namespace mim4d::cpu

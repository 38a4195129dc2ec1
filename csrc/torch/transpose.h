#pragma once

#include <algorithm>

#include "cpu/transpose.h"
#include "torch/shared_range.h"

namespace mim4d {

// to[a][r][c] = from[a * item_stride + c * stride + r] on the CPU, of float or double
template <class T>
void transpose_items(const T* from, int64_t item_stride, int64_t stride, T* to, int64_t A, int64_t R, int64_t C) {
  Transpose<T> transpose;
  if constexpr (sizeof(T) == 4)
    transpose = MIM4D_PICK_ISA(transpose_float);
  else
    transpose = MIM4D_PICK_ISA(transpose_double);
  constexpr int64_t group = 1024;  // rows: long runs, whole cache lines
  const int64_t groups = (R + group - 1) / group;
  for_shared_range(A * groups, 4, [&](int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; ++g) {
      const int64_t item = g / groups, first = g % groups * group;
      transpose(from + item * item_stride, stride, to + item * C * R, C, first, std::min(first + group, R));
    }
  });
}

}  // namespace mim4d

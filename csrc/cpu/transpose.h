#pragma once
// Matrix transposition for tensors that lie channels first and are wanted channels last.

#include <stdint.h>

#include "cpu/isa.h"

namespace mim4d {

// to[r][c] = from[c * stride + r] for the rows [begin, end) of `to`, which have C values each
template <class T>
using Transpose = void (*)(const T* from, int64_t stride, T* to, int64_t C, int64_t begin, int64_t end);

}  // namespace mim4d

MIM4D_DECLARE_ISA(::mim4d::Transpose<float>, transpose_float)
MIM4D_DECLARE_ISA(::mim4d::Transpose<double>, transpose_double)

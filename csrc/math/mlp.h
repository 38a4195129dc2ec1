#pragma once
// Products of small matrices with vectors of values: V is a scalar, or a register of samples.

#include <stdint.h>

#include "math/macros.h"
#include "math/scalar.h"

namespace mim4d::math {

// y[o] = start(o) + sum_k w[k * stride + o * step] x[k] for the `tile` outputs of one group, which stay in registers
template <int tile, int64_t step, class V, class T, class Start>
MIM4D_HD void multiply_tile(int64_t n, const V* x, const T* w, int64_t stride, V* y, Start&& start) {
  V sum[tile];
  MIM4D_UNROLL
  for (int o = 0; o < tile; ++o) sum[o] = start(o);
  for (int64_t k = 0; k < n; ++k) {
    const V value = x[k];
    const T* row = w + k * stride;
    MIM4D_UNROLL
    for (int o = 0; o < tile; ++o) sum[o] = fma_(V(row[o * step]), value, sum[o]);
  }
  MIM4D_UNROLL
  for (int o = 0; o < tile; ++o) y[o] = sum[o];
}

// y[o] = start(o) + (W x)[o] with w[k][o] lying input by input; the number of outputs is a multiple of the tile
template <int tile, class V, class T, class Start>
MIM4D_HD void multiply(int64_t inputs, int64_t outputs, const V* x, const T* w, V* y, Start&& start) {
  for (int64_t o = 0; o < outputs; o += tile)
    multiply_tile<tile, 1>(inputs, x, w + o, outputs, y + o, [&](int i) { return start(o + i); });
}

// y += W x for few outputs: the sums are taken in four parts, which do not wait for each other
template <int outputs, class V, class T>
MIM4D_HD void multiply_few(int64_t n, const V* x, const T* w, V* y) {
  V sum[4][outputs];
  MIM4D_UNROLL
  for (int o = 0; o < outputs; ++o) {
    sum[0][o] = y[o];
    sum[1][o] = sum[2][o] = sum[3][o] = V(T(0));
  }
  int64_t k = 0;
  for (; k + 4 <= n; k += 4) {
    MIM4D_UNROLL
    for (int part = 0; part < 4; ++part) {
      MIM4D_UNROLL
      for (int o = 0; o < outputs; ++o) sum[part][o] = fma_(V(w[(k + part) * outputs + o]), x[k + part], sum[part][o]);
    }
  }
  for (; k < n; ++k) {
    MIM4D_UNROLL
    for (int o = 0; o < outputs; ++o) sum[0][o] = fma_(V(w[k * outputs + o]), x[k], sum[0][o]);
  }
  MIM4D_UNROLL
  for (int o = 0; o < outputs; ++o) y[o] = (sum[0][o] + sum[1][o]) + (sum[2][o] + sum[3][o]);
}

}  // namespace mim4d::math

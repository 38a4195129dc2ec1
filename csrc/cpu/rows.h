#pragma once
// Rows of channels that are summed in registers: loops over as many registers as fit, and products of rows.

#include "cpu/simd.h"

namespace mim4d::MIM4D_ISA {

// f(offset, lanes) along a row of n values, eight registers at a time as long as there are so many: what is summed over
// is then walked as few times as can be.
template <class T, class F>
MIM4D_HD void for_widest_row(int64_t n, F&& f) {
  constexpr int64_t step = 8 * Vec<T>::width;
  int64_t i = 0;
  for (; i + step <= n; i += step) f(i, WholeLanes<T, 8>{});
  for_wide_row<T>(n - i, [&](int64_t c, auto lanes) { f(i + c, lanes); });
}

// The product of two rows as the sum of one register's lanes.
template <class T, int N>
MIM4D_HD Vec<T> product(const Wide<T, N>& a, const Wide<T, N>& b) {
  Vec<T> even = a.v[0] * b.v[0], odd(T(0));
  MIM4D_UNROLL
  for (int i = 1; i < N; ++i)
    if (i % 2)
      odd = odd + a.v[i] * b.v[i];
    else
      even = even + a.v[i] * b.v[i];
  return even + odd;
}

}  // namespace mim4d::MIM4D_ISA

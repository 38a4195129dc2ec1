#include "cpu/transpose.h"

#include "cpu/simd.h"

namespace mim4d::MIM4D_ISA {
namespace {

template <class T>
void transpose(const T* from, T* to, int64_t R, int64_t C, int64_t begin, int64_t end) {
  constexpr int n = Vec<T>::width;
  int64_t r = begin;
  for (; r + n <= end; r += n)
    for_row<T>(C, [&](int64_t c, auto lanes) {
      const int64_t rows = C - c < n ? C - c : n;
      Vec<T> tile[n];
      MIM4D_UNROLL
      for (int i = 0; i < n; ++i) {
        tile[i] = i < rows ? Vec<T>::load(from + (c + i) * R + r) : Vec<T>(T(0));
      }
      transpose_tile(tile);
      MIM4D_UNROLL
      for (int i = 0; i < n; ++i) lanes.store(to + (r + i) * C + c, {{tile[i]}});
    });
  for (; r < end; ++r)
    for (int64_t c = 0; c < C; ++c) to[r * C + c] = from[c * R + r];
}

}  // namespace

extern const Transpose<float> transpose_float = transpose<float>;
extern const Transpose<double> transpose_double = transpose<double>;

}  // namespace mim4d::MIM4D_ISA

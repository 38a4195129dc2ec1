#include "cpu/transpose.h"

#include <utility>

#include "cpu/simd.h"

namespace mim4d::MIM4D_ISA {
namespace {

// a and b, lane by lane in turn: the first half of the result of 2n lanes, or the second
template <class T, bool second, int... I>
MIM4D_HD Vec<T> interleave(Vec<T> a, Vec<T> b, std::integer_sequence<int, I...>) {
  constexpr int n = sizeof...(I), start = second ? n / 2 : 0;
#if defined(__clang__)
  return Vec<T>(__builtin_shufflevector(a.v, b.v, (start + I / 2 + I % 2 * n)...));
#else
  return Vec<T>(__builtin_shuffle(a.v, b.v, typename Vec<T>::Mask{(start + I / 2 + I % 2 * n)...}));
#endif
}

// A square tile in registers: log2(width) perfect shuffles of its rows, which rotate the bits of (row, lane) half way
// round.
template <class T>
MIM4D_HD void transpose_tile(Vec<T> (&row)[Vec<T>::width]) {
  constexpr int n = Vec<T>::width;
  constexpr auto lanes = std::make_integer_sequence<int, n>{};
  MIM4D_UNROLL
  for (int stage = 1; stage < n; stage *= 2) {
    Vec<T> next[n];
    MIM4D_UNROLL
    for (int i = 0; i < n / 2; ++i) {
      next[2 * i] = interleave<T, false>(row[i], row[i + n / 2], lanes);
      next[2 * i + 1] = interleave<T, true>(row[i], row[i + n / 2], lanes);
    }
    MIM4D_UNROLL
    for (int i = 0; i < n; ++i) row[i] = next[i];
  }
}

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
      for (int i = 0; i < n; ++i) lanes.store(to + (r + i) * C + c, tile[i]);
    });
  for (; r < end; ++r)
    for (int64_t c = 0; c < C; ++c) to[r * C + c] = from[c * R + r];
}

}  // namespace

extern const Transpose<float> transpose_float = transpose<float>;
extern const Transpose<double> transpose_double = transpose<double>;

}  // namespace mim4d::MIM4D_ISA

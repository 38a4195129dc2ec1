#include "cpu/transpose.h"

#include "cpu/tile.h"

namespace mim4d::MIM4D_ISA {
namespace {

// Tiles go along the rows of `from`, and ask for what is eight tiles ahead, and four for the place to write to. The
// rows of a volume often lie a multiple of a large power of two apart: all of them at once would not fit the ways of a
// cache, and the processor follows few streams.
template <class T>
void transpose(const T* from, int64_t stride, T* to, int64_t C, int64_t begin, int64_t end) {
  constexpr int n = Vec<T>::width;
  const int64_t tiled = begin + (end - begin) / n * n;
  for_row<T>(C, [&](int64_t c, auto lanes) {
    const int64_t rows = C - c < n ? C - c : n;
    for (int64_t r = begin; r < tiled; r += n) {
      Vec<T> tile[n];
      MIM4D_UNROLL
      for (int i = 0; i < n; ++i) {
        const T* at = from + (c + (i < rows ? i : 0)) * stride + r;
        tile[i] = Vec<T>::load(at);
        __builtin_prefetch(at + 8 * n);
        __builtin_prefetch(to + (r + 4 * n + i) * C + c, 1);
      }
      transpose_tile(tile);
      MIM4D_UNROLL
      for (int i = 0; i < n; ++i) lanes.store(to + (r + i) * C + c, {{tile[i]}});
    }
  });
  for (int64_t r = tiled; r < end; ++r)
    for (int64_t c = 0; c < C; ++c) to[r * C + c] = from[c * stride + r];
}

}  // namespace

extern const Transpose<float> transpose_float = transpose<float>;
extern const Transpose<double> transpose_double = transpose<double>;

}  // namespace mim4d::MIM4D_ISA

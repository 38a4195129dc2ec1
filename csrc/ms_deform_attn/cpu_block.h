#pragma once
// Blocks of neighbouring points, located a register at a time, and the four cells that each of them reads.

#include "cpu/simd.h"
#include "math/deform.h"
#include "ms_deform_attn/cpu.h"

namespace mim4d::MIM4D_ISA {
// As math::product_, which is that of scalars.
template <class T>
MIM4D_HD Vec<T> product_(Vec<T> a, Vec<T> b) {
  volatile typename Vec<T>::V product = (a * b).v;
  return Vec<T>(product);
}

namespace {

template <class T>
using Params = MsDeformAttnCpuParams<T>;

template <bool odd, class T, int... I>
MIM4D_HD Vec<T> every_second(Vec<T> a, Vec<T> b, std::integer_sequence<int, I...>) {
  return shuffle(a, b, std::integer_sequence<int, (2 * I + odd)...>{});
}
template <bool second, class T, int... I>
MIM4D_HD Vec<T> in_turn(Vec<T> a, Vec<T> b, std::integer_sequence<int, I...>) {
  constexpr int n = sizeof...(I), start = second ? n / 2 : 0;
  return shuffle(a, b, std::integer_sequence<int, (start + I / 2 + I % 2 * n)...>{});
}

// Pairs x0 y0 x1 y1 ... <-> two rows, for the first n lanes
template <class T>
MIM4D_HD void load_pairs(const T* p, int n, Vec<T>& x, Vec<T>& y) {
  constexpr int w = Vec<T>::width;
  const bool whole = n == w;
  const int low = 2 * n < w ? 2 * n : w;
  const Vec<T> a = whole ? Vec<T>::load(p) : load_first(p, low);
  const Vec<T> b = whole ? Vec<T>::load(p + w) : 2 * n > w ? load_first(p + w, 2 * n - w) : Vec<T>(T(0));
  x = every_second<false>(a, b, LaneNumbers<T>{});
  y = every_second<true>(a, b, LaneNumbers<T>{});
}
template <class T>
MIM4D_HD void store_pairs(T* p, int n, Vec<T> x, Vec<T> y) {
  constexpr int w = Vec<T>::width;
  const Vec<T> a = in_turn<false>(x, y, LaneNumbers<T>{}), b = in_turn<true>(x, y, LaneNumbers<T>{});
  if (n == w) {
    a.store(p), b.store(p + w);
  } else {
    store_first(p, a, 2 * n < w ? 2 * n : w);
    if (2 * n > w) store_first(p + w, b, 2 * n - w);
  }
}

// Up to kPoints points of whole rows, or of a part of one row. What a point's level says is kept by the point's place.
template <class T>
struct Block {
  static constexpr int kPoints = 128;  // a whole number of registers
  static constexpr int w = Vec<T>::width;

  alignas(64) T width[kPoints], height[kPoints];  // of the point's level, in cells
  int32_t last_x[kPoints], last_y[kPoints];       // its last column and row
  int64_t start[kPoints], down[kPoints];          // its first cell, and one row of cells, in numbers of value
  alignas(64) T tx[kPoints], ty[kPoints];
  alignas(64) int32_t x[kPoints], y[kPoints];  // of the first cell, which may lie outside

  // The points [first, first + n) of a row, and the same again as often as it fits.
  MIM4D_HD void set_levels(const Params<T>& p, int64_t first, int n) {
    const int64_t cell = p.M * p.D;
    int times = kPoints / n, j = 0;
    for (; times > 0; --times)
      for (int k = 0; k < n; ++k, ++j) {
        const DeformLevel& level = p.levels[(first + k) / p.P];
        width[j] = static_cast<T>(level.W), height[j] = static_cast<T>(level.H);
        last_x[j] = static_cast<int32_t>(level.W - 1), last_y[j] = static_cast<int32_t>(level.H - 1);
        start[j] = level.start * cell, down[j] = level.W * cell;
      }
    for (; j < kPoints; ++j) width[j] = height[j] = T(1);
  }

  MIM4D_HD void locate(const T* locations, int n) {
    for (int j = 0; j < n; j += w) {
      Vec<T> at_x, at_y;
      load_pairs(locations + 2 * j, n - j < w ? n - j : w, at_x, at_y);
      const auto ax = math::deform_axis(at_x, Vec<T>::load(width + j));
      const auto ay = math::deform_axis(at_y, Vec<T>::load(height + j));
      store_int(x + j, ax.first), store_int(y + j, ay.first);
      ax.t.store(tx + j), ay.t.store(ty + j);
    }
  }

  MIM4D_HD bool outside(int j) const { return x[j] == math::kNoCell || y[j] == math::kNoCell; }
  // Do all four cells lie in the map? (As unsigned numbers, those before the first are large.)
  MIM4D_HD bool whole(int j) const {
    return static_cast<uint32_t>(x[j]) < static_cast<uint32_t>(last_x[j]) &&
           static_cast<uint32_t>(y[j]) < static_cast<uint32_t>(last_y[j]);
  }
  // Does cell k of a point lie in its map?
  MIM4D_HD bool in_map(int j, int k) const {
    return static_cast<uint32_t>(x[j] + (k & 1)) <= static_cast<uint32_t>(last_x[j]) &&
           static_cast<uint32_t>(y[j] + (k >> 1)) <= static_cast<uint32_t>(last_y[j]);
  }
  // Where the first cell of a point begins, counted from the first of value, in the map or not; `cell` is M * D.
  MIM4D_HD int64_t offset(int j, int64_t cell) const { return start[j] + y[j] * down[j] + x[j] * cell; }

  // The cells that a point reads: `zeros` for those that are not in its map.
  MIM4D_HD void find(int j, const T* base, int64_t cell, const T* zeros, const T** at) const {
    if (outside(j)) {
      for (int k = 0; k < 4; ++k) at[k] = zeros;
      return;
    }
    const T* const from = base + offset(j, cell);
    const T* const all[4] = {from, from + cell, from + down[j], from + down[j] + cell};
    if (whole(j)) {
      for (int k = 0; k < 4; ++k) at[k] = all[k];
    } else {
      for (int k = 0; k < 4; ++k) at[k] = in_map(j, k) ? all[k] : zeros;
    }
  }
};

// f(row, rows, first, n) for blocks of the rows [begin, end), located: n points from the first on of each of `rows`
// rows. A row that is longer than a block comes in parts.
template <class T, class F>
MIM4D_HD void for_blocks(const Params<T>& p, Block<T>& block, int64_t begin, int64_t end, F&& f) {
  const int64_t points = p.row_points();
  if (points <= Block<T>::kPoints) {
    const int n = static_cast<int>(points), most = Block<T>::kPoints / n;
    for (int64_t row = begin; row < end; row += most) {
      const int rows = end - row < most ? static_cast<int>(end - row) : most;
      block.locate(p.locations + 2 * row * points, rows * n);
      f(row, rows, int64_t{0}, n);
    }
    return;
  }
  for (int64_t row = begin; row < end; ++row)
    for (int64_t first = 0; first < points; first += Block<T>::kPoints) {
      const int n = points - first < Block<T>::kPoints ? static_cast<int>(points - first) : Block<T>::kPoints;
      block.set_levels(p, first, n);
      block.locate(p.locations + 2 * (row * points + first), n);
      f(row, 1, first, n);
    }
}

// For for_blocks: what the levels say, where all blocks have it in common.
template <class T>
MIM4D_HD void begin_blocks(const Params<T>& p, Block<T>& block) {
  if (p.row_points() <= Block<T>::kPoints) block.set_levels(p, 0, static_cast<int>(p.row_points()));
}

// Which head of which batch item a row is, counted up instead of divided.
struct RowCounter {
  int64_t head, query, item;

  template <class P>
  MIM4D_HD RowCounter(const P& p, int64_t row) : head(row % p.M), query(row / p.M % p.Q), item(row / p.M / p.Q) {}
  template <class P>
  MIM4D_HD void next(const P& p) {
    if (++head < p.M) return;
    head = 0;
    if (++query < p.Q) return;
    query = 0, ++item;
  }
};

}  // namespace
}  // namespace mim4d::MIM4D_ISA

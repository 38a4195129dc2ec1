#pragma once
// How a register of samples reads the volume: samples are the lanes of the stencil, channels those of the rows.

#include "cpu/tile.h"
#include "cpu/vec_math.h"
#include "math/interp.h"
#include "math/trilinear.h"
#include "sdf_march/params.h"

namespace mim4d::MIM4D_ISA {
namespace {

// Where a register of samples lies. Outside taps read a row of zeros: no branch, and never 0 * inf.
template <class T>
struct Stencil {
  static constexpr int n = Vec<T>::width;
  Vec<T> position[3];  // in scene units
  int32_t low[3][n];   // lower corners
  Vec<T> t[3];         // fractions
  Vec<T> slope[3];     // d position in cells / d position in scene units
  const T* row[8][n];  // taps

  // From the positions all else; asks for the rows, which are read a while later.
  MIM4D_HD void locate(const SdfMarchParams<T>& p, int64_t item) {
    const int64_t size[3] = {p.X, p.Y, p.Z};
    MIM4D_UNROLL
    for (int d = 0; d < 3; ++d) {
      const T scale = T(2) / (p.aabb[d + 3] - p.aabb[d]);
      const Vec<T> u = (position[d] - Vec<T>(p.aabb[d])) * Vec<T>(scale) - Vec<T>(T(1));
      const auto axis = math::linear_axis(u, Vec<T>(T(size[d])), p.align, p.padding);
      store_int(low[d], axis.low);
      t[d] = axis.t;
      slope[d] = axis.slope * Vec<T>(scale);
    }
    const int64_t dy = p.X * p.C, dz = p.Y * dy;
    const T* const volume = p.volume + item * p.Z * dz;
    for (int j = 0; j < n; ++j) {
      const int32_t x = low[0][j], y = low[1][j], z = low[2][j];
      const int64_t first = z * dz + y * dy + x * p.C;
      const bool in_x[2] = {inside(x, p.X), inside(x + 1, p.X)};
      const bool in_y[2] = {inside(y, p.Y), inside(y + 1, p.Y)};
      const bool in_z[2] = {inside(z, p.Z), inside(z + 1, p.Z)};
      MIM4D_UNROLL
      for (int k = 0; k < 8; ++k) {
        const bool in = in_x[k & 1] & in_y[k >> 1 & 1] & in_z[k >> 2];
        row[k][j] = in ? volume + (first + (k & 1) * p.C + (k >> 1 & 1) * dy + (k >> 2) * dz) : p.outside;
      }
      MIM4D_UNROLL
      for (int k = 0; k < 8; k += 2)  // taps that differ in x lie side by side
        for (int64_t c = 0; c < 2 * p.C; c += 64 / int64_t(sizeof(T))) __builtin_prefetch(row[k][j] + c);
    }
  }

  MIM4D_HD static bool inside(int32_t cell, int64_t size) { return uint32_t(cell) < size; }
};

// Channels [c, c + width) of a row; those beyond the last are zero. C: the padded number, `channels` the true one
template <class T>
MIM4D_HD Vec<T> load_channels(const T* row, int64_t c, int64_t C, int64_t channels) {
  if (C == channels || c + Vec<T>::width <= channels) return Vec<T>::load(row + c);
  return c < channels ? load_first(row + c, static_cast<int>(channels - c)) : Vec<T>(T(0));
}

// tiles [i / width][sample][i % width] from rows [i][sample], or back
template <class T>
MIM4D_HD void transpose_tiles(const Vec<T>* from, int64_t count, Vec<T>* to) {
  constexpr int n = Vec<T>::width;
  for (int64_t i = 0; i < count; i += n) {
    Vec<T> tile[n];
    MIM4D_UNROLL
    for (int j = 0; j < n; ++j) tile[j] = from[i + j];
    transpose_tile(tile);
    MIM4D_UNROLL
    for (int j = 0; j < n; ++j) to[i + j] = tile[j];
  }
}

// feature[c][sample], and its transpose tile by tile [c / width][sample][c % width]: sum_k w_k v_k
template <class T>
MIM4D_HD void gather(const Stencil<T>& at, const Vec<T> (&w)[8], int64_t C, int64_t channels, Vec<T>* feature,
                     Vec<T>* rows) {
  constexpr int n = Vec<T>::width;
  alignas(64) T weight[8][n];
  MIM4D_UNROLL
  for (int k = 0; k < 8; ++k) w[k].store(weight[k]);
  for (int j = 0; j < n; ++j)
    for (int64_t c = 0; c < C; c += n) {
      Vec<T> sum = Vec<T>(weight[0][j]) * load_channels(at.row[0][j], c, C, channels);
      MIM4D_UNROLL
      for (int k = 1; k < 8; ++k) sum = fma_(Vec<T>(weight[k][j]), load_channels(at.row[k][j], c, C, channels), sum);
      rows[c + j] = sum;
    }
  transpose_tiles(rows, C, feature);
}

// dots[k] = v_k . q for the taps k, with q in tiles as `rows` above
template <class T>
MIM4D_HD void dot_taps(const Stencil<T>& at, int64_t C, int64_t channels, const Vec<T>* q, Vec<T>* dots) {
  constexpr int n = Vec<T>::width;
  for (int k = 0; k < 8; ++k) {
    Vec<T> products[n];
    MIM4D_UNROLL
    for (int j = 0; j < n; ++j) {
      Vec<T> sum = q[j] * load_channels(at.row[k][j], 0, C, channels);
      for (int64_t c = n; c < C; c += n) sum = fma_(q[c + j], load_channels(at.row[k][j], c, C, channels), sum);
      products[j] = sum;
    }
    dots[k] = row_sums(products);
  }
}

}  // namespace
}  // namespace mim4d::MIM4D_ISA

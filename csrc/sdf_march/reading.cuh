#pragma once
// How a warp reads the volume for its 32 samples, and gives back to it. Fused: eight threads take one sample at a time,
// four channels each, so that they read whole rows; rows of a warp's samples lie in shared memory in between.

#include "cuda/reduce.cuh"
#include "math/interp.h"
#include "math/trilinear.h"
#include "sdf_march/field.cuh"

namespace mim4d {
namespace {

constexpr int kRow =
    FixedWidths::C + 1;  // of a sample in shared memory: 32 threads that read their own meet no bank twice
constexpr int kTile = 32 * kRow;

// Where a sample lies. A voxel outside of the volume counts zero and is not read.
template <class T>
struct Cell {
  int64_t offset;  // of the channels of the lower corner, in the volume or not
  unsigned in;     // bit k: the tap k lies in the volume
  T t[3];          // fractions
  T slope[3];      // d position in cells / d position in scene units
};

template <class T, bool fixed>
struct Reading;

template <class T>
struct Reading<T, true> {
  static constexpr int kValues = 2 * kTile;  // of shared memory, for a warp
  using Feature = Column<T, 1>;              // a sample's row there

  const SdfMarchCudaParams<T>& p;
  T* tiles;
  int lane = static_cast<int>(threadIdx.x) % 32;
  Cell<T> cell{};

  __device__ void locate(const Sample<T>& s, bool alive) {
    const int64_t size[3] = {p.X, p.Y, p.Z};
    int64_t low[3];
#pragma unroll
    for (int d = 0; d < 3; ++d) {
      const T scale = box_scale(p, d);
      const T u = (s.position[d] - p.aabb[d]) * scale - T(1);
      const auto axis = math::linear_axis(u, static_cast<T>(size[d]), p.align, p.padding);
      low[d] = static_cast<int64_t>(axis.low);
      cell.t[d] = axis.t;
      cell.slope[d] = axis.slope * scale;
    }
    cell.offset = (((s.item * p.Z + low[2]) * p.Y + low[1]) * p.X + low[0]) * FixedWidths::C;
    cell.in = 0;
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      bool in = alive;
#pragma unroll
      for (int d = 0; d < 3; ++d) {
        const int64_t at = low[d] + (k >> d & 1);
        in = in && at >= 0 && at < size[d];
      }
      cell.in |= static_cast<unsigned>(in) << k;
    }
  }

  // Reads f; the tile that it returns a row of holds it until keep_slope.
  __device__ Feature features(Column<T>) {
    gather([](const Cell<T>& at, int, T(&w)[8]) { math::trilinear_weights(at.t[0], at.t[1], at.t[2], w); });
    return row(0);
  }
  // Where q_f is to be put, and then n += the part of the normal that comes by the feature.
  __device__ Feature feature_slope(Column<T>) const { return row(1); }
  __device__ void pull(T (&n)[3]) {
    __syncwarp();
    T slope[3];
    for_rows(
        [&](const Cell<T>& at, int s, int c, T(&sum)[3]) {
          T products[8];
          dots(at, s, c, tiles + kTile, products);
          math::trilinear_gradient(products, at.t[0], at.t[1], at.t[2], sum[0], sum[1], sum[2]);
        },
        slope);
#pragma unroll
    for (int d = 0; d < 3; ++d) n[d] += cell.slope[d] * slope[d];
    __syncwarp();
  }

  // The derivative of the feature along v.
  __device__ Feature along(const T (&v)[3], Column<T>) {
    const T cells[3] = {v[0] * cell.slope[0], v[1] * cell.slope[1], v[2] * cell.slope[2]};
    gather([&](const Cell<T>& at, int s, T(&w)[8]) {
      T u[3];
#pragma unroll
      for (int d = 0; d < 3; ++d) u[d] = __shfl_sync(kAll, cells[d], s);
      math::trilinear_weights_along(at.t[0], at.t[1], at.t[2], u[0], u[1], u[2], w);
    });
    return row(0);
  }

  // From the cotangent of the feature and q_f: adds to the gradient of the volume (unless it is null), and to that of
  // the position.
  __device__ void back(const Column<T>& f_bar, const Column<T>& qf, const T (&v)[3], T* grad_volume, T (&position)[3]) {
    const Feature own[2] = {row(0), row(1)};
    __syncwarp();
    for (int c = 0; c < FixedWidths::C; ++c) own[0][c] = f_bar[c], own[1][c] = qf[c];
    __syncwarp();
    const T cells[3] = {v[0] * cell.slope[0], v[1] * cell.slope[1], v[2] * cell.slope[2]};
    T slope[3];
    for_rows(
        [&](const Cell<T>& at, int s, int c, T(&sum)[3]) {
          T u[3];
#pragma unroll
          for (int d = 0; d < 3; ++d) u[d] = __shfl_sync(kAll, cells[d], s);
          if (grad_volume) {
            T w[8], w_along[8];
            math::trilinear_weights(at.t[0], at.t[1], at.t[2], w);
            math::trilinear_weights_along(at.t[0], at.t[1], at.t[2], u[0], u[1], u[2], w_along);
#pragma unroll
            for (int k = 0; k < 8; ++k) {
              T add[4];
#pragma unroll
              for (int i = 0; i < 4; ++i)
                add[i] = w[k] * tiles[s * kRow + c + i] + w_along[k] * tiles[kTile + s * kRow + c + i];
              if (at.in >> k & 1u) atomic_add_pack(grad_volume + at.offset + tap(k) + c, add);
            }
          }
          T products[8], bend[3];
          dots(at, s, c, tiles, products);
          math::trilinear_gradient(products, at.t[0], at.t[1], at.t[2], sum[0], sum[1], sum[2]);
          dots(at, s, c, tiles + kTile, products);
          math::trilinear_bend(products, at.t[0], at.t[1], at.t[2], u[0], u[1], u[2], bend[0], bend[1], bend[2]);
#pragma unroll
          for (int d = 0; d < 3; ++d) sum[d] += bend[d];
        },
        slope);
#pragma unroll
    for (int d = 0; d < 3; ++d) position[d] += cell.slope[d] * slope[d];
    __syncwarp();
  }

 private:
  __device__ Feature row(int tile) const { return {tiles, tile * kTile + lane * kRow}; }
  __device__ int64_t tap(int k) const { return (((k >> 2) * p.Y + (k >> 1 & 1)) * p.X + (k & 1)) * FixedWidths::C; }
  __device__ Cell<T> cell_of(int s) const {
    Cell<T> at{__shfl_sync(kAll, cell.offset, s), __shfl_sync(kAll, cell.in, s), {}, {}};
#pragma unroll
    for (int d = 0; d < 3; ++d) at.t[d] = __shfl_sync(kAll, cell.t[d], s);
    return at;
  }
  __device__ void load(const Cell<T>& at, int k, int c, T (&v)[4]) const {
    load_if(at.in >> k & 1u, p.volume + at.offset + tap(k) + c, v);
  }

  // rows of the first tile = sum over the taps of weight x voxel
  template <class Weights>
  __device__ void gather(Weights&& weights) {
    __syncwarp();
#pragma unroll 1
    for (int first = 0; first < 32; first += 4) {
      const int s = first + lane / 8, c = lane % 8 * 4;
      const Cell<T> at = cell_of(s);
      T w[8], sum[4] = {T(0), T(0), T(0), T(0)};
      weights(at, s, w);
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        T v[4];
        load(at, k, c, v);
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[i] += w[k] * v[i];
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) tiles[s * kRow + c + i] = sum[i];
    }
    __syncwarp();
  }

  // products[k] = four channels of tap k . those of the sample's row
  __device__ void dots(const Cell<T>& at, int s, int c, const T* rows, T (&products)[8]) const {
    T own[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) own[i] = rows[s * kRow + c + i];
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      T v[4];
      load(at, k, c, v);
      products[k] = own[0] * v[0] + own[1] * v[1] + own[2] * v[2] + own[3] * v[3];
    }
  }

  // f(cell, sample, channel, sums): three sums over the channels of each sample, which its thread gets.
  template <class F>
  __device__ void for_rows(F&& f, T (&sums)[3]) {
#pragma unroll 1
    for (int first = 0; first < 32; first += 4) {
      const int s = first + lane / 8;
      T sum[3];
      f(cell_of(s), s, lane % 8 * 4, sum);
#pragma unroll
      for (int d = 0; d < 3; ++d) {
        const T found = __shfl_sync(kAll, group_sum(sum[d], 8), (lane & 3) * 8);
        if (lane / 4 == first / 4) sums[d] = found;
      }
    }
  }
};

// From tables: a sample's rows are its thread's own. A thread without one reads nothing: the rows that it names are
// another's, who may already write to them.
template <class T>
struct Reading<T, false> {
  static constexpr int kValues = 0;
  using Feature = Column<T>;

  const SdfMarchCudaParams<T>& p;
  T* tiles;
  int64_t index = 0;
  bool alive = false;
  Column<T> q{};

  __device__ void locate(const Sample<T>& s, bool exists) { index = s.index, alive = exists; }
  __device__ int channels() const { return alive ? static_cast<int>(p.C) : 0; }
  __device__ Feature features(Column<T> f) {
    for (int c = 0; c < p.sizes.C; ++c) f[c] = c < channels() ? p.tables.features[index * p.C + c] : T(0);
    return f;
  }
  __device__ Feature feature_slope(Column<T> qf) { return q = qf; }
  __device__ void pull(T (&n)[3]) const {
    const T* const jacobian = p.tables.jacobian + 3 * index * p.C;
    T slope[3] = {T(0), T(0), T(0)};
    for (int c = 0; c < channels(); ++c)
      for (int d = 0; d < 3; ++d) slope[d] += jacobian[3 * c + d] * q[c];
    for (int d = 0; d < 3; ++d) n[d] += box_scale(p, d) * slope[d];
  }
  __device__ Feature along(const T (&v)[3], Column<T> f_dot) const {
    const T* const jacobian = p.tables.jacobian + 3 * index * p.C;
    for (int c = 0; c < p.sizes.C; ++c) {
      T sum = T(0);
      for (int d = 0; d < 3 && c < channels(); ++d) sum += jacobian[3 * c + d] * (v[d] * box_scale(p, d));
      f_dot[c] = sum;
    }
    return f_dot;
  }
};

// Leaves in a sample's rows of the tables what its feature and its Jacobian get back: f_bar and q_f v^T.
template <class T>
__device__ __forceinline__ void to_tables(const SdfMarchCudaParams<T>& p, int64_t index, bool alive,
                                          const Column<T>& f_bar, const Column<T>& qf, const T (&v)[3]) {
  for (int c = 0; c < p.C; ++c) {
    p.tables.features[index * p.C + c] = alive ? f_bar[c] : T(0);
    for (int d = 0; d < 3; ++d)
      p.tables.jacobian[3 * (index * p.C + c) + d] = alive ? qf[c] * v[d] * box_scale(p, d) : T(0);
  }
}

template <class T>
__device__ __forceinline__ void clear_tables(const SdfMarchCudaParams<T>& p, int64_t index) {
  for (int c = 0; c < p.C; ++c) p.tables.features[index * p.C + c] = T(0);
  for (int c = 0; c < 3 * p.C; ++c) p.tables.jacobian[3 * index * p.C + c] = T(0);
}

}  // namespace
}  // namespace mim4d

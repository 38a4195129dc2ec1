#pragma once
// What the CPU kernels share: the stencils of a block of points, computed with points as the SIMD lanes, and loops over
// the rows of voxels that one point touches, with channels as the lanes.

#include "cpu/tile.h"
#include "math/interp.h"
#include "voxel_sample/cpu.h"

namespace mim4d::MIM4D_ISA {
namespace {

template <class T>
using Params = VoxelSampleParams<T>;

// One number for each point of a block, to be read point by point.
template <class T>
struct Lanes {
  alignas(64) T at[Vec<T>::width];

  MIM4D_HD void operator=(Vec<T> x) { x.store(at); }
  MIM4D_HD Vec<T> operator[](int j) const { return Vec<T>(at[j]); }
  MIM4D_HD Vec<T> all() const { return Vec<T>::load(at); }
};

// The three numbers of each of n points, points as lanes.
template <class T>
MIM4D_HD void load_points(const T* p, int n, Vec<T> (&v)[3]) {
  if (n == Vec<T>::width)
    load_triples(p, v[0], v[1], v[2]);
  else
    load_first_triples(p, v[0], v[1], v[2], n);
}

// Up to `width` points with the taps of their three axes: K in x and y, KZ in z.
template <class T, int K, int KZ>
struct Stencil {
  static constexpr int width = Vec<T>::width;
  static constexpr int rows = KZ * K;  // of voxels that a point touches: numbered with y fastest
  static constexpr int taps = rows * K;
  using V = Vec<T>;

  math::Taps<V, K> x, y;
  math::Taps<V, KZ> z;
  Lanes<T> nothing;  // the value of a point without taps in the volume
  alignas(64) int32_t first[3][width], from[3][width], to[3][width];
  alignas(64) int32_t inside[width];  // taps of the point that lie in the volume

  // Of the points [i, i + n).
  MIM4D_HD void locate(const Params<T>& p, int64_t i, int n) {
    V at[3];
    load_points(p.points + 3 * i, n, at);
    const bool smooth = p.mode == Mode::smoothstep;
    x = math::axis_taps<K>(at[0], V(T(p.X)), smooth, p.align, p.padding);
    y = math::axis_taps<K>(at[1], V(T(p.Y)), smooth, p.align, p.padding);
    z = math::axis_taps<KZ>(at[2], V(T(p.Z)), smooth, p.align, p.padding);
    store_axis(0, x), store_axis(1, y), store_axis(2, z);
    nothing = x.nothing + y.nothing + z.nothing;
    store_int(inside, count(x) * count(y) * count(z));
  }

  // Asks for the voxels of all points at once, so that their ways from a far cache overlap. Cubic stencils are too many
  // voxels for that.
  MIM4D_HD void prefetch(const Params<T>& p, const T* volume, int64_t item, int n) const {
    if constexpr (K == 2) {
      constexpr int64_t line = 64 / sizeof(T);
      for (int j = 0; j < n; ++j) {
        if (!whole(j)) continue;
        const T* row[rows];
        find_rows<true>(p, volume, item, j, row);
        MIM4D_UNROLL
        for (int r = 0; r < rows; ++r)
          for (int64_t c = 0; c < 2 * p.C; c += line) __builtin_prefetch(row[r] + c);
      }
    }
  }

  template <int N>
  MIM4D_HD static V count(const math::Taps<V, N>& axis) {
    return clamp_(axis.to - axis.from, V(T(0)), V(T(N)));
  }

  template <int N>
  MIM4D_HD void store_axis(int d, const math::Taps<V, N>& axis) {
    store_int(first[d], axis.first);
    store_int(from[d], axis.from);
    store_int(to[d], axis.to);
  }

  // Whether point j needs no questions: for linear axes all of its taps lie in the volume, else all along x.
  MIM4D_HD bool whole(int j) const { return K == 2 ? inside[j] == taps : from[0][j] == 0 && to[0][j] == K; }

  // Of point j: where its rows of voxels begin (the first tap in x, in the volume or not), null for a row outside.
  template <bool whole>
  MIM4D_HD void find_rows(const Params<T>& p, const T* volume, int64_t item, int j, const T* (&row)[rows]) const {
    const int64_t dy = p.X * p.C, dz = p.Y * dy;
    const int64_t origin = item * p.Z * dz + first[2][j] * dz + first[1][j] * dy + first[0][j] * p.C;
    MIM4D_UNROLL
    for (int iz = 0; iz < KZ; ++iz) {
      MIM4D_UNROLL
      for (int iy = 0; iy < K; ++iy) {
        const bool in =
            (whole && K == 2) || ((iz >= from[2][j]) & (iz < to[2][j]) & (iy >= from[1][j]) & (iy < to[1][j]));
        row[iz * K + iy] = in ? volume + (origin + iz * dz + iy * dy) : nullptr;
      }
    }
  }

  // f.operator()<whole>()
  template <class F>
  MIM4D_HD void visit(int j, F&& f) const {
    if (whole(j))
      f.template operator()<true>();
    else
      f.template operator()<false>();
  }
};

// Weighted taps of one row along x; `at` is the first of them.
template <bool whole, int K, class L, class T>
MIM4D_HD auto along_x(const L& lanes, const T* at, int64_t C, const Vec<T> (&w)[K], int from, int to) {
  if constexpr (whole) {
    auto sum = w[0] * lanes.load(at);
    MIM4D_UNROLL
    for (int k = 1; k < K; ++k) sum = sum + w[k] * lanes.load(at + k * C);
    return sum;
  } else {
    auto sum = lanes.all(T(0));
    for (int k = from; k < to; ++k) sum = sum + w[k] * lanes.load(at + k * C);
    return sum;
  }
}

// grad_points of the points [i, i + n)
template <class T, int K, int KZ>
MIM4D_HD void store_slopes(const Params<T>& p, int64_t i, int n, const Stencil<T, K, KZ>& s, const Vec<T> (&slope)[3]) {
  const Vec<T> x = s.x.kept(slope[0]), y = s.y.kept(slope[1]), z = s.z.kept(slope[2]);
  if (n == Vec<T>::width)
    store_triples(p.grad_points + 3 * i, x, y, z);
  else
    store_first_triples(p.grad_points + 3 * i, x, y, z, n);
}

// f(first point, batch item, how many) for blocks of up to `width` points of one batch item
template <class T, class F>
MIM4D_HD void for_blocks(const Params<T>& p, int64_t begin, int64_t end, F&& f) {
  constexpr int width = Vec<T>::width;
  for (int64_t i = begin; i < end;) {
    const int64_t item = i / p.N;
    const int64_t stop = end < (item + 1) * p.N ? end : (item + 1) * p.N;
    for (; i < stop; i += width) f(i, item, stop - i < width ? static_cast<int>(stop - i) : width);
    i = stop;
  }
}

// Products of a row of C channels with each tap of a point, for a block of points: s(k) is tap k, points as lanes.
template <class T, int K, int KZ>
class TapProducts {
 public:
  using S = Stencil<T, K, KZ>;
  static constexpr int width = Vec<T>::width;
  static constexpr int group = S::taps < width ? S::taps : width;

  // g(j, c, lanes): channels of point j from c on
  template <class G>
  MIM4D_HD void set(const Params<T>& p, const S& s, const T* volume, int64_t item, int n, G&& g) {
    for (int j = 0; j < width; ++j) {
      if (j >= n || s.inside[j] == 0) {
        for (auto& part : product) part[j] = Vec<T>(T(0));
        continue;
      }
      s.visit(j, [&]<bool whole>() {
        const T* row[S::rows];
        s.template find_rows<whole>(p, volume, item, j, row);
        set_point<whole>(p, s, j, row, [&](int64_t c, auto lanes) { return g(j, c, lanes); });
      });
    }
    for (auto& part : product) transpose_tile(part);  // from here on, points are the lanes
  }
  MIM4D_HD Vec<T> operator()(int k) const { return product[k / group][k % group]; }

 private:
  Vec<T> product[S::taps / group][width];  // [group][point], taps as lanes; at last [group][tap], points as lanes

  // g(c, lanes): channels of point j from c on
  template <bool whole, class G>
  MIM4D_HD void set_point(const Params<T>& p, const S& s, int j, const T* const (&row)[S::rows], G&& g) {
    const int from = s.from[0][j], to = s.to[0][j];
    for (int part = 0; part < S::taps / group; ++part) {
      Vec<T> sum[group];
      MIM4D_UNROLL
      for (int i = 0; i < group; ++i) sum[i] = Vec<T>(T(0));
      for_row<T>(p.C, [&](int64_t c, auto lanes) {
        const auto grad = g(c, lanes);
        MIM4D_UNROLL
        for (int i = 0; i < group; ++i) {
          const int k = part * group + i, ix = k % K;
          if (!(whole && K == 2) && !row[k / K]) continue;
          if (!whole && (ix < from || ix >= to)) continue;
          sum[i] = sum[i] + grad.v[0] * lanes.load(row[k / K] + ix * p.C + c).v[0];
        }
      });
      product[part][j] = row_sums(sum);
    }
  }
};

}  // namespace
}  // namespace mim4d::MIM4D_ISA

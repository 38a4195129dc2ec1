#pragma once
// How a register of samples reads the volume: samples are the lanes of the stencil, channels those of the rows. Taps
// outside of the volume read a row of zeros: no branch, and never 0 * inf.

#include "cpu/tile.h"
#include "cpu/vec_math.h"
#include "math/interp.h"
#include "math/trilinear.h"
#include "sdf_march/params.h"

namespace mim4d::MIM4D_ISA {
namespace {

MIM4D_HD bool inside(int32_t cell, int64_t size) { return uint32_t(cell) < size; }

// Samples on the three axes of the volume.
template <class T>
struct Located {
  static constexpr int n = Vec<T>::width;
  Vec<T> position[3];   // in scene units
  Vec<T> t[3];          // fractions
  Vec<T> slope[3];      // d position in cells / d position in scene units
  int32_t first[3][n];  // cells of the first taps

  // Along axis d, from the position; K taps.
  template <int K>
  MIM4D_HD math::LinearAxis<Vec<T>> locate_axis(const SdfFieldParams<T>& p, int d, int64_t size) {
    const T scale = T(2) / (p.aabb[d + 3] - p.aabb[d]);
    const Vec<T> u = (position[d] - Vec<T>(p.aabb[d])) * Vec<T>(scale) - Vec<T>(T(1));
    const auto axis = math::axis_position(u, Vec<T>(T(size)), p.align, K == 2 && p.padding == Padding::border);
    t[d] = axis.t;
    slope[d] = axis.slope * Vec<T>(scale);
    return axis;
  }
};

// Trilinear: eight taps; bit 0 of a tap's number is its step in x, bit 1 in y, bit 2 in z.
template <class T>
struct LinearStencil : Located<T> {
  using Located<T>::n, Located<T>::t, Located<T>::first;
  static constexpr int kMostTaps = 8;
  const T* row[n][8];

  explicit LinearStencil(const SdfFieldParams<T>&) {}
  MIM4D_HD static constexpr int taps() { return 8; }

  // From the positions all else; asks for the rows, which are read a while later.
  MIM4D_HD void locate(const SdfFieldParams<T>& p, int64_t item) {
    const int64_t size[3] = {p.X, p.Y, p.Z};
    MIM4D_UNROLL
    for (int d = 0; d < 3; ++d) store_int(first[d], this->template locate_axis<2>(p, d, size[d]).low);
    const int64_t dy = p.X * p.C, dz = p.Y * dy;
    const T* const volume = p.volume + item * p.Z * dz;
    int64_t step[8];
    MIM4D_UNROLL
    for (int k = 0; k < 8; ++k) step[k] = (k & 1) * p.C + (k >> 1 & 1) * dy + (k >> 2) * dz;
    for (int j = 0; j < n; ++j) {
      const int32_t x = first[0][j], y = first[1][j], z = first[2][j];
      const T* const corner = volume + (z * dz + y * dy + x * p.C);
      if (inside(x, p.X - 1) & inside(y, p.Y - 1) & inside(z, p.Z - 1)) {
        MIM4D_UNROLL
        for (int k = 0; k < 8; ++k) row[j][k] = corner + step[k];
      } else {
        const bool in_x[2] = {inside(x, p.X), inside(x + 1, p.X)};
        const bool in_y[2] = {inside(y, p.Y), inside(y + 1, p.Y)};
        const bool in_z[2] = {inside(z, p.Z), inside(z + 1, p.Z)};
        MIM4D_UNROLL
        for (int k = 0; k < 8; ++k)
          row[j][k] = in_x[k & 1] & in_y[k >> 1 & 1] & in_z[k >> 2] ? corner + step[k] : p.outside;
      }
      MIM4D_UNROLL
      for (int k = 0; k < 8; k += 2)  // taps that differ in x lie side by side
        for (int64_t c = 0; c < 2 * p.C; c += 64 / int64_t(sizeof(T))) __builtin_prefetch(row[j][k] + c);
    }
  }

  MIM4D_HD void weights(Vec<T>* w) const {
    Vec<T> all[8];
    math::trilinear_weights(t[0], t[1], t[2], all);
    store(all, w);
  }
  // Derivatives of the weights along v, in cells.
  MIM4D_HD void weights_along(const Vec<T> (&v)[3], Vec<T>* w) const {
    Vec<T> all[8];
    math::trilinear_weights_along(t[0], t[1], t[2], v[0], v[1], v[2], all);
    store(all, w);
  }
  // Derivatives by the place in cells of what has the values s at the taps.
  MIM4D_HD void gradient(const Vec<T>* s, Vec<T> (&g)[3]) const {
    Vec<T> all[8];
    store_from(s, all);
    math::trilinear_gradient(all, t[0], t[1], t[2], g[0], g[1], g[2]);
  }
  // Its second derivatives times v.
  MIM4D_HD void curvature(const Vec<T>* s, const Vec<T> (&v)[3], Vec<T> (&g)[3]) const {
    Vec<T> all[8];
    store_from(s, all);
    math::trilinear_bend(all, t[0], t[1], t[2], v[0], v[1], v[2], g[0], g[1], g[2]);
  }

 private:
  MIM4D_HD static void store(const Vec<T> (&from)[8], Vec<T>* to) {
    MIM4D_UNROLL
    for (int k = 0; k < 8; ++k) to[k] = from[k];
  }
  MIM4D_HD static void store_from(const Vec<T>* from, Vec<T> (&to)[8]) {
    MIM4D_UNROLL
    for (int k = 0; k < 8; ++k) to[k] = from[k];
  }
};

// Taps of an axis in cells: their derivatives are by the position, not by the coordinate. Those that were lost to a NaN
// have NaN as their weights.
template <int K, class V>
MIM4D_HD math::Taps<V, K> cell_taps(const math::LinearAxis<V>& at, V size, Mode mode, Padding padding) {
  auto taps =
      math::taps_at<K>(math::LinearAxis<V>{at.low, at.t, V(1), at.free}, size, mode == Mode::smoothstep, padding);
  MIM4D_UNROLL
  for (int k = 0; k < K; ++k) taps.w[k] = taps.w[k] + taps.nothing;
  return taps;
}

// Any mode: K taps in x and y, KZ in z, which is known when it runs. Taps are numbered with x fastest, then y, then z.
template <class T>
struct AnyStencil : Located<T> {
  using Located<T>::n;
  static constexpr int kMostTaps = 64;
  struct Axis {
    Vec<T> w[4], d[4], dd[4];
  };
  Mode mode;
  int K, KZ;
  Axis axis[3];
  const T* row[n][kMostTaps];

  explicit AnyStencil(const SdfFieldParams<T>& p)
      : mode(p.mode), K(p.mode >= Mode::bicubic ? 4 : 2), KZ(p.mode == Mode::tricubic ? 4 : 2) {}
  MIM4D_HD int taps() const { return K * K * KZ; }

  void locate(const SdfFieldParams<T>& p, int64_t item) {
    alignas(64) int32_t from[3][n], to[3][n];
    const int64_t size[3] = {p.X, p.Y, p.Z};
    for (int d = 0; d < 3; ++d) {
      if ((d == 2 ? KZ : K) == 4)
        set_axis<4>(p, d, size[d], from[d], to[d]);
      else
        set_axis<2>(p, d, size[d], from[d], to[d]);
    }
    const int64_t dy = p.X * p.C, dz = p.Y * dy;
    const T* const volume = p.volume + item * p.Z * dz;
    const auto& first = this->first;
    for (int j = 0; j < n; ++j) {
      const int64_t corner = first[2][j] * dz + first[1][j] * dy + first[0][j] * p.C;
      int k = 0;
      for (int iz = 0; iz < KZ; ++iz)
        for (int iy = 0; iy < K; ++iy) {
          const bool in = (iz >= from[2][j]) & (iz < to[2][j]) & (iy >= from[1][j]) & (iy < to[1][j]);
          for (int ix = 0; ix < K; ++ix)
            row[j][k++] = in & (ix >= from[0][j]) & (ix < to[0][j]) ? volume + (corner + iz * dz + iy * dy + ix * p.C)
                                                                    : p.outside;
        }
    }
  }

  void weights(Vec<T>* w) const {
    for_taps([&](int k, int ix, int iy, int iz) { w[k] = axis[0].w[ix] * axis[1].w[iy] * axis[2].w[iz]; });
  }
  void weights_along(const Vec<T> (&v)[3], Vec<T>* w) const {
    for_taps([&](int k, int ix, int iy, int iz) {
      const Axis &x = axis[0], &y = axis[1], &z = axis[2];
      w[k] = v[0] * x.d[ix] * (y.w[iy] * z.w[iz]) + x.w[ix] * (v[1] * y.d[iy] * z.w[iz] + v[2] * y.w[iy] * z.d[iz]);
    });
  }
  void gradient(const Vec<T>* s, Vec<T> (&g)[3]) const {
    for (auto& part : g) part = Vec<T>(T(0));
    contract([&](const auto& x, const auto& y, const auto& z) {
      math::add_gradient(x, y, z, [=](int k) { return s[k]; }, g);
    });
  }
  void curvature(const Vec<T>* s, const Vec<T> (&v)[3], Vec<T> (&g)[3]) const {
    for (auto& part : g) part = Vec<T>(T(0));
    contract([&](const auto& x, const auto& y, const auto& z) {
      math::add_curvature(x, y, z, [=](int k) { return s[k]; }, v, g);
    });
  }

 private:
  template <int taps>
  void set_axis(const SdfFieldParams<T>& p, int d, int64_t size, int32_t* from, int32_t* to) {
    const auto found = cell_taps<taps>(this->template locate_axis<taps>(p, d, size), Vec<T>(T(size)), mode, p.padding);
    for (int k = 0; k < taps; ++k) axis[d].w[k] = found.w[k], axis[d].d[k] = found.d[k], axis[d].dd[k] = found.dd[k];
    store_int(this->first[d], found.first), store_int(from, found.from), store_int(to, found.to);
  }

  template <class F>
  MIM4D_HD void for_taps(F&& f) const {
    int k = 0;
    for (int iz = 0; iz < KZ; ++iz)
      for (int iy = 0; iy < K; ++iy)
        for (int ix = 0; ix < K; ++ix) f(k++, ix, iy, iz);
  }

  template <int taps>
  MIM4D_HD math::Taps<Vec<T>, taps> of_axis(int d) const {
    math::Taps<Vec<T>, taps> found;
    MIM4D_UNROLL
    for (int k = 0; k < taps; ++k) found.w[k] = axis[d].w[k], found.d[k] = axis[d].d[k], found.dd[k] = axis[d].dd[k];
    return found;
  }
  // f(taps in x, in y, in z)
  template <class F>
  MIM4D_HD void contract(F&& f) const {
    if (K == 2)
      f(of_axis<2>(0), of_axis<2>(1), of_axis<2>(2));
    else if (KZ == 2)
      f(of_axis<4>(0), of_axis<4>(1), of_axis<2>(2));
    else
      f(of_axis<4>(0), of_axis<4>(1), of_axis<4>(2));
  }
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
template <class Stencil, class T>
MIM4D_HD void gather(const Stencil& at, const Vec<T>* w, int64_t C, int64_t channels, Vec<T>* feature, Vec<T>* rows) {
  constexpr int n = Vec<T>::width;
  const T* const weight = reinterpret_cast<const T*>(w);
  for (int j = 0; j < n; ++j)
    for (int64_t c = 0; c < C; c += n) {
      Vec<T> sum = Vec<T>(weight[j]) * load_channels(at.row[j][0], c, C, channels);
      for (int k = 1; k < at.taps(); ++k)
        sum = fma_(Vec<T>(weight[k * n + j]), load_channels(at.row[j][k], c, C, channels), sum);
      rows[c + j] = sum;
    }
  transpose_tiles(rows, C, feature);
}

// dots[k] = v_k . q for the taps k, with q in tiles as `rows` above
template <class Stencil, class T>
MIM4D_HD void dot_taps(const Stencil& at, int64_t C, int64_t channels, const Vec<T>* q, Vec<T>* dots) {
  constexpr int n = Vec<T>::width;
  for (int k = 0; k < at.taps(); ++k) {
    Vec<T> products[n];
    MIM4D_UNROLL
    for (int j = 0; j < n; ++j) {
      Vec<T> sum = q[j] * load_channels(at.row[j][k], 0, C, channels);
      for (int64_t c = n; c < C; c += n) sum = fma_(q[c + j], load_channels(at.row[j][k], c, C, channels), sum);
      products[j] = sum;
    }
    dots[k] = row_sums(products);
  }
}

}  // namespace
}  // namespace mim4d::MIM4D_ISA

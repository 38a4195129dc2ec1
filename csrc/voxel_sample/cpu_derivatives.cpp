// Derivatives beyond the first gradient, on one instruction set: features with their Jacobian, what points get back
// from both, and the second derivatives. The volume gets its own back in cpu_volume.cpp.

#include "voxel_sample/cpu.h"
#include "voxel_sample/cpu_stencil.h"

namespace mim4d::MIM4D_ISA {
namespace {

// Features and Jacobian from one gather: along x the taps are summed with their weights and with the derivatives.
template <class T, int K, int KZ>
void with_grad(const Params<T>& p, int64_t begin, int64_t end) {
  using S = Stencil<T, K, KZ>;
  for_blocks(p, begin, end, [&](int64_t i, int64_t item, int n) {
    S s;
    s.locate(p, i, n);
    Lanes<T> wx[K], dx[K], wr[S::rows], dy[S::rows], dz[S::rows];
    for (int k = 0; k < K; ++k) wx[k] = s.x.w[k], dx[k] = s.x.d[k];
    for (int r = 0; r < S::rows; ++r) {
      wr[r] = s.z.w[r / K] * s.y.w[r % K];
      dy[r] = s.z.w[r / K] * s.y.d[r % K];
      dz[r] = s.z.d[r / K] * s.y.w[r % K];
    }
    for (int j = 0; j < n; ++j) {
      T *out = p.out + (i + j) * p.C, *jacobian = p.jacobian + (i + j) * p.C * 3;
      if (s.inside[j] == 0) {
        for_wide_row<T>(p.C, [&](int64_t c, auto lanes) {
          const auto x = lanes.all(s.nothing.at[j]);
          lanes.store(out + c, x);
          lanes.store_triples(jacobian + 3 * c, x, x, x);
        });
        continue;
      }
      s.visit(j, [&]<bool whole>() {
        const int from = s.from[0][j], to = s.to[0][j];
        const T* row[S::rows];
        s.template find_rows<whole>(p, p.volume, item, j, row);
        Vec<T> w[K], d[K];
        for (int k = 0; k < K; ++k) w[k] = wx[k][j], d[k] = dx[k][j];
        for_wide_row<T>(p.C, [&](int64_t c, auto lanes) {
          auto value = lanes.all(T(0)), jx = value, jy = value, jz = value;
          for (int r = 0; r < S::rows; ++r) {
            if (!(whole && K == 2) && !row[r]) continue;
            const auto a = along_x<whole>(lanes, row[r] + c, p.C, w, from, to);
            value = value + wr[r][j] * a;
            jx = jx + wr[r][j] * along_x<whole>(lanes, row[r] + c, p.C, d, from, to);
            jy = jy + dy[r][j] * a;
            jz = jz + dz[r][j] * a;
          }
          lanes.store(out + c, value);
          lanes.store_triples(jacobian + 3 * c, jx, jy, jz);
        });
      });
    }
  });
}

template <class T, int K, int KZ>
void with_grad_points(const Params<T>& p, int64_t begin, int64_t end) {
  for_blocks(p, begin, end, [&](int64_t i, int64_t item, int n) {
    Vec<T> slope[3] = {T(0), T(0), T(0)};
    Stencil<T, K, KZ> s;
    s.locate(p, i, n);
    TapProducts<T, K, KZ> products;
    if (p.grad) {
      const T* grad = p.grad + i * p.C;
      products.set(p, s, p.volume, item, n,
                   [&](int j, int64_t c, auto lanes) { return lanes.load(grad + j * p.C + c); });
      math::add_gradient(s.x, s.y, s.z, products, slope);
    }
    for (int d = 0; p.grad_jacobian && d < 3; ++d) {  // the derivatives of column d of the Jacobian
      const T* grad = p.grad_jacobian + i * p.C * 3;
      products.set(p, s, p.volume, item, n, [&](int j, int64_t c, auto lanes) {
        auto x = lanes.all(T(0)), y = x, z = x;
        lanes.load_triples(grad + (j * p.C + c) * 3, x, y, z);
        return d == 0 ? x : d == 1 ? y : z;
      });
      const Vec<T> unit[3] = {T(d == 0), T(d == 1), T(d == 2)};
      math::add_curvature(s.x, s.y, s.z, products, unit, slope);
    }
    store_slopes(p, i, n, s, slope);
  });
}

// The cotangent of grad for a block of points. q: the cotangent of grad_points, 0 where there is none.
template <class T, int K, int KZ>
void grad_of_grad(const Params<T>& p, int64_t i, int64_t item, int n, const Stencil<T, K, KZ>& s,
                  const Vec<T> (&q)[3]) {
  using S = Stencil<T, K, KZ>;
  // The volume is read with the derivative of the weights along q, the cotangent of its gradient with the weights.
  Lanes<T> wx[K], dx[K], wr[S::rows], along_w[S::rows], along_d[S::rows];
  for (int k = 0; k < K; ++k) wx[k] = s.x.w[k], dx[k] = s.x.d[k];
  for (int r = 0; r < S::rows; ++r) {
    const Vec<T> both = s.z.w[r / K] * s.y.w[r % K];
    wr[r] = both;
    along_d[r] = q[0] * both;
    along_w[r] = q[1] * (s.z.w[r / K] * s.y.d[r % K]) + q[2] * (s.z.d[r / K] * s.y.w[r % K]);
  }
  for (int j = 0; j < n; ++j) {
    T* out = p.grad_grad + (i + j) * p.C;
    if (s.inside[j] == 0) {
      for_wide_row<T>(p.C, [&](int64_t c, auto lanes) { lanes.store(out + c, lanes.all(T(0))); });
      continue;
    }
    s.visit(j, [&]<bool whole>() {
      const int from = s.from[0][j], to = s.to[0][j];
      const T *row[S::rows], *cotangent[S::rows];
      if (p.grad_grad_points) s.template find_rows<whole>(p, p.volume, item, j, row);
      if (p.grad_grad_volume) s.template find_rows<whole>(p, p.grad_grad_volume, item, j, cotangent);
      Vec<T> w[K], d[K];
      for (int k = 0; k < K; ++k) w[k] = wx[k][j], d[k] = dx[k][j];
      for_wide_row<T>(p.C, [&](int64_t c, auto lanes) {
        auto sum = lanes.all(T(0));
        if (p.grad_grad_points)
          for (int r = 0; r < S::rows; ++r) {
            if (!(whole && K == 2) && !row[r]) continue;
            sum = sum + along_w[r][j] * along_x<whole>(lanes, row[r] + c, p.C, w, from, to);
            sum = sum + along_d[r][j] * along_x<whole>(lanes, row[r] + c, p.C, d, from, to);
          }
        if (p.grad_grad_volume)
          for (int r = 0; r < S::rows; ++r) {
            if (!(whole && K == 2) && !cotangent[r]) continue;
            sum = sum + wr[r][j] * along_x<whole>(lanes, cotangent[r] + c, p.C, w, from, to);
          }
        lanes.store(out + c, sum);
      });
    });
  }
}

template <class T, int K, int KZ>
void double_points(const Params<T>& p, int64_t begin, int64_t end) {
  for_blocks(p, begin, end, [&](int64_t i, int64_t item, int n) {
    Vec<T> q[3] = {T(0), T(0), T(0)}, slope[3] = {T(0), T(0), T(0)};
    if (p.grad_grad_points) load_points(p.grad_grad_points + 3 * i, n, q);
    Stencil<T, K, KZ> s;
    s.locate(p, i, n);
    if (p.grad_grad) grad_of_grad(p, i, item, n, s, q);
    if (!p.grad_points) return;
    const T* grad = p.grad + i * p.C;
    const auto row = [&](int j, int64_t c, auto lanes) { return lanes.load(grad + j * p.C + c); };
    TapProducts<T, K, KZ> products;
    if (p.grad_grad_points) {
      products.set(p, s, p.volume, item, n, row);
      math::add_curvature(s.x, s.y, s.z, products, q, slope);
    }
    if (p.grad_grad_volume) {
      products.set(p, s, p.grad_grad_volume, item, n, row);
      math::add_gradient(s.x, s.y, s.z, products, slope);
    }
    store_slopes(p, i, n, s, slope);
  });
}

}  // namespace

extern const ByShape<VoxelSampleDerivativesCpu<float>> voxel_sample_derivatives_float = {{
    {with_grad<float, 2, 2>, with_grad_points<float, 2, 2>, double_points<float, 2, 2>},
    {with_grad<float, 4, 2>, with_grad_points<float, 4, 2>, double_points<float, 4, 2>},
    {with_grad<float, 4, 4>, with_grad_points<float, 4, 4>, double_points<float, 4, 4>},
}};
extern const ByShape<VoxelSampleDerivativesCpu<double>> voxel_sample_derivatives_double = {{
    {with_grad<double, 2, 2>, with_grad_points<double, 2, 2>, double_points<double, 2, 2>},
    {with_grad<double, 4, 2>, with_grad_points<double, 4, 2>, double_points<double, 4, 2>},
    {with_grad<double, 4, 4>, with_grad_points<double, 4, 4>, double_points<double, 4, 4>},
}};

}  // namespace mim4d::MIM4D_ISA

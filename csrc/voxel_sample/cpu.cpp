// Reading a volume at points, and the gradient of the points, on one instruction set.

#include "voxel_sample/cpu.h"

#include "voxel_sample/cpu_stencil.h"

namespace mim4d::MIM4D_ISA {
namespace {

template <class T, int K, int KZ>
void forward(const Params<T>& p, int64_t begin, int64_t end) {
  using S = Stencil<T, K, KZ>;
  for_blocks(p, begin, end, [&](int64_t i, int64_t item, int n) {
    S s;
    s.locate(p, i, n);
    s.prefetch(p, p.volume, item, n);
    Lanes<T> wx[K], wr[S::rows];
    for (int k = 0; k < K; ++k) wx[k] = s.x.w[k];
    for (int r = 0; r < S::rows; ++r) wr[r] = s.z.w[r / K] * s.y.w[r % K];
    for (int j = 0; j < n; ++j) {
      T* out = p.out + (i + j) * p.C;
      if (s.inside[j] == 0) {
        for_wide_row<T>(p.C, [&](int64_t c, auto lanes) { lanes.store(out + c, lanes.all(s.nothing.at[j])); });
        continue;
      }
      s.visit(j, [&]<bool whole>() {
        const T* row[S::rows];
        s.template find_rows<whole>(p, p.volume, item, j, row);
        Vec<T> w[K];
        for (int k = 0; k < K; ++k) w[k] = wx[k][j];
        for_wide_row<T>(p.C, [&](int64_t c, auto lanes) {
          auto sum = lanes.all(T(0));
          for (int r = 0; r < S::rows; ++r)
            if ((whole && K == 2) || row[r])
              sum = sum + wr[r][j] * along_x<whole>(lanes, row[r] + c, p.C, w, s.from[0][j], s.to[0][j]);
          lanes.store(out + c, sum);
        });
      });
    }
  });
}

template <class T, int K, int KZ>
void backward_points(const Params<T>& p, int64_t begin, int64_t end) {
  for_blocks(p, begin, end, [&](int64_t i, int64_t item, int n) {
    const T* grad = p.grad + i * p.C;
    Vec<T> slope[3] = {T(0), T(0), T(0)};
    Stencil<T, K, KZ> s;
    s.locate(p, i, n);
    TapProducts<T, K, KZ> products;
    products.set(p, s, p.volume, item, n, [&](int j, int64_t c, auto lanes) { return lanes.load(grad + j * p.C + c); });
    math::add_gradient(s.x, s.y, s.z, products, slope);
    store_slopes(p, i, n, s, slope);
  });
}

}  // namespace

extern const ByShape<VoxelSampleCpu<float>> voxel_sample_float = {{
    {forward<float, 2, 2>, backward_points<float, 2, 2>},
    {forward<float, 4, 2>, backward_points<float, 4, 2>},
    {forward<float, 4, 4>, backward_points<float, 4, 4>},
}};
extern const ByShape<VoxelSampleCpu<double>> voxel_sample_double = {{
    {forward<double, 2, 2>, backward_points<double, 2, 2>},
    {forward<double, 4, 2>, backward_points<double, 4, 2>},
    {forward<double, 4, 4>, backward_points<double, 4, 4>},
}};

}  // namespace mim4d::MIM4D_ISA

// The gradient of the volume, on one instruction set: every row of voxels gathers from the lists of points that touch
// it.

#include "voxel_sample/cpu.h"
#include "voxel_sample/cpu_stencil.h"

namespace mim4d::MIM4D_ISA {
namespace {

template <class T>
using Lists = PointLists<T>;

// f(list, point) for each point that touches the volume
template <int K, int KZ, class T, class F>
MIM4D_HD void for_listed_points(const Params<T>& p, const Lists<T>& lists, int64_t begin, int64_t end, F&& f) {
  for_blocks(p, begin, end, [&](int64_t i, int64_t item, int n) {
    Stencil<T, K, KZ> s;
    s.locate(p, i, n);
    for (int j = 0; j < n; ++j)
      if (s.inside[j] > 0) f(lists.number(p, item, s.first[2][j], s.first[1][j]), i + j);
  });
}

template <class T, int K, int KZ>
void count(const Params<T>& p, const Lists<T>& lists, int64_t begin, int64_t end, int64_t* counts) {
  for_listed_points<K, KZ>(p, lists, begin, end, [&](int64_t list, int64_t) { ++counts[list]; });
}

template <class T, int K, int KZ>
void place(const Params<T>& p, const Lists<T>& lists, int64_t begin, int64_t end, int64_t* cursor,
           ListedPoint<T>* listed) {
  for_listed_points<K, KZ>(p, lists, begin, end, [&](int64_t list, int64_t i) {
    listed[cursor[list]++] = {i, {p.points[3 * i], p.points[3 * i + 1], p.points[3 * i + 2]}};
  });
}

// A block of points of one list, whose taps have the row (iz, iy) of their stencils in common: along this row tap k
// adds x.w[k] * both + x.d[k] * (what the kernel has to say about slopes).
template <class T, int K, int KZ>
struct RowBlock {
  static constexpr int width = Vec<T>::width;

  math::Taps<Vec<T>, K> x;
  Vec<T> w, dy, dz;  // of the row: weight, and its derivatives by y and z
  alignas(64) int32_t first[width], from[width], to[width];

  MIM4D_HD void locate(const Params<T>& p, const ListedPoint<T>* points, int n, int iz, int iy) {
    Lanes<T> at[3] = {};
    for (int j = 0; j < n; ++j)
      for (int d = 0; d < 3; ++d) at[d].at[j] = points[j].coordinate[d];
    const bool smooth = p.mode == Mode::smoothstep;
    x = math::axis_taps<K>(at[0].all(), Vec<T>(T(p.X)), smooth, p.align, p.padding);
    const auto y = math::axis_taps<K>(at[1].all(), Vec<T>(T(p.Y)), smooth, p.align, p.padding);
    const auto z = math::axis_taps<KZ>(at[2].all(), Vec<T>(T(p.Z)), smooth, p.align, p.padding);
    w = z.w[iz] * y.w[iy], dy = z.w[iz] * y.d[iy], dz = z.d[iz] * y.w[iy];
    store_int(first, x.first), store_int(from, x.from), store_int(to, x.to);
  }

  // f(k) for each tap of point j that lies in the row
  template <class F>
  MIM4D_HD void for_taps(int j, F&& f) const {
    if (to[j] - from[j] == K) {
      MIM4D_UNROLL
      for (int k = 0; k < K; ++k) f(k);
    } else {
      for (int k = from[j]; k < to[j]; ++k) f(k);
    }
  }
};

// f(block, points of the block, n, row of voxels) for every block of points that adds to a row. Each row is written by
// one thread, from its lists in a fixed order: no atomics, and the same bits for any number of threads. Rows are
// numbered with z fastest, so that the gradients of a list are still in the cache for its other rows.
template <int K, int KZ, class T, class F>
MIM4D_HD void for_rows(const Params<T>& p, const Lists<T>& lists, int64_t begin, int64_t end, F&& f) {
  for (int64_t r = begin; r < end; ++r) {
    const int64_t z = r % p.Z, y = r / p.Z % p.Y, item = r / p.Z / p.Y;
    T* row = p.grad_volume + ((item * p.Z + z) * p.Y + y) * p.X * p.C;
    for_wide_row<T>(p.X * p.C, [&](int64_t c, auto lanes) { lanes.store(row + c, lanes.all(T(0))); });
    for (int iz = 0; iz < KZ; ++iz)
      for (int iy = 0; iy < K; ++iy) {
        const int64_t list = lists.number(p, item, z - iz, y - iy);
        const int64_t last = lists.start[list + 1];
        for (int64_t k = lists.start[list]; k < last; k += Vec<T>::width) {
          const int n = last - k < Vec<T>::width ? static_cast<int>(last - k) : Vec<T>::width;
          RowBlock<T, K, KZ> block;
          block.locate(p, lists.points + k, n, iz, iy);
          f(block, lists.points + k, n, row);
        }
      }
  }
}

// row of voxels += weight[k] x the gradient of the result, for each tap k
template <class T, int K, int KZ>
MIM4D_HD void add_points(const Params<T>& p, const RowBlock<T, K, KZ>& block, const Lanes<T> (&weight)[K],
                         const ListedPoint<T>* points, int n, T* row) {
  for (int j = 0; j < n; ++j) {
    const T* grad = p.grad + points[j].index * p.C;
    T* voxel = row + block.first[j] * p.C;
    for_wide_row<T>(p.C, [&](int64_t c, auto lanes) {
      const auto g = lanes.load(grad + c);
      block.for_taps(j, [&](int k) {
        T* at = voxel + k * p.C + c;
        lanes.store(at, lanes.load(at) + weight[k][j] * g);
      });
    });
  }
}

template <class T, int K, int KZ>
void backward_rows(const Params<T>& p, const Lists<T>& lists, int64_t begin, int64_t end) {
  for_rows<K, KZ>(p, lists, begin, end, [&](const auto& block, const ListedPoint<T>* points, int n, T* row) {
    Lanes<T> weight[K];
    for (int k = 0; k < K; ++k) weight[k] = block.w * block.x.w[k];
    add_points(p, block, weight, points, n, row);
  });
}

template <class T, int K, int KZ>
void double_rows(const Params<T>& p, const Lists<T>& lists, int64_t begin, int64_t end) {
  for_rows<K, KZ>(p, lists, begin, end, [&](const auto& block, const ListedPoint<T>* points, int n, T* row) {
    Lanes<T> q[3] = {}, weight[K];
    for (int j = 0; j < n; ++j)
      for (int d = 0; d < 3; ++d) q[d].at[j] = p.grad_grad_points[3 * points[j].index + d];
    const Vec<T> along_d = q[0].all() * block.w, along_w = q[1].all() * block.dy + q[2].all() * block.dz;
    for (int k = 0; k < K; ++k) weight[k] = along_d * block.x.d[k] + along_w * block.x.w[k];
    add_points(p, block, weight, points, n, row);
  });
}

template <class T, int K, int KZ>
void with_grad_rows(const Params<T>& p, const Lists<T>& lists, int64_t begin, int64_t end) {
  for_rows<K, KZ>(p, lists, begin, end, [&](const auto& block, const ListedPoint<T>* points, int n, T* row) {
    Lanes<T> w, dy, dz, wx[K], dx[K];
    w = block.w, dy = block.dy, dz = block.dz;
    for (int k = 0; k < K; ++k) wx[k] = block.x.w[k], dx[k] = block.x.d[k];
    for (int j = 0; j < n; ++j) {
      const int64_t first = points[j].index * p.C;
      T* voxel = row + block.first[j] * p.C;
      for_wide_row<T>(p.C, [&](int64_t c, auto lanes) {
        auto along_w = lanes.all(T(0)), along_d = along_w, gy = along_w, gz = along_w;
        if (p.grad_jacobian) {
          lanes.load_triples(p.grad_jacobian + (first + c) * 3, along_d, gy, gz);
          along_d = w[j] * along_d;
          along_w = dy[j] * gy + dz[j] * gz;
        }
        if (p.grad) along_w = along_w + w[j] * lanes.load(p.grad + first + c);
        block.for_taps(j, [&](int k) {
          T* at = voxel + k * p.C + c;
          lanes.store(at, lanes.load(at) + wx[k][j] * along_w + dx[k][j] * along_d);
        });
      });
    }
  });
}

}  // namespace

extern const ByShape<VoxelSampleVolumeCpu<float>> voxel_sample_volume_float = {{
    {count<float, 2, 2>, place<float, 2, 2>, backward_rows<float, 2, 2>, with_grad_rows<float, 2, 2>,
     double_rows<float, 2, 2>},
    {count<float, 4, 2>, place<float, 4, 2>, backward_rows<float, 4, 2>, with_grad_rows<float, 4, 2>,
     double_rows<float, 4, 2>},
    {count<float, 4, 4>, place<float, 4, 4>, backward_rows<float, 4, 4>, with_grad_rows<float, 4, 4>,
     double_rows<float, 4, 4>},
}};
extern const ByShape<VoxelSampleVolumeCpu<double>> voxel_sample_volume_double = {{
    {count<double, 2, 2>, place<double, 2, 2>, backward_rows<double, 2, 2>, with_grad_rows<double, 2, 2>,
     double_rows<double, 2, 2>},
    {count<double, 4, 2>, place<double, 4, 2>, backward_rows<double, 4, 2>, with_grad_rows<double, 4, 2>,
     double_rows<double, 4, 2>},
    {count<double, 4, 4>, place<double, 4, 4>, backward_rows<double, 4, 4>, with_grad_rows<double, 4, 4>,
     double_rows<double, 4, 4>},
}};

}  // namespace mim4d::MIM4D_ISA

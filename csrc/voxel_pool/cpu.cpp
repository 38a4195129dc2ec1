// Pooling on one instruction set: a cell sums the points that fall into it, a pixel gathers from the cells of its ray.
// Each result has one owner and a fixed order of its sum.

#include "voxel_pool/cpu.h"

#include "cpu/rows.h"
#include "cpu/tile.h"

namespace mim4d::MIM4D_ISA {
namespace {

template <class T>
using Params = VoxelPoolParams<T>;

template <class T>
void forward(const Params<T>& p, int64_t begin, int64_t end, T* out) {
  const int64_t count = p.count();
  for (int64_t cell = begin; cell < end; ++cell, out += p.C) {
    const int64_t first = p.starts[cell] > 0 ? p.starts[cell] : 0;
    const int64_t last = p.starts[cell + 1] < count ? p.starts[cell + 1] : count;
    for_widest_row<T>(p.C, [&](int64_t c, auto lanes) {
      auto sum = lanes.all(T(0));
      for (int64_t i = first; i < last; ++i) {
        const int32_t point = p.points[i];
        if (p.has(point)) sum = sum + Vec<T>(p.depth[point]) * lanes.load(p.features + p.pixel(point) * p.C + c);
      }
      lanes.store(out + c, sum);
    });
  }
}

template <class T>
void backward(const Params<T>& p, int64_t begin, int64_t end, T* scratch) {
  constexpr int width = Vec<T>::width;
  for (int64_t pixel = begin; pixel < end; ++pixel) {
    const int64_t camera = pixel / p.area, item = camera / p.N;
    const int64_t first = camera * p.D * p.area + (pixel - camera * p.area);  // its point in the first bin
    const T* volume = p.grad + item * p.volume * p.C;
    for (int64_t d = 0; d < p.D; ++d) scratch[d] = T(0);
    for_widest_row<T>(p.C, [&](int64_t c, auto lanes) {
      const auto feature = lanes.load(p.features + pixel * p.C + c);
      auto sum = lanes.all(T(0));
      for (int64_t bin = 0; bin < p.D; bin += width) {
        const int n = p.D - bin < width ? static_cast<int>(p.D - bin) : width;
        Vec<T> dot[width];
        for (int j = n; j < width; ++j) dot[j] = Vec<T>(T(0));
        for (int j = 0; j < n; ++j) {
          const int64_t point = first + (bin + j) * p.area;
          const int32_t cell = p.cells[point];
          dot[j] = Vec<T>(T(0));
          if (!p.keeps(cell)) continue;
          const auto grad = lanes.load(volume + cell * p.C + c);
          if (p.grad_features) sum = sum + Vec<T>(p.depth[point]) * grad;
          if (p.grad_depth) dot[j] = product(feature, grad);
        }
        if (p.grad_depth) {
          const Vec<T> dots = row_sums(dot);
          if (n == width)
            (Vec<T>::load(scratch + bin) + dots).store(scratch + bin);
          else
            store_first(scratch + bin, load_first(scratch + bin, n) + dots, n);
        }
      }
      if (p.grad_features) lanes.store(p.grad_features + pixel * p.C + c, sum);
    });
    if (p.grad_depth)
      for (int64_t d = 0; d < p.D; ++d) p.grad_depth[first + d * p.area] = scratch[d];
  }
}

}  // namespace

extern const VoxelPoolCpu<float> voxel_pool_float = {forward<float>, backward<float>};
extern const VoxelPoolCpu<double> voxel_pool_double = {forward<double>, backward<double>};

}  // namespace mim4d::MIM4D_ISA

#include <memory>
#include <tuple>
#include <vector>

#include "torch/counting_sort.h"
#include "torch/rows.h"
#include "torch/stable.h"
#include "voxel_pool/cpu.h"
#include "voxel_pool/op.h"

namespace mim4d {
namespace {

template <class T>
const VoxelPoolCpu<T>& kernels() {
  if constexpr (sizeof(T) == 4)
    return MIM4D_PICK_ISA(voxel_pool_float);
  else
    return MIM4D_PICK_ISA(voxel_pool_double);
}

template <class T>
VoxelPoolParams<T> params(const Tensor& features, const Tensor& cells, const std::vector<int64_t>& grid_shape) {
  VoxelPoolParams<T> p{};
  set_pool_sizes(p, cells, features, grid_shape);
  p.cells = data<int32_t>(cells);
  return p;
}

// A counting sort: the bins are the cells of all items, and one more for the dropped points.
std::tuple<Tensor, Tensor> build_pool_index_cpu(const Tensor& cells, std::vector<int64_t> grid_shape) {
  check_pool_cells("mim4d::build_pool_index", cells, grid_shape);
  const Tensor ordered = torch::stable::contiguous(cells);
  const int32_t* cell = data<int32_t>(ordered);
  const int64_t count = cells.numel(), volume = cells_of(grid_shape), rows = cells.size(0) * volume;
  const int64_t points_of_item = cells.size(0) ? count / cells.size(0) : 0;
  const Tensor points = torch::stable::new_empty(cells, {count}), starts = torch::stable::new_empty(cells, {rows + 1});
  // f(point, row) for the points of a range
  const auto walk = [&](int64_t begin, int64_t end, auto&& f) {
    for (int64_t i = begin; i < end;) {
      const int64_t item = i / points_of_item, stop = std::min(end, (item + 1) * points_of_item);
      for (; i < stop; ++i)
        f(i, static_cast<uint32_t>(cell[i]) < static_cast<uint32_t>(volume) ? item * volume + cell[i] : rows);
    }
  };
  CountingSort sort(count, rows + 1, [&](int64_t begin, int64_t end, int64_t* counts) {
    walk(begin, end, [&](int64_t, int64_t row) { ++counts[row]; });
  });
  int32_t* sorted = mutable_data<int32_t>(points);
  sort.place([&](int64_t begin, int64_t end, int64_t* cursors) {
    walk(begin, end, [&](int64_t i, int64_t row) { sorted[cursors[row]++] = static_cast<int32_t>(i); });
  });
  std::copy(sort.start().begin(), sort.start().end() - 1, mutable_data<int32_t>(starts));
  return {points, starts};
}

Tensor voxel_pool_cpu(const Tensor& depth_probs, const Tensor& features, const Tensor& cells, const Tensor& points,
                      const Tensor& starts, std::vector<int64_t> grid_shape) {
  check_voxel_pool(depth_probs, features, cells, points, starts, grid_shape);
  const ScalarType wide = pool_arithmetic(depth_probs, features);
  const Tensor depth = torch::stable::contiguous(cast(depth_probs, wide));
  const Tensor pixels = rows(cast(features, wide), 2);
  const Tensor order = torch::stable::contiguous(points), begins = torch::stable::contiguous(starts);
  const Tensor out = empty_pooled(features, grid_shape, features.scalar_type());
  dispatch_floating("voxel_pool", wide, [&]<class T>() {
    auto p = params<T>(features, cells, grid_shape);
    p.depth = data<T>(depth), p.features = data<T>(pixels);
    p.points = data<int32_t>(order), p.starts = data<int32_t>(begins);
    // Cells differ in work: the range that is shared out is that of the work, a cell goes to who has its beginning.
    const auto work = [&](int64_t cell) { return p.starts[cell] + cell; };  // an empty cell costs about half a point
    for_slabs<T>(out, p.rows(), p.C, wide, [&](int64_t first, int64_t last, T* to) {
      const auto cell_at = [&](int64_t wanted) {
        int64_t low = first, high = last;
        while (low < high) {
          const int64_t middle = low + (high - low) / 2;
          if (work(middle) < wanted)
            low = middle + 1;
          else
            high = middle;
        }
        return low;
      };
      torch::stable::parallel_for(work(first), work(last), 512, [&](int64_t begin, int64_t end) {
        const int64_t from = begin == work(first) ? first : cell_at(begin);
        const int64_t until = end == work(last) ? last : cell_at(end);
        kernels<T>().forward(p, from, until, to + (from - first) * p.C);
      });
    });
  });
  return out;
}

std::tuple<Tensor, Tensor> voxel_pool_backward_cpu(const Tensor& grad, const Tensor& depth_probs,
                                                   const Tensor& features, const Tensor& cells, const Tensor& points,
                                                   const Tensor& starts, std::vector<int64_t> grid_shape,
                                                   std::vector<bool> mask) {
  check_voxel_pool(depth_probs, features, cells, points, starts, grid_shape);
  check_voxel_pool_grad(grad, features, grid_shape);
  const ScalarType wide = pool_arithmetic(depth_probs, features);
  const Tensor depth = torch::stable::contiguous(cast(depth_probs, wide));
  const Tensor feature = cast(features, wide), pixels = rows(feature, 2);
  const Tensor volume = rows(cast(grad, wide), 1), where = torch::stable::contiguous(cells);
  const Tensor grad_depth = mask[0] ? torch::stable::new_empty(depth, depth.sizes()) : not_wanted(depth);
  const Tensor grad_pixels = mask[1] ? torch::stable::new_empty(feature, {features.numel()}) : not_wanted(feature);
  dispatch_floating("voxel_pool_backward", wide, [&]<class T>() {
    auto p = params<T>(features, where, grid_shape);
    p.depth = data<T>(depth), p.features = data<T>(pixels), p.grad = data<T>(volume);
    p.grad_depth = mask[0] ? mutable_data<T>(grad_depth) : nullptr;
    p.grad_features = mask[1] ? mutable_data<T>(grad_pixels) : nullptr;
    if (mask[0] || mask[1])
      torch::stable::parallel_for(0, p.pixels(), 16, [&](int64_t begin, int64_t end) {
        const auto scratch = std::make_unique_for_overwrite<T[]>(p.D);
        kernels<T>().backward(p, begin, end, scratch.get());
      });
  });
  const Tensor grad_features = mask[1] ? from_rows(grad_pixels, feature, 2) : grad_pixels;
  return {cast(grad_depth, depth_probs.scalar_type()), cast(grad_features, features.scalar_type())};
}

}  // namespace
}  // namespace mim4d

STABLE_TORCH_LIBRARY_IMPL(mim4d, CPU, m) {
  m.impl("build_pool_index", TORCH_BOX(&mim4d::build_pool_index_cpu));
  m.impl("voxel_pool", TORCH_BOX(&mim4d::voxel_pool_cpu));
  m.impl("voxel_pool_backward", TORCH_BOX(&mim4d::voxel_pool_backward_cpu));
}

#include <tuple>
#include <vector>

#include "torch/cuda.h"
#include "torch/rows_cuda.h"
#include "torch/stable.h"
#include "voxel_pool/cuda.h"
#include "voxel_pool/op.h"

namespace mim4d {
namespace {

// The dtype in memory of features and volume: their own, unless the depth weights are wider than the arithmetic of it.
ScalarType pool_storage(const Tensor& features, ScalarType wide) {
  return wide == ScalarType::Double ? wide : features.scalar_type();
}

template <class S, class T>
VoxelPoolParams<S, T> params(const Tensor& features, const Tensor& cells, const std::vector<int64_t>& grid_shape) {
  VoxelPoolParams<S, T> p{};
  set_pool_sizes(p, cells, features, grid_shape);
  p.cells = data<int32_t>(cells);
  return p;
}

// The keys are sorted by torch: a stable radix sort on the device.
std::tuple<Tensor, Tensor> build_pool_index_cuda(const Tensor& cells, std::vector<int64_t> grid_shape) {
  constexpr const char* op = "build_pool_index";
  check_pool_cells("mim4d::build_pool_index", cells, grid_shape);
  const DeviceGuard guard(cells.get_device_index());
  const cudaStream_t stream = current_stream(cells);
  const int64_t B = cells.size(0), volume = cells_of(grid_shape), rows = B * volume, count = cells.numel();
  const Tensor given = torch::stable::contiguous(cells), keys = torch::stable::new_empty(cells, {count});
  const Tensor points = torch::stable::new_empty(cells, {count}), starts = torch::stable::new_empty(cells, {rows + 1});
  PoolIndexParams p{};
  p.cells = data<int32_t>(given), p.key = mutable_data<int32_t>(keys);
  p.count = count, p.rows = rows, p.volume = volume, p.points_of_item = B ? count / B : 0;
  check_launch(op, launch_pool_index_keys(p, stream));
  const auto [sorted, order] = stable_sort(keys);
  p.sorted = data<int32_t>(sorted), p.order = data<int64_t>(order);
  p.points = mutable_data<int32_t>(points), p.starts = mutable_data<int32_t>(starts);
  check_launch(op, launch_pool_index_starts(p, stream));
  return {points, starts};
}

Tensor voxel_pool_cuda(const Tensor& depth_probs, const Tensor& features, const Tensor& cells, const Tensor& points,
                       const Tensor& starts, std::vector<int64_t> grid_shape) {
  check_voxel_pool(depth_probs, features, cells, points, starts, grid_shape);
  const DeviceGuard guard(features.get_device_index());
  const ScalarType wide = pool_arithmetic(depth_probs, features), stored = pool_storage(features, wide);
  const Tensor depth = torch::stable::contiguous(cast(depth_probs, wide));
  const Tensor pixels = pixel_rows(cast(features, stored));
  const Tensor order = torch::stable::contiguous(points), begins = torch::stable::contiguous(starts);
  const Tensor out = empty_pooled(features, grid_shape, stored);
  dispatch_storage("voxel_pool", stored, [&]<class S, class T>() {
    auto p = params<S, T>(features, cells, grid_shape);
    p.depth = data<T>(depth), p.features = data<S>(pixels), p.out = mutable_data<S>(out);
    p.points = data<int32_t>(order), p.starts = data<int32_t>(begins);
    check_launch("voxel_pool", launch_voxel_pool_forward(p, current_stream(features)));
  });
  return cast(out, features.scalar_type());
}

std::tuple<Tensor, Tensor> voxel_pool_backward_cuda(const Tensor& grad, const Tensor& depth_probs,
                                                    const Tensor& features, const Tensor& cells, const Tensor& points,
                                                    const Tensor& starts, std::vector<int64_t> grid_shape,
                                                    std::vector<bool> mask) {
  check_voxel_pool(depth_probs, features, cells, points, starts, grid_shape);
  check_voxel_pool_grad(grad, features, grid_shape);
  if (!mask[0] && !mask[1]) return {not_wanted(depth_probs), not_wanted(features)};
  const DeviceGuard guard(features.get_device_index());
  const ScalarType wide = pool_arithmetic(depth_probs, features), stored = pool_storage(features, wide);
  const Tensor depth = torch::stable::contiguous(cast(depth_probs, wide));
  const Tensor pixels = pixel_rows(cast(features, stored));
  const Tensor volume = volume_rows(cast(grad, stored)), where = torch::stable::contiguous(cells);
  const Tensor grad_depth = mask[0] ? torch::stable::new_empty(depth, depth.sizes()) : not_wanted(depth);
  const Tensor grad_pixels = mask[1] ? empty_pixel_rows(features, stored) : not_wanted(features);
  dispatch_storage("voxel_pool_backward", stored, [&]<class S, class T>() {
    auto p = params<S, T>(features, where, grid_shape);
    p.depth = data<T>(depth), p.features = data<S>(pixels), p.grad = data<S>(volume);
    p.grad_depth = mask[0] ? mutable_data<T>(grad_depth) : nullptr;
    p.grad_features = mask[1] ? mutable_data<S>(grad_pixels) : nullptr;
    check_launch("voxel_pool_backward", launch_voxel_pool_backward(p, current_stream(features)));
  });
  const Tensor grad_features = mask[1] ? from_pixel_rows(grad_pixels, features) : grad_pixels;
  return {cast(grad_depth, depth_probs.scalar_type()), cast(grad_features, features.scalar_type())};
}

}  // namespace
}  // namespace mim4d

MIM4D_CUDA_IMPL(m) {
  m.impl("build_pool_index", TORCH_BOX(&mim4d::build_pool_index_cuda));
  m.impl("voxel_pool", TORCH_BOX(&mim4d::voxel_pool_cuda));
  m.impl("voxel_pool_backward", TORCH_BOX(&mim4d::voxel_pool_backward_cuda));
}

#pragma once
// What op_cpu.cpp and op_cuda.cpp share: the checks behind those of the Python wrapper, and the sizes of the kernels'
// params.

#include <algorithm>
#include <limits>
#include <vector>

#include "torch/stable.h"
#include "voxel_pool/params.h"

namespace mim4d {

inline int64_t cells_of(const std::vector<int64_t>& grid_shape) {
  return grid_shape[0] * grid_shape[1] * grid_shape[2];
}

inline void check_pool_cells(const char* op, const Tensor& cells, const std::vector<int64_t>& grid_shape) {
  STD_TORCH_CHECK(cells.dim() == 5, op, ": cells has ", cells.dim(), " dimensions, wanted (B, N, D, H, W)");
  STD_TORCH_CHECK(cells.scalar_type() == ScalarType::Int, op, ": cells is ",
                  torch::headeronly::toString(cells.scalar_type()), ", wanted Int");
  STD_TORCH_CHECK(grid_shape.size() == 3, op, ": grid_shape has ", grid_shape.size(), " sizes, wanted (Z, Y, X)");
  constexpr int64_t limit = std::numeric_limits<int32_t>::max();  // points and rows are counted in int32
  int64_t rows = std::max<int64_t>(cells.size(0), 1);
  for (const int64_t size : grid_shape) {
    STD_TORCH_CHECK(size >= 1 && size < limit, op, ": grid_shape holds ", size, ", wanted 1 to 2^31 - 2");
    STD_TORCH_CHECK(rows < limit / size, op, ": too many cells, wanted fewer than 2^31 in all items");
    rows *= size;
  }
  STD_TORCH_CHECK(cells.numel() < limit, op, ": cells has ", cells.numel(), " points, wanted fewer than 2^31");
}

inline void check_voxel_pool(const Tensor& depth_probs, const Tensor& features, const Tensor& cells,
                             const Tensor& points, const Tensor& starts, const std::vector<int64_t>& grid_shape) {
  constexpr const char* op = "mim4d::voxel_pool";
  check_pool_cells(op, cells, grid_shape);
  STD_TORCH_CHECK(
      std::equal(depth_probs.sizes().begin(), depth_probs.sizes().end(), cells.sizes().begin(), cells.sizes().end()),
      op, ": depth_probs and cells have different shapes, wanted (B, N, D, H, W) of both");
  STD_TORCH_CHECK(features.dim() == 5, op, ": features has ", features.dim(), " dimensions, wanted (B, N, C, H, W)");
  for (const int d : {0, 1, 3, 4})
    STD_TORCH_CHECK(features.size(d) == cells.size(d), op, ": features has size ", features.size(d), " in dimension ",
                    d, ", wanted ", cells.size(d), " as depth_probs");
  const int64_t rows = cells.size(0) * cells_of(grid_shape);
  for (const Tensor* index : {&points, &starts})
    STD_TORCH_CHECK(index->dim() == 1 && index->scalar_type() == ScalarType::Int, op,
                    ": points and starts are vectors of int32, as mim4d::build_pool_index gives them");
  STD_TORCH_CHECK(points.numel() == cells.numel() && starts.numel() == rows + 1, op, ": points and starts have ",
                  points.numel(), " and ", starts.numel(), " entries, wanted ", cells.numel(), " and ", rows + 1);
  for (const Tensor* t : {&features, &cells, &points, &starts})
    STD_TORCH_CHECK(t->device() == depth_probs.device(), op, ": the arguments are on different devices");
}

inline void check_voxel_pool_grad(const Tensor& grad, const Tensor& features, const std::vector<int64_t>& grid_shape) {
  constexpr const char* op = "mim4d::voxel_pool_backward";
  const std::vector<int64_t> shape = {features.size(0), features.size(2), grid_shape[0], grid_shape[1], grid_shape[2]};
  STD_TORCH_CHECK(std::equal(shape.begin(), shape.end(), grad.sizes().begin(), grad.sizes().end()), op,
                  ": grad has not the shape of the result");
  STD_TORCH_CHECK(grad.scalar_type() == features.scalar_type(), op, ": grad is ",
                  torch::headeronly::toString(grad.scalar_type()), ", wanted ",
                  torch::headeronly::toString(features.scalar_type()));
  STD_TORCH_CHECK(grad.device() == features.device(), op, ": grad and features are on different devices");
}

// Sums are kept in the wider of both dtypes, at least float32.
inline ScalarType pool_arithmetic(const Tensor& depth_probs, const Tensor& features) {
  const bool wide = depth_probs.scalar_type() == ScalarType::Double || features.scalar_type() == ScalarType::Double;
  return wide ? ScalarType::Double : ScalarType::Float;
}

// An uninitialised result (B, C, Z, Y, X) that lies channels last.
inline Tensor empty_pooled(const Tensor& features, const std::vector<int64_t>& grid_shape, ScalarType dtype) {
  const std::vector<int64_t> shape = {features.size(0), features.size(2), grid_shape[0], grid_shape[1], grid_shape[2]};
  return torch::stable::empty(shape, dtype, std::nullopt, features.device(), std::nullopt,
                              MemoryFormat::ChannelsLast3d);
}

template <class P>
void set_pool_sizes(P& p, const Tensor& cells, const Tensor& features, const std::vector<int64_t>& grid_shape) {
  p.B = cells.size(0), p.N = cells.size(1), p.D = cells.size(2), p.area = cells.size(3) * cells.size(4);
  p.C = features.size(2), p.volume = cells_of(grid_shape);
  p.by_area = math::Divider(p.area), p.by_D = math::Divider(p.D);
}

}  // namespace mim4d

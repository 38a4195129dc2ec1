#pragma once
// What op_cpu.cpp and op_cuda.cpp share: the checks behind those of the Python wrapper, and the sizes of the kernels'
// params.

#include <algorithm>
#include <optional>
#include <vector>

#include "math/modes.h"
#include "torch/stable.h"
#include "voxel_sample/params.h"

namespace mim4d {

// The options as the kernels take them, of a call that is right.
inline VoxelSampleOptions check_voxel_sample(const Tensor& volume, const Tensor& points, int64_t mode, int64_t padding,
                                             bool align) {
  constexpr const char* op = "mim4d::voxel_sample";
  STD_TORCH_CHECK(volume.dim() == 5, op, ": volume has ", volume.dim(), " dimensions, wanted (B, C, Z, Y, X)");
  STD_TORCH_CHECK(points.dim() >= 2 && points.size(-1) == 3 && points.size(0) == volume.size(0), op,
                  ": points has the wrong shape, wanted (B, ..., 3) with the volume's B = ", volume.size(0));
  STD_TORCH_CHECK(volume.device() == points.device(), op, ": volume and points are on different devices");
  const ScalarType wanted = volume.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  STD_TORCH_CHECK(points.scalar_type() == wanted, op, ": points is ", torch::headeronly::toString(points.scalar_type()),
                  ", wanted ", torch::headeronly::toString(wanted));
  STD_TORCH_CHECK(mode >= int64_t(Mode::trilinear) && mode <= int64_t(Mode::tricubic), op, ": mode ", mode,
                  ", wanted 0 (trilinear) to 3 (tricubic)");
  STD_TORCH_CHECK(padding == int64_t(Padding::zeros) || padding == int64_t(Padding::border), op, ": padding_mode ",
                  padding, ", wanted 0 (zeros) or 1 (border)");
  for (int d = 2; d < 5; ++d)  // a position in cells must be exact in float32
    STD_TORCH_CHECK(volume.size(d) >= 1 && volume.size(d) < (1 << 24), op, ": volume has ", volume.size(d),
                    " voxels along dimension ", d, ", wanted 1 to 2^24 - 1");
  return {static_cast<Mode>(mode), static_cast<Padding>(padding), align};
}

// (B, ..., 3) -> (B, ..., C)
inline std::vector<int64_t> voxel_sample_shape(const Tensor& volume, const Tensor& points) {
  std::vector<int64_t> shape(points.sizes().begin(), points.sizes().end());
  shape.back() = volume.size(1);
  return shape;
}

// A cotangent `grad` of something with this shape.
template <class Shape>
void check_cotangent(const char* name, const Tensor& grad, const Shape& shape, const char* of, const Tensor& like) {
  constexpr const char* op = "mim4d::voxel_sample_backward";
  STD_TORCH_CHECK(std::equal(shape.begin(), shape.end(), grad.sizes().begin(), grad.sizes().end()), op, ": ", name,
                  " has not the shape of ", of);
  STD_TORCH_CHECK(grad.scalar_type() == like.scalar_type(), op, ": ", name, " is ",
                  torch::headeronly::toString(grad.scalar_type()), ", wanted ",
                  torch::headeronly::toString(like.scalar_type()));
  STD_TORCH_CHECK(grad.device() == like.device(), op, ": ", name, " and volume are on different devices");
}

inline void check_voxel_sample_grad(const Tensor& grad, const Tensor& volume, const Tensor& points) {
  check_cotangent("grad", grad, voxel_sample_shape(volume, points), "the result", volume);
}

// Those of voxel_sample_double_backward.
inline void check_voxel_sample_grads(const std::optional<Tensor>& grad_grad_volume,
                                     const std::optional<Tensor>& grad_grad_points, const Tensor& grad,
                                     const Tensor& volume, const Tensor& points) {
  check_voxel_sample_grad(grad, volume, points);
  if (grad_grad_volume) check_cotangent("grad_grad_volume", *grad_grad_volume, volume.sizes(), "volume", volume);
  if (grad_grad_points) check_cotangent("grad_grad_points", *grad_grad_points, points.sizes(), "points", points);
}

// Those of voxel_sample_with_grad_backward.
inline void check_with_grad_grads(const std::optional<Tensor>& grad_features,
                                  const std::optional<Tensor>& grad_jacobian, const Tensor& volume,
                                  const Tensor& points) {
  std::vector<int64_t> shape = voxel_sample_shape(volume, points);
  if (grad_features) check_cotangent("grad_features", *grad_features, shape, "the features", volume);
  shape.push_back(3);
  if (grad_jacobian) check_cotangent("grad_jacobian", *grad_jacobian, shape, "the Jacobian", volume);
}

// The params of a call, without its pointers.
template <class S, class T = S>
VoxelSampleParams<S, T> voxel_sample_params(const Tensor& volume, const Tensor& points,
                                            const VoxelSampleOptions& options) {
  VoxelSampleParams<S, T> p{};
  static_cast<VoxelSampleOptions&>(p) = options;
  p.B = volume.size(0), p.C = volume.size(1), p.Z = volume.size(2), p.Y = volume.size(3), p.X = volume.size(4);
  p.N = p.B == 0 ? 0 : points.numel() / 3 / p.B;
  return p;
}

}  // namespace mim4d

#pragma once
// What op_cpu.cpp and op_cuda.cpp share: the checks behind those of the Python wrapper, and the sizes of the kernels'
// params.

#include <algorithm>
#include <vector>

#include "math/modes.h"
#include "torch/stable.h"
#include "voxel_sample/params.h"

namespace mim4d {

struct VoxelSampleOptions {
  int64_t mode;
  int64_t padding;
  bool align;
};

inline void check_voxel_sample(const Tensor& volume, const Tensor& points, const VoxelSampleOptions& options) {
  constexpr const char* op = "mim4d::voxel_sample";
  STD_TORCH_CHECK(volume.dim() == 5, op, ": volume has ", volume.dim(), " dimensions, wanted (B, C, Z, Y, X)");
  STD_TORCH_CHECK(points.dim() >= 2 && points.size(-1) == 3 && points.size(0) == volume.size(0), op,
                  ": points has the wrong shape, wanted (B, ..., 3) with the volume's B = ", volume.size(0));
  STD_TORCH_CHECK(volume.device() == points.device(), op, ": volume and points are on different devices");
  const ScalarType wanted = volume.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  STD_TORCH_CHECK(points.scalar_type() == wanted, op, ": points is ", torch::headeronly::toString(points.scalar_type()),
                  ", wanted ", torch::headeronly::toString(wanted));
  STD_TORCH_CHECK(options.mode == int64_t(Mode::trilinear), op, ": this kernel reads trilinear alone, got mode ",
                  options.mode, "; mim4d.ops.voxel_sample chooses a backend that can");
  STD_TORCH_CHECK(options.padding == int64_t(Padding::zeros) || options.padding == int64_t(Padding::border), op,
                  ": padding_mode ", options.padding, ", wanted 0 (zeros) or 1 (border)");
  for (int d = 2; d < 5; ++d)  // a position in cells must be exact in float32
    STD_TORCH_CHECK(volume.size(d) >= 1 && volume.size(d) < (1 << 24), op, ": volume has ", volume.size(d),
                    " voxels along dimension ", d, ", wanted 1 to 2^24 - 1");
}

// (B, ..., 3) -> (B, ..., C)
inline std::vector<int64_t> voxel_sample_shape(const Tensor& volume, const Tensor& points) {
  std::vector<int64_t> shape(points.sizes().begin(), points.sizes().end());
  shape.back() = volume.size(1);
  return shape;
}

inline void check_voxel_sample_grad(const Tensor& grad, const Tensor& volume, const Tensor& points) {
  constexpr const char* op = "mim4d::voxel_sample_backward";
  const std::vector<int64_t> shape = voxel_sample_shape(volume, points);
  STD_TORCH_CHECK(std::equal(shape.begin(), shape.end(), grad.sizes().begin(), grad.sizes().end()), op,
                  ": grad has not the shape of the result");
  STD_TORCH_CHECK(grad.scalar_type() == volume.scalar_type(), op, ": grad is ",
                  torch::headeronly::toString(grad.scalar_type()), ", wanted ",
                  torch::headeronly::toString(volume.scalar_type()));
  STD_TORCH_CHECK(grad.device() == volume.device(), op, ": grad and volume are on different devices");
}

template <class S, class T>
VoxelSampleParams<S, T> voxel_sample_params(const Tensor& volume, const Tensor& points,
                                            const VoxelSampleOptions& options) {
  VoxelSampleParams<S, T> p{};
  p.B = volume.size(0), p.C = volume.size(1), p.Z = volume.size(2), p.Y = volume.size(3), p.X = volume.size(4);
  p.N = p.B == 0 ? 0 : points.numel() / 3 / p.B;
  p.padding = static_cast<Padding>(options.padding);
  p.align = options.align;
  return p;
}

}  // namespace mim4d

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

inline void check_voxel_sample(const Tensor& volume, const Tensor& points, const VoxelSampleOptions& options,
                               Mode last_mode) {
  constexpr const char* op = "mim4d::voxel_sample";
  STD_TORCH_CHECK(volume.dim() == 5, op, ": volume has ", volume.dim(), " dimensions, wanted (B, C, Z, Y, X)");
  STD_TORCH_CHECK(points.dim() >= 2 && points.size(-1) == 3 && points.size(0) == volume.size(0), op,
                  ": points has the wrong shape, wanted (B, ..., 3) with the volume's B = ", volume.size(0));
  STD_TORCH_CHECK(volume.device() == points.device(), op, ": volume and points are on different devices");
  const ScalarType wanted = volume.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  STD_TORCH_CHECK(points.scalar_type() == wanted, op, ": points is ", torch::headeronly::toString(points.scalar_type()),
                  ", wanted ", torch::headeronly::toString(wanted));
  STD_TORCH_CHECK(options.mode >= int64_t(Mode::trilinear) && options.mode <= int64_t(last_mode), op, ": mode ",
                  options.mode, ", and this kernel reads modes up to ", int64_t(last_mode),
                  "; mim4d.ops.voxel_sample chooses a backend that can");
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

template <class P>
void set_sizes(P& p, const Tensor& volume, const Tensor& points, const VoxelSampleOptions& options) {
  p.B = volume.size(0), p.C = volume.size(1), p.Z = volume.size(2), p.Y = volume.size(3), p.X = volume.size(4);
  p.N = p.B == 0 ? 0 : points.numel() / 3 / p.B;
  p.padding = static_cast<Padding>(options.padding);
  p.align = options.align;
}

}  // namespace mim4d

#pragma once
// What op_cpu.cpp and op_cuda.cpp share: the checks behind those of the Python wrapper, and the sizes of the kernels'
// params.

#include <algorithm>
#include <vector>

#include "torch/stable.h"
#include "voxel_pull/params.h"

namespace mim4d {

inline void check_voxel_pull(const std::vector<Tensor>& features, const std::vector<Tensor>& depth_probs,
                             const Tensor& uvd) {
  constexpr const char* op = "mim4d::voxel_pull";
  STD_TORCH_CHECK(!features.empty() && features.size() == depth_probs.size(), op, ": features and depth_probs have ",
                  features.size(), " and ", depth_probs.size(), " levels, wanted as many, at least 1");
  STD_TORCH_CHECK(uvd.dim() == 4 && uvd.size(3) == 3, op, ": uvd has the wrong shape, wanted (B, N, V, 3)");
  const ScalarType stored = features[0].scalar_type();
  const ScalarType wanted = stored == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  STD_TORCH_CHECK(uvd.scalar_type() == wanted, op, ": uvd is ", torch::headeronly::toString(uvd.scalar_type()),
                  ", wanted ", torch::headeronly::toString(wanted));
  for (size_t l = 0; l < features.size(); ++l) {
    const Tensor &image = features[l], &depth = depth_probs[l];
    STD_TORCH_CHECK(image.dim() == 5 && depth.dim() == 5, op,
                    ": wanted features (B, N, C, H, W) and depth_probs (B, N, D, H, W), level ", l);
    for (const int d : {0, 1}) {
      STD_TORCH_CHECK(image.size(d) == uvd.size(d) && depth.size(d) == uvd.size(d), op, ": level ", l, " has sizes ",
                      image.size(d), " and ", depth.size(d), " in dimension ", d, ", wanted ", uvd.size(d), " as uvd");
    }
    STD_TORCH_CHECK(image.size(2) == features[0].size(2) && depth.size(2) == depth_probs[0].size(2), op,
                    ": all levels have as many channels and as many bins; level ", l, " does not");
    for (const int d : {2, 3, 4})  // a position in cells must be exact in float32
      STD_TORCH_CHECK(depth.size(d) >= 1 && depth.size(d) < (1 << 24) && (d == 2 || depth.size(d) == image.size(d)), op,
                      ": depth_probs of level ", l, " has size ", depth.size(d), " in dimension ", d,
                      ", wanted 1 to 2^24 - 1 and pixels as many as features has");
    STD_TORCH_CHECK(image.scalar_type() == stored, op, ": features of level ", l, " have another dtype than level 0");
    STD_TORCH_CHECK(depth.scalar_type() != ScalarType::Double || wanted == ScalarType::Double, op,
                    ": depth_probs is Double, and features are not");
    STD_TORCH_CHECK(image.device() == uvd.device() && depth.device() == uvd.device(), op, ": level ", l,
                    " and uvd are on different devices");
  }
}

inline void check_voxel_pull_grad(const Tensor& grad, const Tensor& features, const Tensor& uvd) {
  constexpr const char* op = "mim4d::voxel_pull_backward";
  STD_TORCH_CHECK(
      grad.dim() == 3 && grad.size(0) == uvd.size(0) && grad.size(1) == features.size(2) && grad.size(2) == uvd.size(2),
      op, ": grad has not the shape of the result, (B, C, V)");
  STD_TORCH_CHECK(grad.scalar_type() == features.scalar_type(), op, ": grad is ",
                  torch::headeronly::toString(grad.scalar_type()), ", wanted ",
                  torch::headeronly::toString(features.scalar_type()));
  STD_TORCH_CHECK(grad.device() == features.device(), op, ": grad and features are on different devices");
}

template <class P>
void set_pull_sizes(P& p, const std::vector<Tensor>& features, const std::vector<Tensor>& depth_probs,
                    const Tensor& uvd) {
  p.B = uvd.size(0), p.N = uvd.size(1), p.V = uvd.size(2), p.C = features[0].size(2), p.D = depth_probs[0].size(2);
  p.levels = static_cast<int64_t>(features.size());
}

// An uninitialised (B, C, V) that is stored as (B, V, C).
inline Tensor empty_pulled(const Tensor& features, const Tensor& uvd, ScalarType dtype) {
  const Tensor rows = torch::stable::new_empty(features, {uvd.size(0), uvd.size(2), features.size(2)}, dtype);
  return torch::stable::transpose(rows, 1, 2);
}

}  // namespace mim4d

#include <memory>
#include <tuple>
#include <vector>

#include "torch/rows.h"
#include "torch/stable.h"
#include "voxel_pull/cpu.h"
#include "voxel_pull/op.h"

namespace mim4d {
namespace {

using Tensors = std::vector<Tensor>;

template <class T>
const VoxelPullCpu<T>& kernels() {
  if constexpr (sizeof(T) == 4)
    return MIM4D_PICK_ISA(voxel_pull_float);
  else
    return MIM4D_PICK_ISA(voxel_pull_double);
}

// The levels in the dtype of the arithmetic, features as rows of channels.
struct Maps {
  Tensors features, depth;

  Maps(const Tensors& features_, const Tensors& depth_probs, ScalarType wide) {
    for (const Tensor& t : features_) features.push_back(rows(cast(t, wide), 2));
    for (const Tensor& t : depth_probs) depth.push_back(torch::stable::contiguous(cast(t, wide)));
  }
  template <class T>
  std::vector<VoxelPullLevel<T>> levels() const {
    std::vector<VoxelPullLevel<T>> levels;
    for (size_t l = 0; l < features.size(); ++l)
      levels.push_back({data<T>(features[l]), data<T>(depth[l]), nullptr, nullptr, depth[l].size(3), depth[l].size(4)});
    return levels;
  }
};

Tensor voxel_pull_cpu(Tensors features, Tensors depth_probs, const Tensor& uvd) {
  check_voxel_pull(features, depth_probs, uvd);
  const ScalarType wide = uvd.scalar_type();
  const Maps maps(features, depth_probs, wide);
  const Tensor places = torch::stable::contiguous(uvd), out = empty_pulled(features[0], uvd, features[0].scalar_type());
  dispatch_floating("voxel_pull", wide, [&]<class T>() {
    const auto levels = maps.levels<T>();
    VoxelPullCpuParams<T> p{};
    set_pull_sizes(p, features, depth_probs, uvd);
    p.level = levels.data(), p.uvd = data<T>(places);
    for_slabs<T>(out, p.B * p.V, p.C, wide, [&](int64_t first, int64_t last, T* to) {
      torch::stable::parallel_for(first, last, 256, [&](int64_t begin, int64_t end) {
        const auto& run = kernels<T>();
        const auto scratch = std::make_unique_for_overwrite<PulledRow<T>[]>(run.block * p.N * p.levels * 4);
        run.forward(p, begin, end, to + (begin - first) * p.C, scratch.get());
      });
    });
  });
  return out;
}

// Enough bands for all threads: several for each of them, for they differ in work.
std::vector<PullBand> bands_of(const Tensors& depth_probs) {
  const int64_t cameras = depth_probs[0].size(0) * depth_probs[0].size(1);
  const int64_t maps = cameras * static_cast<int64_t>(depth_probs.size()), threads = torch::stable::get_num_threads();
  const int64_t wanted = threads == 1 || maps == 0 ? 1 : (4 * threads + maps - 1) / maps;
  std::vector<PullBand> bands;
  for (size_t l = 0; l < depth_probs.size(); ++l) {
    const int64_t H = depth_probs[l].size(3), height = std::max<int64_t>((H + wanted - 1) / wanted, 4);
    for (int64_t camera = 0; camera < cameras; ++camera)
      for (int64_t y = 0; y < H; y += height)
        bands.push_back({camera, static_cast<int64_t>(l), y, std::min(y + height, H)});
  }
  return bands;
}

std::tuple<Tensors, Tensors, Tensor> voxel_pull_backward_cpu(const Tensor& grad, Tensors features, Tensors depth_probs,
                                                             const Tensor& uvd, std::vector<bool> mask) {
  check_voxel_pull(features, depth_probs, uvd);
  check_voxel_pull_grad(grad, features[0], uvd);
  const ScalarType wide = uvd.scalar_type(), stored = features[0].scalar_type();
  const Maps maps(features, depth_probs, wide);
  const Tensor places = torch::stable::contiguous(uvd), cotangent = rows(cast(grad, wide), 1);
  const Tensor grad_uvd = mask[2] ? torch::stable::new_empty(uvd, uvd.sizes()) : not_wanted(uvd);
  Tensors grad_features, grad_depth;
  for (size_t l = 0; l < features.size(); ++l) {
    grad_features.push_back(mask[0] ? torch::stable::new_empty(uvd, {features[l].numel()}) : not_wanted(features[l]));
    grad_depth.push_back(mask[1] ? torch::stable::new_empty(uvd, depth_probs[l].sizes()) : not_wanted(depth_probs[l]));
  }
  dispatch_floating("voxel_pull_backward", wide, [&]<class T>() {
    auto levels = maps.levels<T>();
    VoxelPullCpuParams<T> p{};
    set_pull_sizes(p, features, depth_probs, uvd);
    p.level = levels.data(), p.uvd = data<T>(places), p.grad = data<T>(cotangent);
    if (mask[0] || mask[1]) {
      for (size_t l = 0; l < levels.size(); ++l) {
        levels[l].grad_features = mask[0] ? mutable_data<T>(grad_features[l]) : nullptr;
        levels[l].grad_depth = mask[1] ? mutable_data<T>(grad_depth[l]) : nullptr;
      }
      const auto bands = bands_of(depth_probs);
      torch::stable::parallel_for(0, static_cast<int64_t>(bands.size()), 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) kernels<T>().backward_maps(p, bands[i]);
      });
    }
    if (mask[2]) {
      p.grad_uvd = mutable_data<T>(grad_uvd);
      torch::stable::parallel_for(0, p.B * p.N * p.V, 2048,
                                  [&](int64_t begin, int64_t end) { kernels<T>().backward_places(p, begin, end); });
    }
  });
  for (size_t l = 0; l < features.size(); ++l) {
    if (mask[0]) grad_features[l] = cast(from_rows(grad_features[l], features[l], 2), stored);
    if (mask[1]) grad_depth[l] = cast(grad_depth[l], depth_probs[l].scalar_type());
  }
  return {grad_features, grad_depth, grad_uvd};
}

}  // namespace
}  // namespace mim4d

STABLE_TORCH_LIBRARY_IMPL(mim4d, CPU, m) {
  m.impl("voxel_pull", TORCH_BOX(&mim4d::voxel_pull_cpu));
  m.impl("voxel_pull_backward", TORCH_BOX(&mim4d::voxel_pull_backward_cpu));
}

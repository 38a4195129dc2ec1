#include <limits>
#include <tuple>
#include <vector>

#include "torch/cuda.h"
#include "torch/rows_cuda.h"
#include "torch/stable.h"
#include "voxel_pull/cuda.h"
#include "voxel_pull/op.h"

namespace mim4d {
namespace {

using Tensors = std::vector<Tensor>;

void check_levels(const Tensors& features) {
  STD_TORCH_CHECK(static_cast<int64_t>(features.size()) <= kPullLevels, "mim4d::voxel_pull: ", features.size(),
                  " levels, and the CUDA kernels take at most ", kPullLevels,
                  "; mim4d.ops.use_backend('reference') takes any number");
}

// The levels as the kernels read them: features as rows of channels, depth weights in the dtype of the arithmetic.
struct Maps {
  Tensors features, depth;

  Maps(const Tensors& features_, const Tensors& depth_probs, ScalarType wide) {
    for (const Tensor& t : features_) features.push_back(pixel_rows(t));
    for (const Tensor& t : depth_probs) depth.push_back(torch::stable::contiguous(cast(t, wide)));
  }
  template <class S, class T>
  void give(VoxelPullCudaParams<S, T>& p) const {
    for (size_t l = 0; l < features.size(); ++l)
      p.level[l] = {data<S>(features[l]), data<T>(depth[l]), nullptr, nullptr, depth[l].size(3), depth[l].size(4)};
  }
};

Tensor voxel_pull_cuda(Tensors features, Tensors depth_probs, const Tensor& uvd) {
  check_voxel_pull(features, depth_probs, uvd);
  check_levels(features);
  const DeviceGuard guard(uvd.get_device_index());
  const ScalarType stored = features[0].scalar_type();
  const Maps maps(features, depth_probs, uvd.scalar_type());
  const Tensor places = torch::stable::contiguous(uvd), out = empty_pulled(features[0], uvd, stored);
  dispatch_storage("voxel_pull", stored, [&]<class S, class T>() {
    VoxelPullCudaParams<S, T> p{};
    set_pull_sizes(p, features, depth_probs, uvd);
    maps.give(p);
    p.uvd = data<T>(places), p.out = mutable_data<S>(out);
    check_launch("voxel_pull", launch_voxel_pull_forward(p, current_stream(uvd)));
  });
  return out;
}

// The views of a backward pass, and what owns their memory.
template <class T>
struct SortedViews {
  PulledViews<T> views{};
  Tensors memory;

  SortedViews(const Maps& maps, const Tensor& uvd) {
    for (size_t l = 0; l < maps.depth.size(); ++l) {
      views.first_list[l] = views.lists;
      views.lists += uvd.size(0) * uvd.size(1) * (maps.depth[l].size(3) + 1) * (maps.depth[l].size(4) + 1);
    }
    STD_TORCH_CHECK(views.lists < std::numeric_limits<int32_t>::max(),
                    "mim4d::voxel_pull_backward: the maps have 2^31 pixels or more");
    views.listed = static_cast<int64_t>(maps.depth.size()) * uvd.numel() / 3;
    const Tensor depth = torch::stable::new_empty(uvd, {views.listed}),
                 dot = torch::stable::new_empty(depth, {views.listed});
    const Tensor key = torch::stable::new_empty(uvd, {views.listed}, ScalarType::Int);
    views.depth = mutable_data<T>(depth), views.dot = mutable_data<T>(dot), views.key = mutable_data<int32_t>(key);
    memory = {depth, dot, key};
  }
  // once the keys are there
  void sort(cudaStream_t stream) {
    const auto [sorted, order] = stable_sort(memory[2]);
    const Tensor start = torch::stable::new_empty(order, {views.lists + 1});
    views.sorted = data<int32_t>(sorted), views.order = data<int64_t>(order),
    views.start = mutable_data<int64_t>(start);
    memory.insert(memory.end(), {sorted, order, start});
    check_launch("voxel_pull_backward", launch_voxel_pull_starts(views, stream));
  }
};

std::tuple<Tensors, Tensors, Tensor> voxel_pull_backward_cuda(const Tensor& grad, Tensors features, Tensors depth_probs,
                                                              const Tensor& uvd, std::vector<bool> mask) {
  constexpr const char* op = "voxel_pull_backward";
  check_voxel_pull(features, depth_probs, uvd);
  check_voxel_pull_grad(grad, features[0], uvd);
  check_levels(features);
  const DeviceGuard guard(uvd.get_device_index());
  const cudaStream_t stream = current_stream(uvd);
  const ScalarType wide = uvd.scalar_type(), stored = features[0].scalar_type();
  const Maps maps(features, depth_probs, wide);
  const Tensor places = torch::stable::contiguous(uvd);
  const Tensor cotangent = torch::stable::contiguous(torch::stable::transpose(grad, 1, 2));  // (B, V, C)
  const Tensor grad_uvd = mask[2] ? torch::stable::new_empty(uvd, uvd.sizes()) : not_wanted(uvd);
  Tensors grad_features, grad_depth;
  for (size_t l = 0; l < features.size(); ++l) {
    grad_features.push_back(mask[0] ? empty_pixel_rows(features[l], stored) : not_wanted(features[l]));
    grad_depth.push_back(mask[1] ? torch::stable::new_empty(uvd, depth_probs[l].sizes()) : not_wanted(depth_probs[l]));
  }
  if (mask[0] || mask[1] || mask[2]) {
    dispatch_storage(op, stored, [&]<class S, class T>() {
      VoxelPullCudaParams<S, T> p{};
      set_pull_sizes(p, features, depth_probs, uvd);
      maps.give(p);
      p.uvd = data<T>(places), p.grad = data<S>(cotangent);
      p.grad_uvd = mask[2] ? mutable_data<T>(grad_uvd) : nullptr;
      if (!mask[0] && !mask[1]) {
        check_launch(op, launch_voxel_pull_views(p, PulledViews<T>{}, stream));
        return;
      }
      SortedViews<T> sorted(maps, uvd);
      check_launch(op, launch_voxel_pull_views(p, sorted.views, stream));
      sorted.sort(stream);
      for (size_t l = 0; l < features.size(); ++l) {
        p.level[l].grad_features = mask[0] ? mutable_data<S>(grad_features[l]) : nullptr;
        p.level[l].grad_depth = mask[1] ? mutable_data<T>(grad_depth[l]) : nullptr;
        check_launch(op, launch_voxel_pull_gather(p, sorted.views, static_cast<int>(l), stream));
      }
    });
  }
  for (size_t l = 0; l < features.size(); ++l) {
    if (mask[0]) grad_features[l] = from_pixel_rows(grad_features[l], features[l]);
    if (mask[1]) grad_depth[l] = cast(grad_depth[l], depth_probs[l].scalar_type());
  }
  return {grad_features, grad_depth, grad_uvd};
}

}  // namespace
}  // namespace mim4d

MIM4D_CUDA_IMPL(m) {
  m.impl("voxel_pull", TORCH_BOX(&mim4d::voxel_pull_cuda));
  m.impl("voxel_pull_backward", TORCH_BOX(&mim4d::voxel_pull_backward_cuda));
}

#include <tuple>
#include <vector>

#include "torch/cuda.h"
#include "torch/stable.h"
#include "voxel_sample/cuda.h"
#include "voxel_sample/op.h"

namespace mim4d {
namespace {

Tensor channels_last(const Tensor& volume) {
  return is_channels_last(volume) ? volume : torch::stable::contiguous(volume, MemoryFormat::ChannelsLast3d);
}

Tensor voxel_sample_cuda(const Tensor& volume, const Tensor& points, int64_t mode, int64_t padding, bool align) {
  const VoxelSampleOptions options{mode, padding, align};
  check_voxel_sample(volume, points, options, Mode::trilinear);
  const DeviceGuard guard(volume.get_device_index());
  const Tensor voxels = channels_last(volume), coordinates = torch::stable::contiguous(points);
  const Tensor out = torch::stable::new_empty(volume, voxel_sample_shape(volume, points));
  dispatch_storage("voxel_sample", volume.scalar_type(), [&]<class S, class T>() {
    VoxelSampleParams<S, T> p{};
    set_sizes(p, volume, points, options);
    p.volume = data<S>(voxels), p.points = data<T>(coordinates), p.out = mutable_data<S>(out);
    check_launch("voxel_sample", launch_voxel_sample_forward(p, current_stream(volume)));
  });
  return out;
}

std::tuple<Tensor, Tensor> voxel_sample_backward_cuda(const Tensor& grad, const Tensor& volume, const Tensor& points,
                                                      int64_t mode, int64_t padding, bool align,
                                                      std::vector<bool> mask) {
  const VoxelSampleOptions options{mode, padding, align};
  check_voxel_sample(volume, points, options, Mode::trilinear);
  check_voxel_sample_grad(grad, volume, points);
  const DeviceGuard guard(volume.get_device_index());
  const Tensor voxels = mask[1] ? channels_last(volume) : volume, coordinates = torch::stable::contiguous(points);
  const Tensor cotangent = torch::stable::contiguous(grad);
  // Sums are kept in the dtype of the arithmetic: adding thousands of halves one by one would lose them.
  Tensor grad_volume = mask[0] ? empty_channels_last(volume, points.scalar_type()) : not_wanted(volume);
  const Tensor grad_points = mask[1] ? torch::stable::new_empty(points, points.sizes()) : not_wanted(points);
  if (mask[0]) torch::stable::zero_(grad_volume);
  dispatch_storage("voxel_sample_backward", volume.scalar_type(), [&]<class S, class T>() {
    VoxelSampleParams<S, T> p{};
    set_sizes(p, volume, points, options);
    p.volume = data<S>(voxels), p.points = data<T>(coordinates), p.grad = data<S>(cotangent);
    p.grad_volume = mask[0] ? mutable_data<T>(grad_volume) : nullptr;
    p.grad_points = mask[1] ? mutable_data<T>(grad_points) : nullptr;
    check_launch("voxel_sample_backward", launch_voxel_sample_backward(p, current_stream(volume)));
  });
  return {torch::stable::to(grad_volume, volume.scalar_type()), grad_points};
}

}  // namespace
}  // namespace mim4d

MIM4D_CUDA_IMPL(m) {
  m.impl("voxel_sample", TORCH_BOX(&mim4d::voxel_sample_cuda));
  m.impl("voxel_sample_backward", TORCH_BOX(&mim4d::voxel_sample_backward_cuda));
}

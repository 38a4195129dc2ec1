#include "voxel_sample/op_cuda.h"

#include <optional>
#include <tuple>
#include <vector>

#include "torch/cuda.h"
#include "torch/rows_cuda.h"
#include "voxel_sample/cuda.h"
#include "voxel_sample/op.h"

namespace mim4d {
namespace {

// The points sorted by the voxel of their first tap, and what owns the memory of that.
template <class T>
struct SortedPoints {
  VoxelLists<T> lists;
  std::vector<Tensor> memory;
};

template <class T>
SortedPoints<T> sort_points(const Tensor& volume, const Tensor& points, const Tensor& coordinates,
                            const VoxelSampleOptions& options, cudaStream_t stream) {
  auto p = voxel_sample_params<T>(volume, points, options);
  p.points = data<T>(coordinates);
  VoxelLists<T> lists = voxel_lists(p);
  const Tensor keys = torch::stable::new_empty(points, {lists.listed}, ScalarType::Long);
  check_launch("voxel_sample_backward", launch_voxel_sample_keys(p, lists, mutable_data<int64_t>(keys), stream));
  const auto [key, order] = stable_sort(keys);
  const Tensor start = torch::stable::new_empty(points, {lists.count() + 1}, ScalarType::Long);
  const auto bytes = static_cast<int64_t>(sizeof(ListedPoint<T>));
  const Tensor listed = torch::stable::new_empty(points, {lists.listed * bytes}, ScalarType::Byte);
  lists.key = data<int64_t>(key), lists.order = data<int64_t>(order), lists.start = mutable_data<int64_t>(start);
  lists.points = reinterpret_cast<ListedPoint<T>*>(mutable_data<uint8_t>(listed));
  check_launch("voxel_sample_backward", launch_voxel_sample_lists(p, lists, stream));
  return {lists, {key, order, start, listed}};
}

// With linear axes atomics are faster than sorting.
bool gathers(const VoxelSampleOptions& options) { return options.cubic() || deterministic(); }

Tensor voxel_sample_cuda(const Tensor& volume, const Tensor& points, int64_t mode, int64_t padding, bool align) {
  const auto options = check_voxel_sample(volume, points, mode, padding, align);
  const DeviceGuard guard(volume.get_device_index());
  const Tensor voxels = volume_rows(volume), coordinates = torch::stable::contiguous(points);
  const Tensor out = torch::stable::new_empty(volume, voxel_sample_shape(volume, points));
  dispatch_storage("voxel_sample", volume.scalar_type(), [&]<class S, class T>() {
    auto p = voxel_sample_params<S, T>(volume, points, options);
    p.volume = data<S>(voxels), p.points = data<T>(coordinates), p.out = mutable_data<S>(out);
    check_launch("voxel_sample", launch_voxel_sample_forward(p, current_stream(volume)));
  });
  return out;
}

}  // namespace

std::tuple<Tensor, Tensor> voxel_sample_with_grad_cuda(const Tensor& volume, const Tensor& points, int64_t mode,
                                                       int64_t padding, bool align) {
  const auto options = check_voxel_sample(volume, points, mode, padding, align);
  const DeviceGuard guard(volume.get_device_index());
  const Tensor voxels = volume_rows(volume), coordinates = torch::stable::contiguous(points);
  std::vector<int64_t> shape = voxel_sample_shape(volume, points);
  const Tensor out = torch::stable::new_empty(volume, shape);
  shape.push_back(3);
  const Tensor jacobian = torch::stable::new_empty(volume, shape);
  dispatch_storage("voxel_sample_with_grad", volume.scalar_type(), [&]<class S, class T>() {
    auto p = voxel_sample_params<S, T>(volume, points, options);
    p.volume = data<S>(voxels), p.points = data<T>(coordinates);
    p.out = mutable_data<S>(out), p.jacobian = mutable_data<S>(jacobian);
    check_launch("voxel_sample_with_grad", launch_voxel_sample_with_grad(p, current_stream(volume)));
  });
  return {out, jacobian};
}

namespace {

std::tuple<Tensor, Tensor> voxel_sample_backward_cuda(const Tensor& grad, const Tensor& volume, const Tensor& points,
                                                      int64_t mode, int64_t padding, bool align,
                                                      std::vector<bool> mask) {
  constexpr const char* op = "voxel_sample_backward";
  const auto options = check_voxel_sample(volume, points, mode, padding, align);
  check_voxel_sample_grad(grad, volume, points);
  const DeviceGuard guard(volume.get_device_index());
  const cudaStream_t stream = current_stream(volume);
  const Tensor voxels = mask[1] ? volume_rows(volume) : volume, coordinates = torch::stable::contiguous(points);
  const Tensor cotangent = torch::stable::contiguous(grad);
  const bool gather = mask[0] && gathers(options), add = mask[0] && !gather;
  // Sums of atomics are kept in the dtype of the arithmetic: adding thousands of halves one by one would lose them.
  Tensor grad_volume = gather ? empty_channels_last(volume)
                       : add  ? empty_channels_last(volume, points.scalar_type())
                              : not_wanted(volume);
  const Tensor grad_points = mask[1] ? torch::stable::new_empty(points, points.sizes()) : not_wanted(points);
  if (add) torch::stable::zero_(grad_volume);
  dispatch_storage(op, volume.scalar_type(), [&]<class S, class T>() {
    auto p = voxel_sample_params<S, T>(volume, points, options);
    p.volume = data<S>(voxels), p.points = data<T>(coordinates), p.grad = data<S>(cotangent);
    if (gather) {
      const auto sorted = sort_points<T>(volume, points, coordinates, options, stream);
      check_launch(op, launch_voxel_sample_gather(p, sorted.lists, mutable_data<S>(grad_volume), stream));
    }
    p.grad_volume = add ? mutable_data<T>(grad_volume) : nullptr;
    p.grad_points = mask[1] ? mutable_data<T>(grad_points) : nullptr;
    if (add || mask[1]) check_launch(op, launch_voxel_sample_backward(p, stream));
  });
  return {torch::stable::to(grad_volume, volume.scalar_type()), grad_points};
}

// The gradient of the volume from p.grad and p.grad_jacobian, or p.grad_grad_points.
template <class T>
Tensor second_volume(VoxelSampleParams<T> p, const Tensor& volume, const Tensor& points, const Tensor& coordinates,
                     const VoxelSampleOptions& options, cudaStream_t stream) {
  Tensor grad_volume = empty_channels_last(volume);
  if (gathers(options)) {
    const auto sorted = sort_points<T>(volume, points, coordinates, options, stream);
    check_launch("voxel_sample_double_backward",
                 launch_voxel_sample_second_gather(p, sorted.lists, mutable_data<T>(grad_volume), stream));
  } else {
    torch::stable::zero_(grad_volume);
    p.grad_volume = mutable_data<T>(grad_volume);
    check_launch("voxel_sample_double_backward", launch_voxel_sample_second_volume(p, stream));
  }
  return grad_volume;
}

std::tuple<Tensor, Tensor> with_grad_backward(const OptionalTensor& grad, const OptionalTensor& grad_jacobian,
                                              const Tensor& volume, const Tensor& points,
                                              const VoxelSampleOptions& options, const std::vector<bool>& mask) {
  constexpr const char* op = "voxel_sample_with_grad_backward";
  return dispatch_floating(op, volume.scalar_type(), [&]<class T>() -> std::tuple<Tensor, Tensor> {
    const cudaStream_t stream = current_stream(volume);
    const Tensor voxels = mask[1] ? volume_rows(volume) : volume, coordinates = torch::stable::contiguous(points);
    const OptionalTensor features = contiguous(grad), columns = contiguous(grad_jacobian);
    const Tensor grad_points = mask[1] ? torch::stable::new_empty(points, points.sizes()) : not_wanted(points);
    auto p = voxel_sample_params<T>(volume, points, options);
    p.volume = data<T>(voxels), p.points = data<T>(coordinates);
    p.grad = data_or_null<T>(features), p.grad_jacobian = data_or_null<T>(columns);
    if (mask[1]) {
      p.grad_points = mutable_data<T>(grad_points);
      check_launch(op, launch_voxel_sample_second_points(p, stream));
    }
    if (!mask[0]) return {not_wanted(volume), grad_points};
    if (columns) return {second_volume(p, volume, points, coordinates, options, stream), grad_points};
    if (features) {
      const auto first = voxel_sample_backward_cuda(*features, volume, points, int64_t(options.mode),
                                                    int64_t(options.padding), options.align, {true, false});
      return {std::get<0>(first), grad_points};
    }
    Tensor zeros = empty_channels_last(volume);
    torch::stable::zero_(zeros);
    return {zeros, grad_points};
  });
}

std::tuple<Tensor, Tensor, Tensor> double_backward(const OptionalTensor& grad_grad_volume,
                                                   const OptionalTensor& grad_grad_points, const Tensor& grad,
                                                   const Tensor& volume, const Tensor& points,
                                                   const VoxelSampleOptions& options, const std::vector<bool>& mask) {
  constexpr const char* op = "voxel_sample_double_backward";
  return dispatch_floating(op, volume.scalar_type(), [&]<class T>() -> std::tuple<Tensor, Tensor, Tensor> {
    const cudaStream_t stream = current_stream(volume);
    const bool reads = mask[0] || mask[2];
    const OptionalTensor along = contiguous(grad_grad_points);
    const Tensor voxels = reads && along ? volume_rows(volume) : volume;
    const OptionalTensor rows =
        reads && grad_grad_volume ? OptionalTensor(volume_rows(*grad_grad_volume)) : std::nullopt;
    const Tensor coordinates = torch::stable::contiguous(points), cotangent = torch::stable::contiguous(grad);
    const Tensor grad_grad = mask[0] ? torch::stable::new_empty(grad, grad.sizes()) : not_wanted(grad);
    const Tensor grad_points = mask[2] ? torch::stable::new_empty(points, points.sizes()) : not_wanted(points);
    auto p = voxel_sample_params<T>(volume, points, options);
    p.volume = data<T>(voxels), p.points = data<T>(coordinates), p.grad = data<T>(cotangent);
    p.grad_grad_volume = data_or_null<T>(rows), p.grad_grad_points = data_or_null<T>(along);
    if (mask[0]) {
      p.grad_grad = mutable_data<T>(grad_grad);
      check_launch(op, launch_voxel_sample_second_grad(p, stream));
    }
    if (mask[2]) {
      Tensor zeros = grad_points;
      p.grad_points = mutable_data<T>(grad_points);
      if (rows || along)
        check_launch(op, launch_voxel_sample_second_points(p, stream));
      else
        torch::stable::zero_(zeros);
    }
    if (!mask[1]) return {grad_grad, not_wanted(volume), grad_points};
    if (along) return {grad_grad, second_volume(p, volume, points, coordinates, options, stream), grad_points};
    Tensor zeros = empty_channels_last(volume);
    torch::stable::zero_(zeros);
    return {grad_grad, zeros, grad_points};
  });
}

// ---- second derivatives of halves are those of the widened volume

}  // namespace

std::tuple<Tensor, Tensor> voxel_sample_with_grad_backward_cuda(OptionalTensor grad_features,
                                                                OptionalTensor grad_jacobian, const Tensor& volume,
                                                                const Tensor& points, int64_t mode, int64_t padding,
                                                                bool align, std::vector<bool> mask) {
  const auto options = check_voxel_sample(volume, points, mode, padding, align);
  check_with_grad_grads(grad_features, grad_jacobian, volume, points);
  const DeviceGuard guard(volume.get_device_index());
  const ScalarType wide = points.scalar_type();
  const auto [grad_volume, grad_points] = with_grad_backward(cast(grad_features, wide), cast(grad_jacobian, wide),
                                                             cast(volume, wide), points, options, mask);
  return {cast(grad_volume, volume.scalar_type()), grad_points};
}

namespace {

std::tuple<Tensor, Tensor, Tensor> voxel_sample_double_backward_cuda(
    OptionalTensor grad_grad_volume, OptionalTensor grad_grad_points, const Tensor& grad, const Tensor& volume,
    const Tensor& points, int64_t mode, int64_t padding, bool align, std::vector<bool> mask) {
  const auto options = check_voxel_sample(volume, points, mode, padding, align);
  check_voxel_sample_grads(grad_grad_volume, grad_grad_points, grad, volume, points);
  const DeviceGuard guard(volume.get_device_index());
  const ScalarType wide = points.scalar_type(), dtype = volume.scalar_type();
  const auto [grad_grad, grad_volume, grad_points] = double_backward(
      cast(grad_grad_volume, wide), grad_grad_points, cast(grad, wide), cast(volume, wide), points, options, mask);
  return {cast(grad_grad, dtype), cast(grad_volume, dtype), grad_points};
}

}  // namespace
}  // namespace mim4d

MIM4D_CUDA_IMPL(m) {
  m.impl("voxel_sample", TORCH_BOX(&mim4d::voxel_sample_cuda));
  m.impl("voxel_sample_backward", TORCH_BOX(&mim4d::voxel_sample_backward_cuda));
  m.impl("voxel_sample_double_backward", TORCH_BOX(&mim4d::voxel_sample_double_backward_cuda));
  m.impl("voxel_sample_with_grad", TORCH_BOX(&mim4d::voxel_sample_with_grad_cuda));
  m.impl("voxel_sample_with_grad_backward", TORCH_BOX(&mim4d::voxel_sample_with_grad_backward_cuda));
}

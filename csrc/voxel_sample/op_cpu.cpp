#include <algorithm>
#include <memory>
#include <optional>
#include <tuple>
#include <vector>

#include "torch/channels_last.h"
#include "torch/counting_sort.h"
#include "torch/shared_range.h"
#include "torch/stable.h"
#include "voxel_sample/cpu.h"
#include "voxel_sample/op.h"

namespace mim4d {
namespace {

constexpr int64_t kPointsPerTask = 1024;

// The kernels of one table for a dtype and a shape of stencil.
#define MIM4D_KERNELS_OF(name, T, p)                     \
  [](int shape) -> const auto& {                         \
    if constexpr (sizeof(T) == 4)                        \
      return MIM4D_PICK_ISA(name##_float).shape[shape];  \
    else                                                 \
      return MIM4D_PICK_ISA(name##_double).shape[shape]; \
  }((p).cubic() + ((p).mode == Mode::tricubic))

// run(p, begin, end) over all points
template <class P>
void for_points(const P& p, void (*run)(const P& p, int64_t begin, int64_t end)) {
  for_shared_range(p.count(), kPointsPerTask, [&](int64_t begin, int64_t end) { run(p, begin, end); });
}

Tensor forward(const Tensor& volume, const Tensor& points, const VoxelSampleOptions& options) {
  return dispatch_floating("voxel_sample", volume.scalar_type(), [&]<class T>() {
    const Tensor voxels = channels_last(volume), coordinates = torch::stable::contiguous(points);
    const Tensor out = torch::stable::new_empty(volume, voxel_sample_shape(volume, points));
    auto p = voxel_sample_params<T>(volume, points, options);
    p.volume = data<T>(voxels), p.points = data<T>(coordinates), p.out = mutable_data<T>(out);
    for_points(p, MIM4D_KERNELS_OF(voxel_sample, T, p).forward);
    return out;
  });
}

// Points are sorted by the row of voxels of their first tap; then every row of the gradient gathers its own.
template <class T, class Rows>
void make_volume(const VoxelSampleParams<T>& p, Rows VoxelSampleVolumeCpu<T>::* rows_of) {
  const VoxelSampleVolumeCpu<T>& run = MIM4D_KERNELS_OF(voxel_sample_volume, T, p);
  PointLists<T> lists{};
  CountingSort sort(p.count(), lists.count(p),
                    [&](int64_t begin, int64_t end, int64_t* count) { run.count(p, lists, begin, end, count); });
  const auto listed = std::make_unique_for_overwrite<ListedPoint<T>[]>(sort.start().back());
  sort.place(
      [&](int64_t begin, int64_t end, int64_t* cursor) { run.place(p, lists, begin, end, cursor, listed.get()); });
  lists.start = sort.start().data(), lists.points = listed.get();

  // Rows differ in work: the range that is shared out is that of the work, a row goes to who has its beginning.
  const int64_t rows = p.B * p.Z * p.Y;
  std::vector<int64_t> work(rows + 1, 0);
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t z = r % p.Z, y = r / p.Z % p.Y, item = r / p.Z / p.Y;
    int64_t points = 0;
    for (int iz = 0; iz < p.taps_z(); ++iz) {
      const int64_t last = lists.number(p, item, z - iz, y);  // the lists of y, y - 1, ... lie side by side
      points += lists.start[last + 1] - lists.start[last + 1 - p.taps()];
    }
    work[r + 1] = work[r] + points + p.X / 4 + 1;  // clearing four voxels costs about as much as adding one point
  }
  for_shared_range(work.back(), 2 * kPointsPerTask, [&](int64_t begin, int64_t end) {
    const auto row = [&](int64_t w) { return std::lower_bound(work.begin(), work.end() - 1, w) - work.begin(); };
    (run.*rows_of)(p, lists, row(begin), row(end));
  });
}

std::tuple<Tensor, Tensor> backward(const Tensor& grad, const Tensor& volume, const Tensor& points,
                                    const VoxelSampleOptions& options, const std::vector<bool>& mask) {
  return dispatch_floating("voxel_sample_backward", volume.scalar_type(), [&]<class T>() -> std::tuple<Tensor, Tensor> {
    const Tensor coordinates = torch::stable::contiguous(points), cotangent = torch::stable::contiguous(grad);
    const Tensor grad_volume = mask[0] ? empty_channels_last(volume) : not_wanted(volume);
    const Tensor grad_points = mask[1] ? torch::stable::new_empty(points, points.sizes()) : not_wanted(points);
    auto p = voxel_sample_params<T>(volume, points, options);
    p.points = data<T>(coordinates), p.grad = data<T>(cotangent);
    if (mask[1]) {
      const Tensor voxels = channels_last(volume);
      p.volume = data<T>(voxels), p.grad_points = mutable_data<T>(grad_points);
      for_points(p, MIM4D_KERNELS_OF(voxel_sample, T, p).backward_points);
    }
    if (mask[0]) {
      p.grad_volume = mutable_data<T>(grad_volume);
      make_volume(p, &VoxelSampleVolumeCpu<T>::backward_rows);
    }
    return {grad_volume, grad_points};
  });
}

std::tuple<Tensor, Tensor> with_grad(const Tensor& volume, const Tensor& points, const VoxelSampleOptions& options) {
  return dispatch_floating(
      "voxel_sample_with_grad", volume.scalar_type(), [&]<class T>() -> std::tuple<Tensor, Tensor> {
        const Tensor voxels = channels_last(volume), coordinates = torch::stable::contiguous(points);
        std::vector<int64_t> shape = voxel_sample_shape(volume, points);
        const Tensor out = torch::stable::new_empty(volume, shape);
        shape.push_back(3);
        const Tensor jacobian = torch::stable::new_empty(volume, shape);
        auto p = voxel_sample_params<T>(volume, points, options);
        p.volume = data<T>(voxels), p.points = data<T>(coordinates);
        p.out = mutable_data<T>(out), p.jacobian = mutable_data<T>(jacobian);
        for_points(p, MIM4D_KERNELS_OF(voxel_sample_derivatives, T, p).with_grad);
        return {out, jacobian};
      });
}

std::tuple<Tensor, Tensor> with_grad_backward(const std::optional<Tensor>& grad,
                                              const std::optional<Tensor>& grad_jacobian, const Tensor& volume,
                                              const Tensor& points, const VoxelSampleOptions& options,
                                              const std::vector<bool>& mask) {
  return dispatch_floating(
      "voxel_sample_with_grad_backward", volume.scalar_type(), [&]<class T>() -> std::tuple<Tensor, Tensor> {
        const Tensor coordinates = torch::stable::contiguous(points);
        const auto features = contiguous(grad), columns = contiguous(grad_jacobian);
        const Tensor grad_volume = mask[0] ? empty_channels_last(volume) : not_wanted(volume);
        const Tensor grad_points = mask[1] ? torch::stable::new_empty(points, points.sizes()) : not_wanted(points);
        auto p = voxel_sample_params<T>(volume, points, options);
        p.points = data<T>(coordinates), p.grad = data_or_null<T>(features), p.grad_jacobian = data_or_null<T>(columns);
        if (mask[1]) {
          const Tensor voxels = channels_last(volume);
          p.volume = data<T>(voxels), p.grad_points = mutable_data<T>(grad_points);
          for_points(p, MIM4D_KERNELS_OF(voxel_sample_derivatives, T, p).with_grad_points);
        }
        if (mask[0]) {
          p.grad_volume = mutable_data<T>(grad_volume);
          make_volume(p, &VoxelSampleVolumeCpu<T>::with_grad_rows);
        }
        return {grad_volume, grad_points};
      });
}

std::tuple<Tensor, Tensor, Tensor> double_backward(const std::optional<Tensor>& grad_grad_volume,
                                                   const std::optional<Tensor>& grad_grad_points, const Tensor& grad,
                                                   const Tensor& volume, const Tensor& points,
                                                   const VoxelSampleOptions& options, const std::vector<bool>& mask) {
  return dispatch_floating(
      "voxel_sample_double_backward", volume.scalar_type(), [&]<class T>() -> std::tuple<Tensor, Tensor, Tensor> {
        const Tensor coordinates = torch::stable::contiguous(points), cotangent = torch::stable::contiguous(grad);
        const auto along = contiguous(grad_grad_points);
        const Tensor grad_grad = mask[0] ? torch::stable::new_empty(grad, grad.sizes()) : not_wanted(grad);
        const Tensor grad_volume = mask[1] ? empty_channels_last(volume) : not_wanted(volume);
        const Tensor grad_points = mask[2] ? torch::stable::new_empty(points, points.sizes()) : not_wanted(points);
        auto p = voxel_sample_params<T>(volume, points, options);
        p.points = data<T>(coordinates), p.grad = data<T>(cotangent), p.grad_grad_points = data_or_null<T>(along);
        if (mask[0] || mask[2]) {
          const Tensor voxels = along ? channels_last(volume) : volume;  // read along a direction alone
          const auto rows = grad_grad_volume ? std::optional<Tensor>(channels_last(*grad_grad_volume)) : std::nullopt;
          p.volume = data<T>(voxels), p.grad_grad_volume = data_or_null<T>(rows);
          p.grad_grad = mask[0] ? mutable_data<T>(grad_grad) : nullptr;
          p.grad_points = mask[2] ? mutable_data<T>(grad_points) : nullptr;
          for_points(p, MIM4D_KERNELS_OF(voxel_sample_derivatives, T, p).double_points);
        }
        if (mask[1] && along) {
          p.grad_volume = mutable_data<T>(grad_volume);
          make_volume(p, &VoxelSampleVolumeCpu<T>::double_rows);
        } else if (mask[1]) {
          Tensor zeros = grad_volume;
          torch::stable::zero_(zeros);
        }
        return {grad_grad, grad_volume, grad_points};
      });
}

// ---- the ops: checks, and halves widened to float32

ScalarType arithmetic(const Tensor& volume) {
  return is_half(volume.scalar_type()) ? ScalarType::Float : volume.scalar_type();
}

Tensor voxel_sample_cpu(const Tensor& volume, const Tensor& points, int64_t mode, int64_t padding, bool align) {
  const auto options = check_voxel_sample(volume, points, mode, padding, align);
  const ScalarType wide = arithmetic(volume), dtype = volume.scalar_type();
  return cast(forward(cast(volume, wide), points, options), dtype);
}

std::tuple<Tensor, Tensor> voxel_sample_backward_cpu(const Tensor& grad, const Tensor& volume, const Tensor& points,
                                                     int64_t mode, int64_t padding, bool align,
                                                     std::vector<bool> mask) {
  const auto options = check_voxel_sample(volume, points, mode, padding, align);
  check_voxel_sample_grad(grad, volume, points);
  const ScalarType wide = arithmetic(volume), dtype = volume.scalar_type();
  const auto [grad_volume, grad_points] = backward(cast(grad, wide), cast(volume, wide), points, options, mask);
  return {cast(grad_volume, dtype), grad_points};
}

std::tuple<Tensor, Tensor, Tensor> voxel_sample_double_backward_cpu(std::optional<Tensor> grad_grad_volume,
                                                                    std::optional<Tensor> grad_grad_points,
                                                                    const Tensor& grad, const Tensor& volume,
                                                                    const Tensor& points, int64_t mode, int64_t padding,
                                                                    bool align, std::vector<bool> mask) {
  const auto options = check_voxel_sample(volume, points, mode, padding, align);
  check_voxel_sample_grads(grad_grad_volume, grad_grad_points, grad, volume, points);
  const ScalarType wide = arithmetic(volume), dtype = volume.scalar_type();
  const auto [grad_grad, grad_volume, grad_points] = double_backward(
      cast(grad_grad_volume, wide), grad_grad_points, cast(grad, wide), cast(volume, wide), points, options, mask);
  return {cast(grad_grad, dtype), cast(grad_volume, dtype), grad_points};
}

std::tuple<Tensor, Tensor> voxel_sample_with_grad_cpu(const Tensor& volume, const Tensor& points, int64_t mode,
                                                      int64_t padding, bool align) {
  const auto options = check_voxel_sample(volume, points, mode, padding, align);
  const ScalarType wide = arithmetic(volume), dtype = volume.scalar_type();
  const auto [features, jacobian] = with_grad(cast(volume, wide), points, options);
  return {cast(features, dtype), cast(jacobian, dtype)};
}

std::tuple<Tensor, Tensor> voxel_sample_with_grad_backward_cpu(std::optional<Tensor> grad_features,
                                                               std::optional<Tensor> grad_jacobian,
                                                               const Tensor& volume, const Tensor& points, int64_t mode,
                                                               int64_t padding, bool align, std::vector<bool> mask) {
  const auto options = check_voxel_sample(volume, points, mode, padding, align);
  check_with_grad_grads(grad_features, grad_jacobian, volume, points);
  const ScalarType wide = arithmetic(volume), dtype = volume.scalar_type();
  const auto [grad_volume, grad_points] = with_grad_backward(cast(grad_features, wide), cast(grad_jacobian, wide),
                                                             cast(volume, wide), points, options, mask);
  return {cast(grad_volume, dtype), grad_points};
}

Tensor channels_last_cpu(const Tensor& volume) {
  return cast(channels_last_copy(cast(volume, arithmetic(volume))), volume.scalar_type());
}

}  // namespace
}  // namespace mim4d

STABLE_TORCH_LIBRARY_IMPL(mim4d, CPU, m) {
  m.impl("channels_last", TORCH_BOX(&mim4d::channels_last_cpu));
  m.impl("voxel_sample", TORCH_BOX(&mim4d::voxel_sample_cpu));
  m.impl("voxel_sample_backward", TORCH_BOX(&mim4d::voxel_sample_backward_cpu));
  m.impl("voxel_sample_double_backward", TORCH_BOX(&mim4d::voxel_sample_double_backward_cpu));
  m.impl("voxel_sample_with_grad", TORCH_BOX(&mim4d::voxel_sample_with_grad_cpu));
  m.impl("voxel_sample_with_grad_backward", TORCH_BOX(&mim4d::voxel_sample_with_grad_backward_cpu));
}

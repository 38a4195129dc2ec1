#include <algorithm>
#include <memory>
#include <tuple>
#include <vector>

#include "torch/channels_last.h"
#include "torch/counting_sort.h"
#include "torch/stable.h"
#include "voxel_sample/cpu.h"
#include "voxel_sample/op.h"

namespace mim4d {
namespace {

constexpr int64_t kPointsPerTask = 512;

template <class T>
const VoxelSampleCpu<T>& kernels() {
  if constexpr (sizeof(T) == 4)
    return MIM4D_PICK_ISA(voxel_sample_float);
  else
    return MIM4D_PICK_ISA(voxel_sample_double);
}

Tensor forward(const Tensor& volume, const Tensor& points, const VoxelSampleOptions& options) {
  return dispatch_floating("voxel_sample", volume.scalar_type(), [&]<class T>() {
    const Tensor voxels = channels_last(volume), coordinates = torch::stable::contiguous(points);
    const Tensor outside = torch::stable::new_zeros(volume, {volume.size(1)});
    const Tensor out = torch::stable::new_empty(volume, voxel_sample_shape(volume, points));
    auto p = voxel_sample_params<T, T>(volume, points, options);
    p.volume = data<T>(voxels), p.points = data<T>(coordinates), p.outside = data<T>(outside);
    p.out = mutable_data<T>(out);
    torch::stable::parallel_for(0, p.count(), kPointsPerTask,
                                [&](int64_t begin, int64_t end) { kernels<T>().forward(p, begin, end); });
    return out;
  });
}

// Points are sorted by the row of voxels of their lower corner; then every row of the gradient gathers its own.
template <class T>
void backward_volume(const VoxelSampleParams<T>& p) {
  const VoxelSampleCpu<T>& run = kernels<T>();
  CountingSort sort(p.count(), p.B * (p.Z + 1) * (p.Y + 1),
                    [&](int64_t begin, int64_t end, int64_t* count) { run.count(p, begin, end, count); });
  const auto placed = std::make_unique_for_overwrite<PlacedPoint<T>[]>(sort.start().back());
  sort.place([&](int64_t begin, int64_t end, int64_t* cursor) { run.place(p, begin, end, cursor, placed.get()); });
  const PointLists<T> lists{sort.start().data(), placed.get()};

  // Rows differ in work: the range that is shared out is that of the work, a row goes to who has its beginning.
  const int64_t rows = p.B * p.Z * p.Y;
  std::vector<int64_t> work(rows + 1, 0);
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t z = r % p.Z, y = r / p.Z % p.Y, item = r / p.Z / p.Y;
    int64_t points = 0;
    for (const int64_t list : {lists.number(p, item, z, y), lists.number(p, item, z, y - 1),
                               lists.number(p, item, z - 1, y), lists.number(p, item, z - 1, y - 1)})
      points += lists.start[list + 1] - lists.start[list];
    work[r + 1] = work[r] + points + p.X / 4 + 1;  // clearing four voxels costs about as much as adding one point
  }
  torch::stable::parallel_for(0, work.back(), kPointsPerTask, [&](int64_t begin, int64_t end) {
    const auto row = [&](int64_t w) { return std::lower_bound(work.begin(), work.end() - 1, w) - work.begin(); };
    run.backward_rows(p, lists, row(begin), row(end));
  });
}

std::tuple<Tensor, Tensor> backward(const Tensor& grad, const Tensor& volume, const Tensor& points,
                                    const VoxelSampleOptions& options, const std::vector<bool>& mask) {
  return dispatch_floating("voxel_sample_backward", volume.scalar_type(), [&]<class T>() -> std::tuple<Tensor, Tensor> {
    const Tensor coordinates = torch::stable::contiguous(points), cotangent = torch::stable::contiguous(grad);
    const Tensor grad_volume = mask[0] ? empty_channels_last(volume) : not_wanted(volume);
    const Tensor grad_points = mask[1] ? torch::stable::new_empty(points, points.sizes()) : not_wanted(points);
    auto p = voxel_sample_params<T, T>(volume, points, options);
    p.points = data<T>(coordinates), p.grad = data<T>(cotangent);
    if (mask[1]) {
      const Tensor voxels = channels_last(volume), outside = torch::stable::new_zeros(volume, {volume.size(1)});
      p.volume = data<T>(voxels), p.outside = data<T>(outside);
      p.grad_points = mutable_data<T>(grad_points);
      torch::stable::parallel_for(0, p.count(), kPointsPerTask,
                                  [&](int64_t begin, int64_t end) { kernels<T>().backward_points(p, begin, end); });
    }
    if (mask[0]) {
      p.grad_volume = mutable_data<T>(grad_volume);
      backward_volume(p);
    }
    return {grad_volume, grad_points};
  });
}

Tensor cast(const Tensor& t, ScalarType dtype) { return torch::stable::to(t, dtype); }

Tensor voxel_sample_cpu(const Tensor& volume, const Tensor& points, int64_t mode, int64_t padding, bool align) {
  const VoxelSampleOptions options{mode, padding, align};
  check_voxel_sample(volume, points, options);
  if (!is_half(volume.scalar_type())) return forward(volume, points, options);
  return cast(forward(cast(volume, ScalarType::Float), points, options), volume.scalar_type());
}

std::tuple<Tensor, Tensor> voxel_sample_backward_cpu(const Tensor& grad, const Tensor& volume, const Tensor& points,
                                                     int64_t mode, int64_t padding, bool align,
                                                     std::vector<bool> mask) {
  const VoxelSampleOptions options{mode, padding, align};
  check_voxel_sample(volume, points, options);
  check_voxel_sample_grad(grad, volume, points);
  if (!is_half(volume.scalar_type())) return backward(grad, volume, points, options, mask);
  const auto [grad_volume, grad_points] =
      backward(cast(grad, ScalarType::Float), cast(volume, ScalarType::Float), points, options, mask);
  return {cast(grad_volume, volume.scalar_type()), grad_points};
}

}  // namespace
}  // namespace mim4d

STABLE_TORCH_LIBRARY_IMPL(mim4d, CPU, m) {
  m.impl("voxel_sample", TORCH_BOX(&mim4d::voxel_sample_cpu));
  m.impl("voxel_sample_backward", TORCH_BOX(&mim4d::voxel_sample_backward_cpu));
}

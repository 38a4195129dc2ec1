#include <tuple>
#include <vector>

#include "cuda/device.h"
#include "ms_deform_attn/cuda.h"
#include "ms_deform_attn/op.h"
#include "torch/cuda.h"
#include "torch/stable.h"

namespace mim4d {
namespace {

constexpr int64_t kMostLevels = 512;  // their sizes and a window share the shared memory of a block

// The arguments as the kernels read them, and what owns the memory of that.
template <class S, class T>
struct Call {
  Tensor value, locations, weights, shapes, starts;
  MsDeformAttnCudaParams<S, T> p{};

  explicit Call(const MsDeformAttnInputs& in)
      : value(torch::stable::contiguous(in.value)),
        locations(torch::stable::contiguous(in.locations)),
        weights(torch::stable::contiguous(cast(in.weights, in.wide()))),
        shapes(torch::stable::contiguous(in.shapes)),
        starts(torch::stable::contiguous(in.starts)) {
    set_sizes(p, in);
    STD_TORCH_CHECK(p.L <= kMostLevels, "mim4d::ms_deform_attn: ", p.L, " levels, wanted at most ", kMostLevels);
    p.value = data<S>(value), p.locations = data<T>(locations), p.weights = data<T>(weights);
    using torch::headeronly::DeviceType;
    const bool known = shapes.device().type() == DeviceType::CPU && starts.device().type() == DeviceType::CPU;
    if (known && p.L <= kKnownLevels) {
      const std::vector<DeformLevel> levels = read_levels(in);
      std::copy(levels.begin(), levels.end(), p.known);
      set_grids(levels);
      return;
    }
    // Without a look at their values. Of levels on the CPU only what is too much for arguments is copied.
    shapes = torch::stable::to(shapes, in.value.device()), starts = torch::stable::to(starts, in.value.device());
    p.shapes = data<int64_t>(shapes), p.starts = data<int64_t>(starts);
    if (p.Q == p.S) p.grids = static_cast<int>(p.L), p.tiles = (p.Q + 63) / 64;
  }

  // Are the queries the cells of the first map, or of all?
  void set_grids(const std::vector<DeformLevel>& levels) {
    const auto tiles = [](const DeformLevel& level) { return ((level.H + 7) / 8) * ((level.W + 7) / 8); };
    int64_t cells = 0;
    p.tiles = 0;
    for (const DeformLevel& level : levels) {
      if (!level.exact()) break;  // compiled code has nobody who looked: the kernels drop it
      cells += level.H * level.W, p.tiles += tiles(level), ++p.grids;
      if (cells == p.Q && (p.grids == 1 || p.grids == p.L)) return;
    }
    p.grids = 0;
  }
};

Tensor ms_deform_attn_cuda(const Tensor& value, const Tensor& shapes, const Tensor& starts, const Tensor& locations,
                           const Tensor& weights) {
  constexpr const char* op = "ms_deform_attn";
  const MsDeformAttnInputs in{value, shapes, starts, locations, weights};
  check_ms_deform_attn(in);
  const DeviceGuard guard(value.get_device_index());
  const Tensor out = torch::stable::new_empty(value, ms_deform_attn_shape(in));
  dispatch_storage(op, value.scalar_type(), [&]<class S, class T>() {
    Call<S, T> call(in);
    call.p.out = mutable_data<S>(out);
    check_launch(op, launch_ms_deform_attn_forward(call.p, current_stream(value)));
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> ms_deform_attn_backward_cuda(const Tensor& grad, const Tensor& value,
                                                                const Tensor& shapes, const Tensor& starts,
                                                                const Tensor& locations, const Tensor& weights,
                                                                std::vector<bool> mask) {
  constexpr const char* op = "ms_deform_attn_backward";
  const MsDeformAttnInputs in{value, shapes, starts, locations, weights};
  check_ms_deform_attn(in);
  check_ms_deform_attn_grad(grad, in);
  const DeviceGuard guard(value.get_device_index());
  const cudaStream_t stream = current_stream(value);
  const Tensor cotangent = torch::stable::contiguous(grad);
  // Sums are kept in the dtype of the arithmetic: adding thousands of halves one by one would lose them.
  const auto gradient = [&](const Tensor& of, bool wanted) {
    if (!wanted) return torch::stable::new_empty(of, {0}, in.wide());
    return torch::stable::new_empty(of, of.sizes(), in.wide());
  };
  Tensor by_value = gradient(value, mask[0]);
  const Tensor by_location = gradient(locations, mask[1]), by_weight = gradient(weights, mask[2]);
  dispatch_storage(op, value.scalar_type(), [&]<class S, class T>() {
    Call<S, T> call(in);
    auto& p = call.p;
    p.grad = data<S>(cotangent);
    if (mask[1] || mask[2]) {
      p.grad_locations = mask[1] ? mutable_data<T>(by_location) : nullptr;
      p.grad_weights = mask[2] ? mutable_data<T>(by_weight) : nullptr;
      check_launch(op, launch_ms_deform_attn_points(p, stream));
    }
    if (!mask[0]) return;
    p.grad_value = mutable_data<T>(by_value);
    const bool owners = deterministic() && p.row_points() > 0;
    if (!owners) torch::stable::zero_(by_value);
    // Where an atomic adds 16 bytes, nothing is gained by adding in shared memory first. A lane of a window owns a
    // channel: with fewer than half of them the lanes idle, and atomics are faster too.
    const bool window = p.dense() && p.D >= 16 && !atomics_of_packs();
    check_launch(op, owners   ? launch_ms_deform_attn_owner(p, stream)
                     : window ? launch_ms_deform_attn_window(p, stream)
                              : launch_ms_deform_attn_scatter(p, stream));
  });
  return {cast(by_value, value.scalar_type()), by_location, cast(by_weight, weights.scalar_type())};
}

}  // namespace
}  // namespace mim4d

MIM4D_CUDA_IMPL(m) {
  m.impl("ms_deform_attn", TORCH_BOX(&mim4d::ms_deform_attn_cuda));
  m.impl("ms_deform_attn_backward", TORCH_BOX(&mim4d::ms_deform_attn_backward_cuda));
}

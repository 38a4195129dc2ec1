#include <algorithm>
#include <tuple>
#include <vector>

#include "ms_deform_attn/cpu.h"
#include "ms_deform_attn/op.h"
#include "torch/stable.h"

namespace mim4d {
namespace {

constexpr int64_t kPointsPerTask = 1024;

template <class T>
const MsDeformAttnCpu<T>& kernels() {
  if constexpr (sizeof(T) == 4)
    return MIM4D_PICK_ISA(ms_deform_attn_float);
  else
    return MIM4D_PICK_ISA(ms_deform_attn_double);
}

// The arguments as the kernels read them, and what owns the memory of that.
template <class T>
struct Call {
  Tensor value, locations, weights;
  std::vector<DeformLevel> levels;
  std::vector<T> zeros;
  MsDeformAttnCpuParams<T> p{};

  explicit Call(const MsDeformAttnInputs& in)
      : value(torch::stable::contiguous(cast(in.value, in.wide()))),
        locations(torch::stable::contiguous(in.locations)),
        weights(torch::stable::contiguous(cast(in.weights, in.wide()))),
        levels(read_levels(in)),
        zeros(in.value.size(3), T(0)) {
    set_sizes(p, in);
    if (p.B > 0 && p.M > 0) check_levels(levels, p.S);
    p.value = data<T>(value), p.locations = data<T>(locations), p.weights = data<T>(weights);
    p.levels = levels.data(), p.zeros = zeros.data();
  }

  bool empty() const { return p.rows() == 0 || p.row_points() == 0; }

  // run(p, begin, end) over all rows
  void for_rows(void (*run)(const MsDeformAttnCpuParams<T>& p, int64_t begin, int64_t end)) const {
    const int64_t grain = std::max<int64_t>(1, kPointsPerTask / p.row_points());
    torch::stable::parallel_for(0, p.rows(), grain, [&](int64_t begin, int64_t end) { run(p, begin, end); });
  }
};

// Where the part i of n of the cells begins, so that all parts have about the same work: every level is read by as many
// points as any other.
int64_t cell_at(const std::vector<DeformLevel>& by_start, int64_t i, int64_t n) {
  const int64_t levels = static_cast<int64_t>(by_start.size()), level = i * levels / n;
  if (level == levels) return by_start.back().start + by_start.back().H * by_start.back().W;
  const DeformLevel& at = by_start[level];
  return at.start + at.H * at.W * (i * levels - level * n) / n;
}

// The gradient of value has one owner for each head and cell. Heads are shared out first; where there are more threads
// than heads, the cells are, and each owner then has to look at the points of all.
template <class T>
void make_value(const Call<T>& call) {
  const auto& p = call.p;
  const int64_t threads = torch::stable::get_num_threads(), each = (threads + p.B - 1) / p.B;  // owners of an item
  const int64_t groups = std::min(p.M, each), parts = (each + groups - 1) / groups;
  std::vector<DeformLevel> by_start = call.levels;
  std::sort(by_start.begin(), by_start.end(), [](const auto& a, const auto& b) { return a.start < b.start; });
  torch::stable::parallel_for(0, p.B * groups * parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t group = i / parts % groups, part = i % parts;
      kernels<T>().backward_value(p, {i / parts / groups, p.M * group / groups, p.M * (group + 1) / groups,
                                      cell_at(by_start, part, parts), cell_at(by_start, part + 1, parts)});
    }
  });
}

Tensor zeros_like(const Tensor& like, ScalarType dtype) {
  Tensor t = torch::stable::new_empty(like, like.sizes(), dtype);
  return torch::stable::zero_(t);
}

Tensor ms_deform_attn_cpu(const Tensor& value, const Tensor& shapes, const Tensor& starts, const Tensor& locations,
                          const Tensor& weights) {
  const MsDeformAttnInputs in{value, shapes, starts, locations, weights};
  check_ms_deform_attn(in);
  return dispatch_floating("ms_deform_attn", in.wide(), [&]<class T>() {
    Call<T> call(in);
    Tensor out = torch::stable::new_empty(value, ms_deform_attn_shape(in), in.wide());
    if (call.empty()) {
      torch::stable::zero_(out);
    } else {
      call.p.out = mutable_data<T>(out);
      call.for_rows(kernels<T>().forward);
    }
    return cast(out, value.scalar_type());
  });
}

std::tuple<Tensor, Tensor, Tensor> ms_deform_attn_backward_cpu(const Tensor& grad, const Tensor& value,
                                                               const Tensor& shapes, const Tensor& starts,
                                                               const Tensor& locations, const Tensor& weights,
                                                               std::vector<bool> mask) {
  using Gradients = std::tuple<Tensor, Tensor, Tensor>;
  const MsDeformAttnInputs in{value, shapes, starts, locations, weights};
  check_ms_deform_attn(in);
  check_ms_deform_attn_grad(grad, in);
  return dispatch_floating("ms_deform_attn_backward", in.wide(), [&]<class T>() -> Gradients {
    Call<T> call(in);
    const ScalarType wide = in.wide();
    const Tensor cotangent = torch::stable::contiguous(cast(grad, wide));
    const auto gradient = [&](const Tensor& of, bool wanted) {
      if (!wanted) return torch::stable::new_empty(of, {0}, wide);
      return call.empty() ? zeros_like(of, wide) : torch::stable::new_empty(of, of.sizes(), wide);
    };
    const Tensor by_value = gradient(value, mask[0]), by_location = gradient(locations, mask[1]),
                 by_weight = gradient(weights, mask[2]);
    if (!call.empty()) {
      call.p.grad = data<T>(cotangent);
      call.p.grad_value = mutable_data<T>(by_value);
      call.p.grad_locations = mask[1] ? mutable_data<T>(by_location) : nullptr;
      call.p.grad_weights = mask[2] ? mutable_data<T>(by_weight) : nullptr;
      if (mask[1] || mask[2]) call.for_rows(kernels<T>().backward_points);
      if (mask[0]) make_value(call);
    }
    return {cast(by_value, value.scalar_type()), by_location, cast(by_weight, weights.scalar_type())};
  });
}

}  // namespace
}  // namespace mim4d

STABLE_TORCH_LIBRARY_IMPL(mim4d, CPU, m) {
  m.impl("ms_deform_attn", TORCH_BOX(&mim4d::ms_deform_attn_cpu));
  m.impl("ms_deform_attn_backward", TORCH_BOX(&mim4d::ms_deform_attn_backward_cpu));
}

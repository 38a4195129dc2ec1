#include <algorithm>
#include <memory>
#include <tuple>
#include <vector>

#include "cpu/memory.h"
#include "sdf_march/cpu.h"
#include "sdf_march/op.h"
#include "torch/channels_last.h"
#include "torch/counting_sort.h"
#include "torch/stable.h"

namespace mim4d {
namespace {

using cpu::aligned;

constexpr int64_t kSamplesPerGroup = 768;    // rays that one thread takes at a time, and sums the weights' gradients of
constexpr int64_t kBytesPerBatch = 4 << 20;  // of cotangents between the two halves of the backward pass
constexpr int64_t kGroupsPerBatch = 64;      // at most; each has sums of its own
constexpr int64_t kSamplesPerTask = 512;

template <class T>
const SdfMarchCpu<T>& kernels() {
  if constexpr (sizeof(T) == 4)
    return MIM4D_PICK_ISA(sdf_march_float);
  else
    return MIM4D_PICK_ISA(sdf_march_double);
}

// A decoder in double, from weights of any dtype.
Decoder decoder(const std::vector<Tensor>& weights) {
  Decoder net{sdf_march::sizes_of(weights), {}};
  for (const Tensor& t : weights) {
    if (t.scalar_type() == ScalarType::Float && t.is_contiguous()) {  // calls through the dispatcher take their time
      net.tensors.emplace_back(data<float>(t), data<float>(t) + t.numel());
    } else {
      const Tensor wide = torch::stable::contiguous(cast(t, ScalarType::Double));
      net.tensors.emplace_back(data<double>(wide), data<double>(wide) + wide.numel());
    }
  }
  return net;
}

// What both ops read, in the dtype of the rays, lying as the kernels read it. Owns what the params point to.
template <class T>
struct PreparedField {
  Tensor volume, outside, origins, directions;

  template <class Inputs>
  PreparedField(const Inputs& in, SdfFieldParams<T>& params) {
    volume = channels_last(cast(in.volume, in.origins.scalar_type()));
    outside = torch::stable::new_zeros(volume, {volume.size(1)});
    origins = torch::stable::contiguous(in.origins), directions = torch::stable::contiguous(in.directions);
    params.volume = data<T>(volume), params.outside = data<T>(outside);
    params.origins = data<T>(origins), params.directions = data<T>(directions);
  }
};

template <class T>
struct Prepared {
  SdfMarchParams<T> params;
  PreparedField<T> field;
  Tensor edges;
  Decoder sdf, rgb;

  explicit Prepared(const SdfMarchInputs& in)
      : params(sdf_march_params<T>(in)),
        field(in, params),
        edges(torch::stable::contiguous(in.edges)),
        sdf(decoder(in.sdf_weights)),
        rgb(decoder(in.rgb_weights)) {
    params.edges = data<T>(edges);
    params.inv_s = *data<T>(cast(in.inv_s, in.origins.scalar_type()));
  }

  cpu::Aligned<T> packed(const SdfMarchMemory& memory) const {
    auto net = aligned<T>(memory.net);
    kernels<T>().pack(params, fold(sdf, rgb), net.get());
    return net;
  }
};

int64_t rays_per_group(int64_t samples) {
  return std::max<int64_t>(kSamplesPerGroup / std::max<int64_t>(samples, 1), 1);
}

using Outputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Outputs forward(const SdfMarchInputs& in) {
  return dispatch_floating("sdf_march", in.origins.scalar_type(), [&]<class T>() -> Outputs {
    Prepared<T> inputs(in);
    SdfMarchParams<T>& p = inputs.params;
    std::vector<Tensor> out;
    for (const auto& shape : sdf_march_shapes(in)) out.push_back(torch::stable::new_empty(in.origins, shape));
    T** const results[] = {&p.rgb, &p.depth, &p.opacity, &p.sdf, &p.gradient, &p.weights};
    for (int i = 0; i < 6; ++i) *results[i] = mutable_data<T>(out[i]);
    const SdfMarchMemory memory = kernels<T>().memory(p, false);
    const auto net = inputs.packed(memory);
    torch::stable::parallel_for(0, p.rays(), rays_per_group(p.S), [&](int64_t begin, int64_t end) {
      const auto thread = aligned<T>(memory.thread);
      kernels<T>().forward(p, net.get(), thread.get(), begin, end);
    });
    return {out[0], out[1], out[2], out[3], out[4], out[5]};
  });
}

// Samples are sorted by the row of voxels of their first taps; then every slice of the gradient gathers its own.
template <class T>
void add_to_volume(const SdfMarchParams<T>& p, const SampleBatch<T>& batch, int64_t samples, bool fresh, T* grad) {
  const SdfMarchCpu<T>& run = kernels<T>();
  CountingSort sort(samples, SampleLists<T>::count(p),
                    [&](int64_t begin, int64_t end, int64_t* count) { run.count(p, batch, begin, end, count); });
  const auto placed = std::make_unique_for_overwrite<PlacedSample<T>[]>(sort.start().back());
  sort.place(
      [&](int64_t begin, int64_t end, int64_t* cursor) { run.place(p, batch, begin, end, cursor, placed.get()); });
  const SampleLists<T> lists{sort.start().data(), placed.get()};

  // Slices differ in work: the range that is shared out is that of the work, a slice goes to who has its beginning.
  const int64_t slices = p.B * p.Y;
  std::vector<int64_t> work(slices + 1, 0);
  for (int64_t s = 0; s < slices; ++s) {
    int64_t count = fresh ? p.Z * p.X / 8 : 0;
    for (int64_t z = 1 - lists.taps_z(p); z < p.Z; ++z) {
      const int64_t list = lists.number(p, s / p.Y, z, s % p.Y);
      count += lists.start[list + 1] - lists.start[list];
    }
    work[s + 1] = work[s] + count + 1;
  }
  torch::stable::parallel_for(0, work.back(), kSamplesPerTask, [&](int64_t begin, int64_t end) {
    const auto slice = [&](int64_t w) { return std::lower_bound(work.begin(), work.end() - 1, w) - work.begin(); };
    run.add_slices(p, batch, lists, fresh, grad, slice(begin), slice(end));
  });
}

using Sums = std::vector<std::vector<double>>;  // of a decoder's weights, in the order of the op; empty: not wanted

Sums zeros(const Decoder& net, bool wanted) {
  Sums sums;
  if (wanted)
    for (const auto& t : net.tensors) sums.emplace_back(t.size(), 0.0);
  return sums;
}

Tensor tensor(const Tensor& like, const std::vector<double>& values) {
  if (like.scalar_type() == ScalarType::Float) {
    const Tensor rounded = torch::stable::new_empty(like, like.sizes());
    std::copy(values.begin(), values.end(), mutable_data<float>(rounded));
    return rounded;
  }
  const Tensor wide = torch::stable::new_empty(like, like.sizes(), ScalarType::Double);
  std::copy(values.begin(), values.end(), mutable_data<double>(wide));
  return cast(wide, like.scalar_type());
}

std::vector<Tensor> tensors(const std::vector<Tensor>& like, const Sums& sums) {
  std::vector<Tensor> out;
  for (size_t i = 0; i < like.size(); ++i) out.push_back(sums.empty() ? not_wanted(like[i]) : tensor(like[i], sums[i]));
  return out;
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>, std::vector<Tensor>, Tensor>;

Gradients backward(const SdfMarchGrads& grads, const SdfMarchInputs& in, const std::vector<bool>& mask) {
  return dispatch_floating("sdf_march_backward", in.origins.scalar_type(), [&]<class T>() -> Gradients {
    const Prepared<T> inputs(in);
    const SdfMarchParams<T>& p = inputs.params;
    SdfMarchAdjoint<T> a{};
    std::vector<Tensor> cotangents;
    const T** const places[] = {&a.rgb, &a.depth, &a.opacity, &a.sdf, &a.gradient, &a.weights};
    for (int i = 0; i < 6; ++i) {
      if (!grads[i]) continue;
      cotangents.push_back(torch::stable::contiguous(*grads[i]));
      *places[i] = data<T>(cotangents.back());
    }
    const Tensor volume = mask[0] ? empty_channels_last(inputs.field.volume) : not_wanted(in.volume);
    const Tensor origins = mask[1] ? torch::stable::new_empty(in.origins, in.origins.sizes()) : not_wanted(in.origins);
    const Tensor directions =
        mask[2] ? torch::stable::new_empty(in.directions, in.directions.sizes()) : not_wanted(in.directions);
    a.grad_volume = mask[0] ? mutable_data<T>(volume) : nullptr;
    a.grad_origins = mask[1] ? mutable_data<T>(origins) : nullptr;
    a.grad_directions = mask[2] ? mutable_data<T>(directions) : nullptr;
    a.sdf_net = mask[3], a.rgb_net = mask[4];

    // Batches of groups of rays. Their sizes do not depend on the number of threads, and so the sums do not.
    const SdfMarchMemory memory = kernels<T>().memory(p, true);
    const auto net = inputs.packed(memory);
    const int64_t per_group = rays_per_group(p.S), group_bytes = per_group * p.S * memory.row * int64_t(sizeof(T));
    const int64_t groups = std::clamp<int64_t>(kBytesPerBatch / std::max<int64_t>(group_bytes, 1), 1, kGroupsPerBatch);
    const int64_t per_batch = std::min(groups * per_group, std::max<int64_t>(p.rays(), 1));
    const int64_t used = (per_batch + per_group - 1) / per_group;
    const auto sums = aligned<T>(used * memory.sums);
    std::fill_n(sums.get(), used * memory.sums, T(0));
    const auto rows = aligned<T>(mask[0] ? per_batch * p.S * memory.row : 0);
    const auto cells = std::make_unique_for_overwrite<SampleCell<T>[]>(mask[0] ? per_batch * p.S : 0);
    for (int64_t first = 0; first == 0 || first < p.rays(); first += per_batch) {
      const SampleBatch<T> batch{first, rows.get(), cells.get()};
      const int64_t last = std::min(first + per_batch, p.rays());
      torch::stable::parallel_for(0, (last - first + per_group - 1) / per_group, 1, [&](int64_t begin, int64_t end) {
        const auto thread = aligned<T>(memory.thread);
        for (int64_t g = begin; g < end; ++g)
          kernels<T>().backward(p, a, net.get(), thread.get(), sums.get() + g * memory.sums, batch,
                                first + g * per_group, std::min(first + (g + 1) * per_group, last));
      });
      if (mask[0]) add_to_volume(p, batch, (last - first) * p.S, first == 0, a.grad_volume);
    }

    std::vector<double> inv_s(1, 0.0);
    const Folded folded(inputs.sdf, inputs.rgb);
    for (int64_t g = 0; g < used; ++g) kernels<T>().unpack(p, sums.get() + g * memory.sums, folded, inv_s.data());
    Sums sdf = zeros(inputs.sdf, mask[3]), rgb = zeros(inputs.rgb, mask[4]);
    unfold(inputs.sdf, inputs.rgb, folded, sdf, rgb);
    return {mask[0] ? cast(volume, in.volume.scalar_type()) : volume,
            origins,
            directions,
            tensors(in.sdf_weights, sdf),
            tensors(in.rgb_weights, rgb),
            mask[5] ? tensor(in.inv_s, inv_s) : not_wanted(in.inv_s)};
  });
}

Tensor sample(const SdfSampleInputs& in) {
  return dispatch_floating("sdf_sample", in.origins.scalar_type(), [&]<class T>() {
    const SdfSampleCpu<T>& run = []() -> const SdfSampleCpu<T>& {
      if constexpr (sizeof(T) == 4)
        return MIM4D_PICK_ISA(sdf_sample_float);
      else
        return MIM4D_PICK_ISA(sdf_sample_double);
    }();
    SdfSampleParams<T> p = sdf_sample_params<T>(in);
    const PreparedField<T> field(in, p);
    const Tensor near = torch::stable::contiguous(in.near), far = torch::stable::contiguous(in.far);
    const auto jitter = contiguous(cast(in.jitter, in.origins.scalar_type()));
    const Tensor edges = torch::stable::new_empty(in.near, {p.B, p.R, p.n_uniform + p.n_importance + 1});
    p.near = data<T>(near), p.far = data<T>(far), p.jitter = data_or_null<T>(jitter);
    p.edges = mutable_data<T>(edges);
    const SdfMarchMemory memory = run.memory(p);
    const auto net = aligned<T>(memory.net);
    run.pack(p, fold(decoder(in.sdf_weights), {}), net.get());
    torch::stable::parallel_for(0, p.rays(), rays_per_group(p.n_uniform), [&](int64_t begin, int64_t end) {
      const auto thread = aligned<T>(memory.thread);
      run.sample(p, net.get(), thread.get(), begin, end);
    });
    return edges;
  });
}

Outputs sdf_march_cpu(const Tensor& volume, const Tensor& origins, const Tensor& directions, const Tensor& edges,
                      std::vector<Tensor> sdf_weights, std::vector<Tensor> rgb_weights, const Tensor& inv_s,
                      std::vector<double> aabb, int64_t mode, int64_t padding, bool align, double cos_anneal) {
  const SdfMarchInputs in{volume, origins, directions, edges,   sdf_weights, rgb_weights,
                          inv_s,  aabb,    mode,       padding, align,       cos_anneal};
  check_sdf_march(in);
  return forward(in);
}

Gradients sdf_march_backward_cpu(std::optional<Tensor> grad_rgb, std::optional<Tensor> grad_depth,
                                 std::optional<Tensor> grad_opacity, std::optional<Tensor> grad_sdf,
                                 std::optional<Tensor> grad_gradient, std::optional<Tensor> grad_weights,
                                 const Tensor& volume, const Tensor& origins, const Tensor& directions,
                                 const Tensor& edges, std::vector<Tensor> sdf_weights, std::vector<Tensor> rgb_weights,
                                 const Tensor& inv_s, std::vector<double> aabb, int64_t mode, int64_t padding,
                                 bool align, double cos_anneal, std::vector<bool> mask) {
  const SdfMarchInputs in{volume, origins, directions, edges,   sdf_weights, rgb_weights,
                          inv_s,  aabb,    mode,       padding, align,       cos_anneal};
  const SdfMarchGrads grads{grad_rgb, grad_depth, grad_opacity, grad_sdf, grad_gradient, grad_weights};
  check_sdf_march(in);
  check_sdf_march_grads(in, grads);
  return backward(grads, in, mask);
}

Tensor sdf_sample_cpu(const Tensor& volume, const Tensor& origins, const Tensor& directions, const Tensor& near,
                      const Tensor& far, std::vector<Tensor> sdf_weights, std::vector<double> aabb,
                      std::optional<Tensor> jitter, int64_t n_uniform, int64_t n_importance, double sharpness,
                      int64_t mode, int64_t padding, bool align) {
  const SdfSampleInputs in{volume, origins,   directions,   near,      far,  sdf_weights, aabb,
                           jitter, n_uniform, n_importance, sharpness, mode, padding,     align};
  check_sdf_sample(in);
  return sample(in);
}

}  // namespace
}  // namespace mim4d

STABLE_TORCH_LIBRARY_IMPL(mim4d, CPU, m) {
  m.impl("sdf_march", TORCH_BOX(&mim4d::sdf_march_cpu));
  m.impl("sdf_march_backward", TORCH_BOX(&mim4d::sdf_march_backward_cpu));
  m.impl("sdf_sample", TORCH_BOX(&mim4d::sdf_sample_cpu));
}

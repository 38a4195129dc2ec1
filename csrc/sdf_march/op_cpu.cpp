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

// The inputs in the dtype of the rays, lying as the kernels read them. Owns what the params point to.
template <class T>
struct Prepared {
  Tensor volume, outside, origins, directions, edges;
  std::vector<Tensor> weights[2];
  std::vector<const T*> pointers[2];
  SdfMarchParams<T> params;

  explicit Prepared(const SdfMarchInputs& in) : params(sdf_march_params<T>(in)) {
    const ScalarType dtype = in.origins.scalar_type();
    volume = channels_last(cast(in.volume, dtype));
    outside = torch::stable::new_zeros(volume, {volume.size(1)});
    origins = torch::stable::contiguous(in.origins), directions = torch::stable::contiguous(in.directions);
    edges = torch::stable::contiguous(in.edges);
    params.volume = data<T>(volume), params.outside = data<T>(outside);
    params.origins = data<T>(origins), params.directions = data<T>(directions), params.edges = data<T>(edges);
    for (int net = 0; net < 2; ++net) {
      for (const Tensor& t : net == 0 ? in.sdf_weights : in.rgb_weights) {
        weights[net].push_back(torch::stable::contiguous(cast(t, dtype)));
        pointers[net].push_back(data<T>(weights[net].back()));
      }
      (net == 0 ? params.sdf_net : params.rgb_net).tensors = pointers[net].data();
    }
    params.inv_s = *data<T>(cast(in.inv_s, dtype));
  }
};

template <class T>
cpu::Aligned<T> packed(const SdfMarchParams<T>& p, const SdfMarchMemory& memory) {
  auto net = aligned<T>(memory.net);
  kernels<T>().pack(p, net.get());
  return net;
}

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
    const auto net = packed(p, memory);
    torch::stable::parallel_for(0, p.rays(), rays_per_group(p.S), [&](int64_t begin, int64_t end) {
      const auto thread = aligned<T>(memory.thread);
      kernels<T>().forward(p, net.get(), thread.get(), begin, end);
    });
    return {out[0], out[1], out[2], out[3], out[4], out[5]};
  });
}

// Samples are sorted by the row of voxels of their lower corner; then every row of the gradient gathers its own.
template <class T>
void add_to_volume(const SdfMarchParams<T>& p, const SampleBatch<T>& batch, int64_t samples, bool fresh, T* grad) {
  const SdfMarchCpu<T>& run = kernels<T>();
  CountingSort sort(samples, p.B * (p.Z + 1) * (p.Y + 1),
                    [&](int64_t begin, int64_t end, int64_t* count) { run.count(p, batch, begin, end, count); });
  const auto placed = std::make_unique_for_overwrite<PlacedSample<T>[]>(sort.start().back());
  sort.place(
      [&](int64_t begin, int64_t end, int64_t* cursor) { run.place(p, batch, begin, end, cursor, placed.get()); });
  const SampleLists<T> lists{sort.start().data(), placed.get()};

  // Rows differ in work: the range that is shared out is that of the work, a row goes to who has its beginning.
  const int64_t rows = p.B * p.Z * p.Y;
  std::vector<int64_t> work(rows + 1, 0);
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t z = r % p.Z, y = r / p.Z % p.Y, item = r / p.Z / p.Y;
    int64_t count = fresh ? p.X / 8 : 0;
    for (const int64_t list : {lists.number(p, item, z, y), lists.number(p, item, z, y - 1),
                               lists.number(p, item, z - 1, y), lists.number(p, item, z - 1, y - 1)})
      count += lists.start[list + 1] - lists.start[list];
    work[r + 1] = work[r] + count + 1;
  }
  torch::stable::parallel_for(0, work.back(), kSamplesPerTask, [&](int64_t begin, int64_t end) {
    const auto row = [&](int64_t w) { return std::lower_bound(work.begin(), work.end() - 1, w) - work.begin(); };
    run.add_rows(p, batch, lists, fresh, grad, row(begin), row(end));
  });
}

// Gradients of one decoder's weights, summed in double in the order of the tensors.
struct WeightGradients {
  std::vector<std::vector<double>> sums;
  std::vector<double*> pointers;

  WeightGradients(const std::vector<Tensor>& weights, bool wanted) {
    if (!wanted) return;
    for (const Tensor& t : weights) sums.emplace_back(t.numel(), 0.0);
    for (auto& sum : sums) pointers.push_back(sum.data());
  }
  double* const* get() const { return pointers.empty() ? nullptr : pointers.data(); }

  std::vector<Tensor> tensors(const std::vector<Tensor>& weights) const {
    std::vector<Tensor> out;
    for (size_t i = 0; i < weights.size(); ++i) out.push_back(tensor(weights[i], sums.empty() ? nullptr : &sums[i]));
    return out;
  }

  static Tensor tensor(const Tensor& like, const std::vector<double>* values) {
    if (!values) return not_wanted(like);
    const Tensor wide = torch::stable::new_empty(like, like.sizes(), ScalarType::Double);
    std::copy(values->begin(), values->end(), mutable_data<double>(wide));
    return cast(wide, like.scalar_type());
  }
};

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
    const Tensor volume = mask[0] ? empty_channels_last(inputs.volume) : not_wanted(in.volume);
    const Tensor origins = mask[1] ? torch::stable::new_empty(in.origins, in.origins.sizes()) : not_wanted(in.origins);
    const Tensor directions =
        mask[2] ? torch::stable::new_empty(in.directions, in.directions.sizes()) : not_wanted(in.directions);
    a.grad_volume = mask[0] ? mutable_data<T>(volume) : nullptr;
    a.grad_origins = mask[1] ? mutable_data<T>(origins) : nullptr;
    a.grad_directions = mask[2] ? mutable_data<T>(directions) : nullptr;
    a.sdf_net = mask[3], a.rgb_net = mask[4];

    // Batches of groups of rays. Their sizes do not depend on the number of threads, and so the sums do not.
    const SdfMarchMemory memory = kernels<T>().memory(p, true);
    const auto net = packed(p, memory);
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

    const WeightGradients sdf(in.sdf_weights, mask[3]), rgb(in.rgb_weights, mask[4]);
    std::vector<double> inv_s(1, 0.0);
    for (int64_t g = 0; g < used; ++g)
      kernels<T>().unpack(p, sums.get() + g * memory.sums, sdf.get(), rgb.get(), inv_s.data());
    return {mask[0] ? cast(volume, in.volume.scalar_type()) : volume,
            origins,
            directions,
            sdf.tensors(in.sdf_weights),
            rgb.tensors(in.rgb_weights),
            WeightGradients::tensor(in.inv_s, mask[5] ? &inv_s : nullptr)};
  });
}

Outputs sdf_march_cpu(const Tensor& volume, const Tensor& origins, const Tensor& directions, const Tensor& edges,
                      std::vector<Tensor> sdf_weights, std::vector<Tensor> rgb_weights, const Tensor& inv_s,
                      std::vector<double> aabb, int64_t mode, int64_t padding, bool align, double cos_anneal) {
  const SdfMarchInputs in{volume, origins, directions, edges,   sdf_weights, rgb_weights,
                          inv_s,  aabb,    mode,       padding, align,       cos_anneal};
  check_sdf_march(in);
  STD_TORCH_CHECK(in.mode == int64_t(Mode::trilinear), in.op, ": this kernel reads trilinear alone");
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
  STD_TORCH_CHECK(in.mode == int64_t(Mode::trilinear), in.op, ": this kernel reads trilinear alone");
  check_sdf_march_grads(in, grads);
  return backward(grads, in, mask);
}

}  // namespace
}  // namespace mim4d

STABLE_TORCH_LIBRARY_IMPL(mim4d, CPU, m) {
  m.impl("sdf_march", TORCH_BOX(&mim4d::sdf_march_cpu));
  m.impl("sdf_march_backward", TORCH_BOX(&mim4d::sdf_march_backward_cpu));
}

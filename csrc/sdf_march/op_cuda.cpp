#include "voxel_sample/op_cuda.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "sdf_march/cuda.h"
#include "sdf_march/op.h"
#include "torch/cuda.h"
#include "torch/rows_cuda.h"

namespace mim4d {
namespace {

// ---- the weights

template <class T>
SdfMarchNet<AnyWidths> sizes_of(const SdfFieldParams<T>& p, const DecoderSizes* colour) {
  const auto padded = [](int64_t n) {
    return static_cast<int>((n + AnyWidths::tile - 1) / AnyWidths::tile) * AnyWidths::tile;
  };
  SdfMarchNet<AnyWidths> net{};
  net.C = padded(p.C), net.H = padded(p.sdf_net.hidden), net.G = padded(p.geometry());
  net.L = static_cast<int>(p.sdf_net.layers);
  if (colour) net.R = padded(colour->hidden), net.M = static_cast<int>(colour->layers);
  return net;
}

// Can the fused kernels run it?
template <class T>
bool is_fused(const SdfFieldParams<T>& p, const SdfMarchNet<AnyWidths>& net, const DecoderSizes* colour) {
  using F = FixedWidths;
  return sizeof(T) == 4 && p.mode == Mode::trilinear && p.C == F::C && p.sdf_net.hidden == F::H &&
         p.geometry() == F::G && (!colour || colour->hidden == F::R) && net.count() <= kMaxFusedNet;
}

// Where each of the op's tensors lies in the kernels' array. `rgb` may be empty.
template <class T>
std::vector<PackedMatrix<T>> matrices(const SdfMarchNet<AnyWidths>& net, const std::vector<Tensor>& sdf,
                                      const std::vector<Tensor>& rgb) {
  std::vector<PackedMatrix<T>> list;
  const auto part = [&](const Tensor& t, int rows, int columns, int stride, int first, int place, int packed_stride) {
    list.push_back({const_cast<T*>(data<T>(t)), rows, columns, stride, first, place, packed_stride});
  };
  const auto vector = [&](const Tensor& t, int rows, int place) { part(t, rows, 1, 1, 0, place, rows); };
  const auto last = sdf.size() - 4;
  const int h = static_cast<int>(sdf[1].numel()), C = static_cast<int>(sdf[4].size(1)),
            g = static_cast<int>(sdf[last + 1].numel()) - 1;
  part(sdf[0], h, 3, 3, 0, 0, net.H), vector(sdf[1], h, net.w());
  for (int l = 0; l < net.L; ++l) {
    const Tensor* const t = &sdf[2 + 4 * l];
    const int at = net.layer(l);
    part(t[2], h, C, C, 0, at, net.H), vector(t[3], h, at + net.c());
    if (l + 1 < net.L) {
      part(t[0], h, h, h, 0, at + net.A(), net.H), vector(t[1], h, at + net.b());
    } else {
      part(t[0], 1, h, h, 0, at + net.A(), 1), part(t[0], g, h, h, h, at + net.geometry(), net.G);
      vector(t[1], 1, at + net.b_sdf()), part(t[1], g, 1, 1, 1, at + net.b_geometry(), net.G);
    }
  }
  if (rgb.empty()) return list;
  const int r = static_cast<int>(rgb[1].numel()), K = 6 + C + g;
  part(rgb[0], r, 3, 3, 0, net.rW(), net.R), vector(rgb[1], r, net.rw());
  for (int l = 0; l < net.M; ++l) {
    const Tensor* const t = &rgb[2 + 4 * l];
    const int at = net.colour_layer(l);
    part(t[2], r, 3, K, 0, at, net.R), part(t[2], r, C, K, 3, at + net.rU(), net.R);
    part(t[2], r, 3, K, 3 + C, at + 3 * net.R, net.R), part(t[2], r, g, K, 6 + C, at + net.rG(), net.R);
    vector(t[3], r, at + net.rc());
    if (l + 1 < net.M)
      part(t[0], r, r, r, 0, at + net.rA(), net.R), vector(t[1], r, at + net.rb());
    else
      part(t[0], 3, r, r, 0, at + net.rA(), 4), vector(t[1], 3, at + net.b_out());
  }
  return list;
}

// ---- one call

// A volume that lies channels last and begins where 16 bytes may be moved at a time: itself or a copy.
Tensor aligned_rows(const Tensor& volume) {
  const Tensor rows = volume_rows(volume);
  if (reinterpret_cast<uintptr_t>(rows.const_data_ptr()) % 16 == 0) return rows;
  Tensor copy = empty_channels_last(rows);
  torch::stable::copy_(copy, rows);
  return copy;
}

// The inputs in the dtype of the rays, lying as the kernels read them. Owns what the params point to.
template <class T>
struct Prepared {
  const char* op;
  cudaStream_t stream;
  Tensor volume, points, features, jacobian;
  std::vector<Tensor> memory;
  SdfMarchCudaParams<T> p{};

  Prepared(const char* op, const Tensor& like) : op(op), stream(current_stream(like)) {}

  T* allocate(int64_t count) { return mutable_data<T>(keep(torch::stable::new_empty(volume, {count}))); }
  const T* contiguous(const Tensor& t) {
    return data<T>(keep(torch::stable::contiguous(cast(t, volume.scalar_type()))));
  }
  const Tensor& keep(const Tensor& t) { return memory.emplace_back(t); }

  template <class Inputs>
  void field(const Inputs& in, const std::vector<Tensor>& rgb_weights) {
    const DecoderSizes* colour = rgb_weights.empty() ? nullptr : &p.rgb_net;
    p.sizes = sizes_of<T>(p, colour), p.fused = is_fused<T>(p, p.sizes, colour);
    volume = cast(in.volume, in.origins.scalar_type());
    if (p.fused) volume = aligned_rows(volume), p.volume = data<T>(volume);
    p.origins = contiguous(in.origins), p.directions = contiguous(in.directions);
    std::vector<Tensor> weights[2];
    for (const Tensor& t : in.sdf_weights)
      weights[0].push_back(keep(torch::stable::contiguous(cast(t, volume.scalar_type()))));
    for (const Tensor& t : rgb_weights)
      weights[1].push_back(keep(torch::stable::contiguous(cast(t, volume.scalar_type()))));
    T* const net = mutable_data<T>(keep(torch::stable::new_zeros(volume, {p.sizes.count()})));
    const auto list = matrices<T>(p.sizes, weights[0], weights[1]);
    check_launch(op, launch_sdf_march_pack<T>(list, net, false, stream));
    p.net = net;
  }

  void make_points() {
    points = torch::stable::new_empty(volume, {p.B, p.R * p.S, 3});
    check_launch(op, launch_sdf_march_points<T>(p, mutable_data<T>(points), stream));
  }
  void fill_tables() {
    make_points();
    const auto read = voxel_sample_with_grad_cuda(volume, points, int64_t(p.mode), int64_t(p.padding), p.align);
    set_tables(std::get<0>(read), std::get<1>(read));
  }
  void set_tables(const Tensor& f, const Tensor& j) {
    features = f, jacobian = j;
    p.tables = {mutable_data<T>(features), mutable_data<T>(jacobian)};
  }
};

template <class T>
Prepared<T> prepared(const char* op, const SdfMarchInputs& in) {
  Prepared<T> call(op, in.volume);
  static_cast<SdfMarchParams<T>&>(call.p) = sdf_march_params<T>(in);
  call.field(in, in.rgb_weights);
  call.p.edges = call.contiguous(in.edges), call.p.sharpness = call.contiguous(in.inv_s);
  if (!call.p.fused) call.fill_tables();
  return call;
}

using Outputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Outputs sdf_march_cuda(const Tensor& volume, const Tensor& origins, const Tensor& directions, const Tensor& edges,
                       std::vector<Tensor> sdf_weights, std::vector<Tensor> rgb_weights, const Tensor& inv_s,
                       std::vector<double> aabb, int64_t mode, int64_t padding, bool align, double cos_anneal) {
  const SdfMarchInputs in{volume, origins, directions, edges,   sdf_weights, rgb_weights,
                          inv_s,  aabb,    mode,       padding, align,       cos_anneal};
  check_sdf_march(in);
  const DeviceGuard guard(volume.get_device_index());
  return dispatch_floating("sdf_march", origins.scalar_type(), [&]<class T>() -> Outputs {
    auto call = prepared<T>("sdf_march", in);
    SdfMarchCudaParams<T>& p = call.p;
    std::vector<Tensor> out;
    for (const auto& shape : sdf_march_shapes(in)) out.push_back(torch::stable::new_empty(origins, shape));
    T** const results[] = {&p.rgb, &p.depth, &p.opacity, &p.sdf, &p.gradient, &p.weights};
    for (int i = 0; i < 6; ++i) *results[i] = mutable_data<T>(out[i]);
    p.scratch = call.allocate(sdf_march_forward_grid(p).scratch);
    check_launch("sdf_march", launch_sdf_march_forward(p, call.stream));
    return {out[0], out[1], out[2], out[3], out[4], out[5]};
  });
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>, std::vector<Tensor>, Tensor>;

// The gradients of the weights and of inv_s, from what each warp has summed.
template <class T>
void weight_gradients(Prepared<T>& call, const SdfMarchInputs& in, const SdfMarchCudaAdjoint<T>& a, int64_t warps,
                      const std::vector<bool>& mask, Gradients& found) {
  const auto& net = call.p.sizes;
  T* const total = call.allocate(net.gradients());
  check_launch(call.op, launch_sdf_march_sum<T>(a.sums, warps, net.gradients(), total, call.stream));
  const ScalarType dtype = in.origins.scalar_type();
  const auto empty = [&](const std::vector<Tensor>& like) {
    std::vector<Tensor> made;
    for (const Tensor& t : like) made.push_back(torch::stable::new_empty(t, t.sizes(), dtype));
    return made;
  };
  std::vector<Tensor> sdf = empty(in.sdf_weights), rgb = empty(in.rgb_weights);
  const Tensor inv_s = torch::stable::new_empty(in.inv_s, in.inv_s.sizes(), dtype);
  auto list = matrices<T>(net, sdf, rgb);
  list.push_back({mutable_data<T>(inv_s), 1, 1, 1, 0, net.inv_s(), 1});
  check_launch(call.op, launch_sdf_march_pack<T>(list, total, true, call.stream));
  const auto given = [](bool wanted, const std::vector<Tensor>& from, const std::vector<Tensor>& like) {
    std::vector<Tensor> out;
    for (size_t i = 0; i < like.size(); ++i)
      out.push_back(wanted ? cast(from[i], like[i].scalar_type()) : not_wanted(like[i]));
    return out;
  };
  std::get<3>(found) = given(mask[3], sdf, in.sdf_weights), std::get<4>(found) = given(mask[4], rgb, in.rgb_weights);
  std::get<5>(found) = mask[5] ? cast(inv_s, in.inv_s.scalar_type()) : not_wanted(in.inv_s);
}

template <class T>
Gradients backward(const SdfMarchGrads& grads, const SdfMarchInputs& in, const std::vector<bool>& mask) {
  auto call = prepared<T>("sdf_march_backward", in);
  SdfMarchCudaParams<T>& p = call.p;
  const int64_t rays = p.rays(), samples = rays * p.S;
  SdfMarchCudaAdjoint<T> a{};
  const T** const places[] = {&a.rgb, &a.depth, &a.opacity, &a.sdf, &a.gradient, &a.weights};
  for (int i = 0; i < 6; ++i)
    if (grads[i]) *places[i] = call.contiguous(*grads[i]);

  // Forward once more: where light is lost, and from there what the opacities get back.
  p.depth = call.allocate(rays), p.opacity = call.allocate(rays);
  p.light = {call.allocate(samples), call.allocate(samples), call.allocate(3 * samples)};
  p.scratch = call.allocate(sdf_march_forward_grid(p).scratch);
  check_launch(call.op, launch_sdf_march_forward(p, call.stream));
  check_launch(call.op, launch_sdf_march_composite_adjoint<T>(p, p.light, a, call.stream));

  const bool by_ray = mask[1] || mask[2], tables = !p.fused || (mask[0] && deterministic());
  Gradients found{not_wanted(in.volume), not_wanted(in.origins), not_wanted(in.directions), {}, {}, {}};
  Tensor grad_volume;
  if (mask[0] && !tables) {
    grad_volume = empty_channels_last(call.volume);
    torch::stable::zero_(grad_volume);
    a.grad_volume = mutable_data<T>(grad_volume);
  }
  a.to_tables = tables && (mask[0] || (by_ray && !p.fused));
  if (a.to_tables && p.fused) {
    call.make_points();
    call.set_tables(torch::stable::new_empty(call.volume, {p.B, p.R * p.S, p.C}),
                    torch::stable::new_empty(call.volume, {p.B, p.R * p.S, p.C, 3}));
  }
  if (by_ray) a.position = call.allocate(3 * samples), a.direction = call.allocate(3 * samples);
  a.sdf_net = mask[3], a.rgb_net = mask[4];
  const SdfMarchGrid grid = sdf_march_backward_grid(p);
  Tensor sums = torch::stable::new_zeros(call.volume, {grid.warps, p.sizes.gradients()});
  a.sums = mutable_data<T>(sums), p.scratch = call.allocate(grid.scratch);
  check_launch(call.op, launch_sdf_march_backward(p, a, call.stream));

  if (a.to_tables) {
    const bool slopes = by_ray && !p.fused;
    const auto [by_volume, by_points] =
        voxel_sample_with_grad_backward_cuda(call.features, call.jacobian, call.volume, call.points, int64_t(p.mode),
                                             int64_t(p.padding), p.align, {mask[0], slopes});
    grad_volume = by_volume;
    if (slopes) a.slopes = data<T>(call.keep(by_points));
  }
  if (mask[0]) std::get<0>(found) = cast(grad_volume, in.volume.scalar_type());
  if (by_ray) {
    for (int i : {1, 2}) {
      if (!mask[i]) continue;
      const Tensor& like = i == 1 ? in.origins : in.directions;
      const Tensor made = torch::stable::new_empty(like, like.sizes());
      (i == 1 ? a.grad_origins : a.grad_directions) = mutable_data<T>(made);
      (i == 1 ? std::get<1>(found) : std::get<2>(found)) = made;
    }
    check_launch(call.op, launch_sdf_march_ray_sums<T>(p, a, call.stream));
  }
  weight_gradients(call, in, a, grid.warps, mask, found);
  return found;
}

Gradients sdf_march_backward_cuda(std::optional<Tensor> grad_rgb, std::optional<Tensor> grad_depth,
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
  const DeviceGuard guard(volume.get_device_index());
  return dispatch_floating("sdf_march_backward", origins.scalar_type(),
                           [&]<class T>() { return backward<T>(grads, in, mask); });
}

Tensor sdf_sample_cuda(const Tensor& volume, const Tensor& origins, const Tensor& directions, const Tensor& near,
                       const Tensor& far, std::vector<Tensor> sdf_weights, std::vector<double> aabb,
                       std::optional<Tensor> jitter, int64_t n_uniform, int64_t n_importance, double sharpness,
                       int64_t mode, int64_t padding, bool align) {
  const SdfSampleInputs in{volume, origins,   directions,   near,      far,  sdf_weights, aabb,
                           jitter, n_uniform, n_importance, sharpness, mode, padding,     align};
  check_sdf_sample(in);
  const DeviceGuard guard(volume.get_device_index());
  constexpr const char* op = "sdf_sample";
  const Tensor edges = torch::stable::new_empty(origins, {near.size(0), near.size(1), n_uniform + n_importance + 1});
  dispatch_floating(op, origins.scalar_type(), [&]<class T>() {
    Prepared<T> call(op, volume);
    auto rays = sdf_sample_params<T>(in);
    SdfMarchCudaParams<T>& p = call.p;
    static_cast<SdfFieldParams<T>&>(p) = rays;
    call.field(in, {});
    rays.near = call.contiguous(near), rays.far = call.contiguous(far);
    rays.jitter = jitter ? call.contiguous(*jitter) : nullptr;
    rays.edges = mutable_data<T>(edges);
    if (n_importance == 0) {
      check_launch(op, launch_sdf_sample_uniform<T>(rays, rays.edges, call.stream));
      return;
    }
    const int64_t count = p.rays();
    const SdfSampleMemory<T> m = {call.allocate(count * (n_uniform + 1)), call.allocate(count * n_uniform),
                                  call.allocate(count * (n_uniform + 1)), call.allocate(count * (n_importance + 1))};
    check_launch(op, launch_sdf_sample_uniform<T>(rays, m.coarse, call.stream));
    p.S = n_uniform, p.edges = m.coarse, p.sdf = m.sdf;
    if (!p.fused) call.fill_tables();
    p.scratch = call.allocate(sdf_march_field_grid(p).scratch);
    check_launch(op, launch_sdf_march_field(p, call.stream));
    check_launch(op, launch_sdf_sample<T>(rays, m, call.stream));
  });
  return edges;
}

}  // namespace

}  // namespace mim4d

MIM4D_CUDA_IMPL(m) {
  m.impl("sdf_march", TORCH_BOX(&mim4d::sdf_march_cuda));
  m.impl("sdf_march_backward", TORCH_BOX(&mim4d::sdf_march_backward_cuda));
  m.impl("sdf_sample", TORCH_BOX(&mim4d::sdf_sample_cuda));
}

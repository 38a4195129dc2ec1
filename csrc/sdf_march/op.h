#pragma once
// What the bindings of sdf_march and sdf_sample share: the checks behind those of the Python wrappers, and the sizes of
// the kernels' params.

#include <algorithm>
#include <array>
#include <optional>
#include <vector>

#include "math/modes.h"
#include "sdf_march/params.h"
#include "torch/stable.h"

namespace mim4d {

// The arguments of sdf_march, as they cross the dispatcher.
struct SdfMarchInputs {
  static constexpr const char* op = "mim4d::sdf_march";
  Tensor volume, origins, directions, edges;
  std::vector<Tensor> sdf_weights, rgb_weights;
  Tensor inv_s;
  std::vector<double> aabb;
  int64_t mode, padding;
  bool align;
  double cos_anneal;
};

using SdfMarchGrads = std::array<std::optional<Tensor>, 6>;  // of rgb, depth, opacity, sdf, gradient, weights

// Those of sdf_sample.
struct SdfSampleInputs {
  static constexpr const char* op = "mim4d::sdf_sample";
  Tensor volume, origins, directions, near, far;
  std::vector<Tensor> sdf_weights;
  std::vector<double> aabb;
  std::optional<Tensor> jitter;
  int64_t n_uniform, n_importance;
  double sharpness;
  int64_t mode, padding;
  bool align;
};

namespace sdf_march {

inline void check_shape(const char* op, const char* name, const Tensor& t, std::initializer_list<int64_t> shape) {
  STD_TORCH_CHECK(t.dim() == int64_t(shape.size()) && std::equal(shape.begin(), shape.end(), t.sizes().begin()), op,
                  ": ", name, " has the wrong shape");
}

inline void check_decoder(const char* op, const char* name, const std::vector<Tensor>& weights, const Tensor& volume,
                          int64_t condition, int64_t out) {
  const int64_t n = static_cast<int64_t>(weights.size());
  STD_TORCH_CHECK(n >= 10 && (n - 2) % 4 == 0, op, ": ", name, " holds ", n,
                  " tensors, wanted 2 + 4 per layer, 2 layers or more");
  const int64_t hidden = weights[1].numel();
  check_shape(op, name, weights[0], {hidden, 3});
  check_shape(op, name, weights[1], {hidden});
  for (int64_t i = 2; i < n; i += 4) {
    const int64_t rows = i + 4 == n ? out : hidden;
    check_shape(op, name, weights[i], {rows, hidden});
    check_shape(op, name, weights[i + 1], {rows});
    check_shape(op, name, weights[i + 2], {hidden, condition});
    check_shape(op, name, weights[i + 3], {hidden});
  }
  for (const Tensor& t : weights)
    STD_TORCH_CHECK(t.device() == volume.device(), op, ": ", name, " and volume are on different devices");
}

// The outputs of the SDF decoder: 1 + geometry.
inline int64_t outputs(const char* op, const std::vector<Tensor>& sdf_weights) {
  STD_TORCH_CHECK(sdf_weights.size() >= 10, op, ": sdf_weights holds ", sdf_weights.size(), " tensors");
  const int64_t out = sdf_weights[sdf_weights.size() - 3].numel();
  STD_TORCH_CHECK(out >= 1, op, ": the last layer of sdf_weights has no output");
  return out;
}

inline void check_along_rays(const char* op, const char* name, const Tensor& t, const Tensor& volume) {
  const ScalarType wanted = volume.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  STD_TORCH_CHECK(t.scalar_type() == wanted, op, ": ", name, " is ", torch::headeronly::toString(t.scalar_type()),
                  ", wanted ", torch::headeronly::toString(wanted));
  STD_TORCH_CHECK(t.device() == volume.device(), op, ": ", name, " and volume are on different devices");
}

// What both ops read.
template <class Inputs>
void check_field(const Inputs& in, int64_t B, int64_t R) {
  check_shape(in.op, "origins", in.origins, {B, R, 3});
  check_shape(in.op, "directions", in.directions, {B, R, 3});
  check_along_rays(in.op, "origins", in.origins, in.volume);
  check_along_rays(in.op, "directions", in.directions, in.volume);
  check_decoder(in.op, "sdf_weights", in.sdf_weights, in.volume, in.volume.size(1), outputs(in.op, in.sdf_weights));
  STD_TORCH_CHECK(in.aabb.size() == 6, in.op, ": aabb holds ", in.aabb.size(), " numbers, wanted 6");
  STD_TORCH_CHECK(in.mode >= 0 && in.mode <= int64_t(Mode::tricubic), in.op, ": mode ", in.mode, ", wanted 0 to 3");
  STD_TORCH_CHECK(in.padding == int64_t(Padding::zeros) || in.padding == int64_t(Padding::border), in.op,
                  ": padding_mode ", in.padding, ", wanted 0 (zeros) or 1 (border)");
  for (int d = 1; d < 5; ++d)  // a position in cells must be exact in float32
    STD_TORCH_CHECK(in.volume.size(d) >= 1 && in.volume.size(d) < (1 << 24), in.op, ": volume has ", in.volume.size(d),
                    " values along dimension ", d, ", wanted 1 to 2^24 - 1");
}

inline DecoderSizes sizes_of(const std::vector<Tensor>& weights) {
  return {weights[1].numel(), weights[4].size(1), weights[weights.size() - 3].numel(),
          static_cast<int64_t>(weights.size() - 2) / 4};
}

template <class T, class Inputs>
void set_field(SdfFieldParams<T>& p, const Inputs& in) {
  p.B = in.volume.size(0), p.C = in.volume.size(1), p.R = in.origins.size(1);
  p.Z = in.volume.size(2), p.Y = in.volume.size(3), p.X = in.volume.size(4);
  p.sdf_net = sizes_of(in.sdf_weights);
  for (int d = 0; d < 6; ++d) p.aabb[d] = static_cast<T>(in.aabb[d]);
  p.mode = static_cast<Mode>(in.mode);
  p.padding = static_cast<Padding>(in.padding);
  p.align = in.align;
}

}  // namespace sdf_march

inline void check_sdf_march(const SdfMarchInputs& in) {
  using namespace sdf_march;
  STD_TORCH_CHECK(in.volume.dim() == 5 && in.edges.dim() == 3 && in.edges.size(2) >= 1, in.op,
                  ": wanted volume (B, C, Z, Y, X) and edges (B, R, S + 1)");
  const int64_t B = in.volume.size(0), C = in.volume.size(1), R = in.edges.size(1);
  check_field(in, B, R);
  check_shape(in.op, "edges", in.edges, {B, R, in.edges.size(2)});
  check_along_rays(in.op, "edges", in.edges, in.volume);
  STD_TORCH_CHECK(in.inv_s.numel() == 1, in.op, ": inv_s is no single number");
  check_decoder(in.op, "rgb_weights", in.rgb_weights, in.volume, 5 + C + outputs(in.op, in.sdf_weights), 3);
}

inline void check_sdf_sample(const SdfSampleInputs& in) {
  using namespace sdf_march;
  STD_TORCH_CHECK(in.volume.dim() == 5 && in.near.dim() == 2, in.op, ": wanted volume (B, C, Z, Y, X) and near (B, R)");
  const int64_t B = in.volume.size(0), R = in.near.size(1);
  check_field(in, B, R);
  check_shape(in.op, "near", in.near, {B, R});
  check_shape(in.op, "far", in.far, {B, R});
  check_along_rays(in.op, "near", in.near, in.volume);
  check_along_rays(in.op, "far", in.far, in.volume);
  if (in.jitter) {
    check_shape(in.op, "jitter", *in.jitter, {B, R, 2});
    STD_TORCH_CHECK(in.jitter->device() == in.volume.device(), in.op, ": jitter and volume are on different devices");
  }
  STD_TORCH_CHECK(in.n_uniform >= 1 && in.n_importance >= 0 && in.n_uniform + in.n_importance < (1 << 24), in.op,
                  ": n_uniform is ", in.n_uniform, ", n_importance ", in.n_importance,
                  ", wanted at least 1 and 0, together less than 2^24");
}

// Shapes of rgb, depth, opacity, sdf, gradient, weights.
inline std::array<std::vector<int64_t>, 6> sdf_march_shapes(const SdfMarchInputs& in) {
  const int64_t B = in.edges.size(0), R = in.edges.size(1), S = in.edges.size(2) - 1;
  return {{{B, R, 3}, {B, R}, {B, R}, {B, R, S}, {B, R, S, 3}, {B, R, S}}};
}

inline void check_sdf_march_grads(const SdfMarchInputs& in, const SdfMarchGrads& grads) {
  const auto shapes = sdf_march_shapes(in);
  for (size_t i = 0; i < grads.size(); ++i) {
    if (!grads[i]) continue;
    const Tensor& grad = *grads[i];
    STD_TORCH_CHECK(std::equal(shapes[i].begin(), shapes[i].end(), grad.sizes().begin(), grad.sizes().end()),
                    "mim4d::sdf_march_backward: a gradient has not the shape of its result");
    STD_TORCH_CHECK(grad.scalar_type() == in.origins.scalar_type() && grad.device() == in.volume.device(),
                    "mim4d::sdf_march_backward: a gradient has not the dtype or device of its result");
  }
}

template <class T>
SdfMarchParams<T> sdf_march_params(const SdfMarchInputs& in) {
  SdfMarchParams<T> p{};
  sdf_march::set_field(p, in);
  p.rgb_net = sdf_march::sizes_of(in.rgb_weights);
  p.S = in.edges.size(2) - 1;
  p.cos_anneal = static_cast<T>(in.cos_anneal);
  return p;
}

template <class T>
SdfSampleParams<T> sdf_sample_params(const SdfSampleInputs& in) {
  SdfSampleParams<T> p{};
  sdf_march::set_field(p, in);
  p.n_uniform = in.n_uniform, p.n_importance = in.n_importance;
  p.sharpness = static_cast<T>(in.sharpness);
  return p;
}

}  // namespace mim4d

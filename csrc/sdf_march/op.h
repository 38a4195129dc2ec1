#pragma once
// What the bindings of sdf_march share: the checks behind those of the Python wrapper, and the sizes of the kernels'
// params.

#include <algorithm>
#include <array>
#include <optional>
#include <vector>

#include "math/modes.h"
#include "sdf_march/params.h"
#include "torch/stable.h"

namespace mim4d {

// The arguments of the op, as they cross the dispatcher.
struct SdfMarchInputs {
  Tensor volume, origins, directions, edges;
  std::vector<Tensor> sdf_weights, rgb_weights;
  Tensor inv_s;
  std::vector<double> aabb;
  int64_t mode, padding;
  bool align;
  double cos_anneal;
};

using SdfMarchGrads = std::array<std::optional<Tensor>, 6>;  // of rgb, depth, opacity, sdf, gradient, weights

namespace sdf_march {

inline void check_shape(const char* name, const Tensor& t, std::initializer_list<int64_t> shape) {
  STD_TORCH_CHECK(t.dim() == int64_t(shape.size()) && std::equal(shape.begin(), shape.end(), t.sizes().begin()),
                  "mim4d::sdf_march: ", name, " has the wrong shape");
}

inline void check_decoder(const char* name, const std::vector<Tensor>& weights, const Tensor& volume, int64_t condition,
                          int64_t out) {
  const int64_t n = static_cast<int64_t>(weights.size());
  STD_TORCH_CHECK(n >= 10 && (n - 2) % 4 == 0, "mim4d::sdf_march: ", name, " holds ", n,
                  " tensors, wanted 2 + 4 per layer, 2 layers or more");
  const int64_t hidden = weights[1].numel();
  check_shape(name, weights[0], {hidden, 3});
  check_shape(name, weights[1], {hidden});
  for (int64_t i = 2; i < n; i += 4) {
    const int64_t rows = i + 4 == n ? out : hidden;
    check_shape(name, weights[i], {rows, hidden});
    check_shape(name, weights[i + 1], {rows});
    check_shape(name, weights[i + 2], {hidden, condition});
    check_shape(name, weights[i + 3], {hidden});
  }
  for (const Tensor& t : weights)
    STD_TORCH_CHECK(t.device() == volume.device(), "mim4d::sdf_march: ", name, " and volume are on different devices");
}

inline int64_t geometry(const SdfMarchInputs& in) { return in.sdf_weights[in.sdf_weights.size() - 3].numel() - 1; }

}  // namespace sdf_march

inline void check_sdf_march(const SdfMarchInputs& in) {
  constexpr const char* op = "mim4d::sdf_march";
  STD_TORCH_CHECK(in.volume.dim() == 5 && in.edges.dim() == 3 && in.edges.size(2) >= 1, op,
                  ": wanted volume (B, C, Z, Y, X) and edges (B, R, S + 1)");
  const int64_t B = in.volume.size(0), C = in.volume.size(1), R = in.edges.size(1);
  sdf_march::check_shape("origins", in.origins, {B, R, 3});
  sdf_march::check_shape("directions", in.directions, {B, R, 3});
  sdf_march::check_shape("edges", in.edges, {B, R, in.edges.size(2)});
  STD_TORCH_CHECK(in.inv_s.numel() == 1, op, ": inv_s is no single number");
  const ScalarType wanted = in.volume.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  for (const Tensor* t : {&in.origins, &in.directions, &in.edges}) {
    STD_TORCH_CHECK(t->scalar_type() == wanted, op, ": rays are ", torch::headeronly::toString(t->scalar_type()),
                    ", wanted ", torch::headeronly::toString(wanted));
    STD_TORCH_CHECK(t->device() == in.volume.device(), op, ": rays and volume are on different devices");
  }
  STD_TORCH_CHECK(in.sdf_weights.size() >= 10, op, ": sdf_weights holds ", in.sdf_weights.size(), " tensors");
  const int64_t out = in.sdf_weights[in.sdf_weights.size() - 3].numel();
  STD_TORCH_CHECK(out >= 1, op, ": the last layer of sdf_weights has no output");
  sdf_march::check_decoder("sdf_weights", in.sdf_weights, in.volume, C, out);
  sdf_march::check_decoder("rgb_weights", in.rgb_weights, in.volume, 5 + C + out, 3);
  STD_TORCH_CHECK(in.aabb.size() == 6, op, ": aabb holds ", in.aabb.size(), " numbers, wanted 6");
  STD_TORCH_CHECK(in.mode == int64_t(Mode::trilinear), op, ": this kernel reads trilinear alone, got mode ", in.mode,
                  "; mim4d.ops.sdf_march chooses a backend that can");
  STD_TORCH_CHECK(in.padding == int64_t(Padding::zeros) || in.padding == int64_t(Padding::border), op,
                  ": padding_mode ", in.padding, ", wanted 0 (zeros) or 1 (border)");
  for (int d = 1; d < 5; ++d)  // a position in cells must be exact in float32
    STD_TORCH_CHECK(in.volume.size(d) >= 1 && in.volume.size(d) < (1 << 24), op, ": volume has ", in.volume.size(d),
                    " values along dimension ", d, ", wanted 1 to 2^24 - 1");
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
  p.B = in.volume.size(0), p.C = in.volume.size(1);
  p.Z = in.volume.size(2), p.Y = in.volume.size(3), p.X = in.volume.size(4);
  p.R = in.edges.size(1), p.S = in.edges.size(2) - 1;
  for (int d = 0; d < 6; ++d) p.aabb[d] = static_cast<T>(in.aabb[d]);
  p.cos_anneal = static_cast<T>(in.cos_anneal);
  p.padding = static_cast<Padding>(in.padding);
  p.align = in.align;
  const auto decoder = [](const std::vector<Tensor>& weights) {
    SdfDecoder<T> net{};
    net.hidden = weights[1].numel(), net.condition = weights[4].size(1);
    net.out = weights[weights.size() - 3].numel(), net.layers = static_cast<int64_t>(weights.size() - 2) / 4;
    return net;
  };
  p.sdf_net = decoder(in.sdf_weights);
  p.rgb_net = decoder(in.rgb_weights);
  return p;
}

}  // namespace mim4d

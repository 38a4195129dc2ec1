#pragma once
// The field at a thread's sample: docs/ops/sdf_march.md derives it in the same symbols.

#include "cuda/device.h"
#include "math/sdf.h"
#include "sdf_march/net.cuh"

namespace mim4d {
namespace {

// What the SDF decoder leaves for its reverse pass (the slopes), and for the backward pass.
template <class T>
struct SdfTape {
  Column<T> slope, bend;  // (L - 1) * H: a', a''
  Column<T> x, q;         // L * H: q = d sdf / d x
};

// The layers of the SDF decoder up to the last product: its input in x. Tells keep_x(l, o, x) and keep(l, o, a', a'')
// of what it passes.
template <class N, class T, class F, class X, class KeepX, class Keep>
__device__ __forceinline__ void sdf_layers(const N& net, const T* w, const F& f, const T (&p)[3],
                                           Scratch<N::fixed, T> scratch, X&& x, KeepX&& keep_x, Keep&& keep) {
  [[maybe_unused]] constexpr int whole = kWidth<N>;
  auto h = scratch.take(net.H), y = scratch.take(net.H);
  multiply<N>(3, net.H, p, w, h, [&](int o) { return w[net.w() + o]; });
#pragma unroll 1
  for (int l = 0;; ++l) {
    const T* const layer = w + net.layer(l);
    multiply<N>(net.C, net.H, f, layer, x, [&](int o) { return h[o] + layer[net.c() + o]; });
#pragma unroll whole
    for (int o = 0; o < net.H; ++o) keep_x(l, o, x[o]);
    if (l + 1 == net.L) return;
    multiply<N>(net.H, net.H, x, layer + net.A(), y, [&](int o) { return layer[net.b() + o]; });
#pragma unroll whole
    for (int o = 0; o < net.H; ++o) {
      T slope, bend;
      math::softplus(y[o], h[o], slope, bend);
      keep(l, o, slope, bend);
    }
  }
}

// sdf from the input of the last product.
template <class N, class T, class X>
__device__ __forceinline__ T sdf_of(const N& net, const T* w, const X& x) {
  [[maybe_unused]] constexpr int whole = kWidth<N>;
  const T* const last = w + net.layer(net.L - 1);
  T sdf = last[net.b_sdf()];
#pragma unroll whole
  for (int k = 0; k < net.H; ++k) sdf += last[net.A() + k] * x[k];
  return sdf;
}

// sdf, and the geometry in g; to `keep`, what the backward pass needs too.
template <bool keep, class N, class T, class F, class G>
__device__ __forceinline__ T sdf_forward(const N& net, const T* w, const F& f, const T (&p)[3], const SdfTape<T>& tape,
                                         Scratch<N::fixed, T> scratch, G& g) {
  auto x = scratch.take(net.H);
  const auto keep_x = [&](int l, int o, T value) {
    if constexpr (keep) tape.x[l * net.H + o] = value;
  };
  sdf_layers(net, w, f, p, scratch, x, keep_x, [&](int l, int o, T slope, T bend) {
    tape.slope[l * net.H + o] = slope;
    if constexpr (keep) tape.bend[l * net.H + o] = bend;
  });
  const T* const last = w + net.layer(net.L - 1);
  multiply<N>(net.H, net.G, x, last + net.geometry(), g, [&](int o) { return last[net.b_geometry() + o]; });
  return sdf_of(net, w, x);
}

// The reverse pass: q_f in qf, and in n the part of the normal that does not come by the feature.
template <bool keep, class N, class T, class Q>
__device__ __forceinline__ void sdf_reverse(const N& net, const T* w, const SdfTape<T>& tape,
                                            Scratch<N::fixed, T> scratch, const Q& qf, T (&n)[3]) {
  [[maybe_unused]] constexpr int whole = kWidth<N>;
  auto q = scratch.take(net.H), z = scratch.take(net.H);
  const T* layer = w + net.layer(net.L - 1);
#pragma unroll whole
  for (int o = 0; o < net.H; ++o) q[o] = layer[net.A() + o];
  multiply_back<N, 4, false>(net.C, net.H, q, layer, [&](int k, T value) { qf[k] = value; });
#pragma unroll 1
  for (int l = net.L - 1;; --l) {
    if constexpr (keep) {
#pragma unroll whole
      for (int o = 0; o < net.H; ++o) tape.q[l * net.H + o] = q[o];
    }
    if (l == 0) break;
    layer = w + net.layer(l - 1);
#pragma unroll whole
    for (int o = 0; o < net.H; ++o) z[o] = tape.slope[(l - 1) * net.H + o] * q[o];
    multiply_back<N, 4, N::fixed>(net.H, net.H, z, layer + net.A(), [&](int k, T value) { q[k] = value; });
    multiply_back<N, 4, false>(net.C, net.H, q, layer, [&](int k, T value) { qf[k] += value; });
  }
  multiply_back<N, 3, true>(3, net.H, q, w, [&](int k, T value) { n[k] = value; });
}

// What the colour decoder leaves for the backward pass.
template <class T>
struct ColourTape {
  Column<T> x;  // M * R
  Column<T> h;  // (M - 1) * R: after the ReLU
};

template <bool keep, class N, class T, class F, class G>
__device__ __forceinline__ void colour_forward(const N& net, const T* w, const F& f, const G& g, const T (&p)[3],
                                               const T (&e)[N::extra], const ColourTape<T>& tape,
                                               Scratch<N::fixed, T> scratch, T (&colour)[3]) {
  [[maybe_unused]] constexpr int whole = kWidth<N>;
  auto h = scratch.take(net.R), x = scratch.take(net.R);
  multiply<N>(3, net.R, p, w + net.rW(), h, [&](int o) { return w[net.rw() + o]; });
  const auto add = [&](int o) { return x[o]; };
#pragma unroll 1
  for (int l = 0;; ++l) {
    const T* const layer = w + net.colour_layer(l);
    multiply<N>(N::extra, net.R, e, layer, x, [&](int o) { return h[o] + layer[net.rc() + o]; });
    multiply<N>(net.C, net.R, f, layer + net.rU(), x, add);
    multiply<N>(net.G, net.R, g, layer + net.rG(), x, add);
    if constexpr (keep) {
#pragma unroll whole
      for (int o = 0; o < net.R; ++o) tape.x[l * net.R + o] = x[o];
    }
    if (l + 1 == net.M) break;
    multiply<N>(net.R, net.R, x, layer + net.rA(), h, [&](int o) { return layer[net.rb() + o]; });
#pragma unroll whole
    for (int o = 0; o < net.R; ++o) {
      h[o] = math::max_(T(0), h[o]);
      if constexpr (keep) tape.h[l * net.R + o] = h[o];
    }
  }
  const T* const last = w + net.colour_layer(net.M - 1);
  T z[4];
  multiply<N, 4>(net.R, 4, x, last + net.rA(), z, [&](int o) { return last[net.b_out() + o]; });
#pragma unroll
  for (int k = 0; k < 3; ++k) colour[k] = math::sigmoid(z[k]);
}

// ---- samples

template <class T>
struct Sample {
  int64_t ray, item, index;
  T t, delta;
  T direction[3], position[3];
};

template <class T>
__device__ __forceinline__ Sample<T> sample_of(const SdfMarchParams<T>& p, int64_t ray, int64_t i) {
  const T* const edge = p.edges + ray * (p.S + 1) + i;
  Sample<T> s{ray, ray / p.R, ray * p.S + i, edge[0], edge[1] - edge[0], {}, {}};
#pragma unroll
  for (int d = 0; d < 3; ++d) {
    s.direction[d] = p.directions[3 * ray + d];
    s.position[d] = s.direction[d] * s.t + p.origins[3 * ray + d];
  }
  return s;
}

// d position in the box / d position in scene units, along the axis d
template <class T>
__device__ __forceinline__ T box_scale(const SdfFieldParams<T>& p, int d) {
  return T(2) / (p.aabb[d + 3] - p.aabb[d]);
}

template <class T>
struct Section {
  T cosine, half;
  math::Opacity<T> opacity;
};

template <class T>
__device__ __forceinline__ Section<T> section_of(const SdfMarchParams<T>& p, const Sample<T>& s, T sdf, const T (&n)[3],
                                                 T inv_s) {
  const T cosine = s.direction[0] * n[0] + s.direction[1] * n[1] + s.direction[2] * n[2];
  const T half = math::fall(cosine, p.cos_anneal) * s.delta * T(0.5);
  return {cosine, half, math::opacity(sdf, half, inv_s)};
}

// Blocks that keep a GPU busy: as many as there is work for, no more than so many for each multiprocessor, and none
// whose `scratch` bytes would not fit into 256 MiB together.
inline int resident_blocks(int64_t wanted, int64_t each, int64_t scratch = 1) {
  const int64_t fitting = (int64_t{256} << 20) / (scratch > 0 ? scratch : 1), blocks = each * multiprocessors();
  const int64_t most = fitting < 1 ? 1 : fitting < blocks ? fitting : blocks;
  return static_cast<int>(wanted < most ? wanted : most);
}

// For a kernel whose threads have so many values of scratch memory each.
template <class T>
SdfMarchGrid grid_of(int64_t wanted, int64_t each, int64_t values) {
  const int blocks = resident_blocks(wanted, each, values * kThreads * static_cast<int64_t>(sizeof(T)));
  return {blocks, blocks * kWarps, blocks * values * kThreads};
}

}  // namespace
}  // namespace mim4d

#pragma once
// The field at one register of samples, forward and backward: docs/ops/sdf_march.md derives both in the same symbols
// (adjoints end in _bar, tangents in _dot). z is the last activation of the SDF decoder.

#include "math/sdf.h"
#include "sdf_march/cpu_net.h"
#include "sdf_march/cpu_stencil.h"

namespace mim4d::MIM4D_ISA {
namespace {

// What the forward pass of one register of samples leaves for the backward pass of the same ray.
template <class T, class Sizes>
struct Tape {
  using Stencil = typename Sizes::template Stencil<T>;
  Vec<T>*sdf, *colour;   // 1, 3
  Vec<T>* condition;     // 3 + C + H + 3: position, feature, z, normal
  Vec<T>* feature_rows;  // C, in tiles
  Vec<T>* x;             // (L - 2) * H: of the layers between the first and the last
  Vec<T>*slope, *bend;   // (L - 1) * H: a', a''
  Vec<T>* q;             // L * H: d sdf / d y of the first layer, d sdf / d x of the others
  Vec<T>* q_rows;        // C, in tiles: d sdf / d f
  Vec<T>* dots;          // of the taps: v_k . q_f
  Vec<T>* rx;            // (M - 2) * R
  Vec<T>* rh;            // (M - 1) * R: after the ReLU

  // With a null memory only the count is of use.
  int64_t count;
  const Stencil* at;
  Tape(const Net<T, Sizes>& net, Vec<T>* memory, const Stencil* at) : at(at) {
    const auto& s = net.size;
    Arrays<Vec<T>> arrays{memory};
    sdf = arrays.take(1), colour = arrays.take(3);
    condition = arrays.take(3 + s.C + s.H + 3);
    feature_rows = arrays.take(s.C);
    x = arrays.take((net.L - 2) * s.H), slope = arrays.take((net.L - 1) * s.H);
    bend = arrays.take((net.L - 1) * s.H);
    q = arrays.take(net.L * s.H), q_rows = arrays.take(s.C), dots = arrays.take(Stencil::kMostTaps);
    rx = arrays.take((net.M - 2) * s.R), rh = arrays.take((net.M - 1) * s.R);
    count = arrays.count;
  }
  Vec<T>* feature() const { return condition + 3; }
  Vec<T>* z(const Sizes& s) const { return feature() + s.C; }
  Vec<T>* normal(const Sizes& s) const { return z(s) + s.H; }
};

// Memory of one thread for the time of one register of samples.
template <class T, class Sizes>
struct Scratch {
  Vec<T>*h, *y;                        // the wider of H and R
  Vec<T>* wide;                        // the widest of C, H, R
  Vec<T>* weights;                     // of the taps
  Vec<T>*x_bar, *rx_bar;               // (L - 1) * H, (M - 1) * R + 3: of y in the first layers, of x in the others
  Vec<T>*y_dot, *x_dot, *z_dot;        // (L - 1) * H, (L - 2) * H, H
  Vec<T>* condition_bar;               // C + H: feature, z
  Vec<T>* input_dot;                   // 3 + C: v, f_dot
  Vec<T>*f_dot_rows, *z_rows, *extra;  // C, H, extra, in tiles
  int64_t count;
  Scratch(const Net<T, Sizes>& net, Vec<T>* memory) {
    const auto& s = net.size;
    Arrays<Vec<T>> arrays{memory};
    const int64_t width = s.H > s.R ? s.H : s.R;
    h = arrays.take(width), y = arrays.take(width), wide = arrays.take(width > s.C ? width : s.C);
    weights = arrays.take(Sizes::template Stencil<T>::kMostTaps);
    x_bar = arrays.take((net.L - 1) * s.H), rx_bar = arrays.take(net.outputs());
    y_dot = arrays.take((net.L - 1) * s.H), x_dot = arrays.take((net.L - 2) * s.H), z_dot = arrays.take(s.H);
    condition_bar = arrays.take(s.C + s.H), input_dot = arrays.take(3 + s.C), f_dot_rows = arrays.take(s.C);
    z_rows = arrays.take(s.H), extra = arrays.take(kExtra<T>);
    count = arrays.count;
  }
};

// What a product starts from: zero, or the same number in every lane.
template <class T>
MIM4D_HD auto zero() {
  return [](int64_t) { return Vec<T>(T(0)); };
}
template <class T>
MIM4D_HD auto lanes_of(const T* from) {
  return [from](int64_t o) { return Vec<T>(from[o]); };
}

template <class T>
MIM4D_HD void set(Vec<T>* to, const T* from, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = Vec<T>(from[i]);
}

template <class T>
MIM4D_HD void clear(Vec<T>* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = Vec<T>(T(0));
}

template <class T>
MIM4D_HD void add(Vec<T>* to, const Vec<T>* from, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = to[i] + from[i];
}

// sum_i x[i] w[i] for a number of terms that is a multiple of 4
template <class T>
MIM4D_HD Vec<T> dot(const Vec<T>* x, const T* w, int64_t n) {
  Vec<T> part[4] = {Vec<T>(T(0)), Vec<T>(T(0)), Vec<T>(T(0)), Vec<T>(T(0))};
  for (int64_t i = 0; i < n; i += 4) {
    MIM4D_UNROLL
    for (int k = 0; k < 4; ++k) part[k] = fma_(x[i + k], Vec<T>(w[i + k]), part[k]);
  }
  return (part[0] + part[1]) + (part[2] + part[3]);
}

// Activations that are computed side by side, as far as there are registers.
#if defined(MIM4D_ISA_avx512)
constexpr int kGroup = 8;
#else
constexpr int kGroup = 2;
#endif

// The SDF decoder on its input, position and feature; leaves z and returns the SDF. x_of(l) is where the layer l, which
// is neither the first nor the last, leaves its x; keep(i, a', a'') sees the derivatives of activation i. h and y are
// scratch.
template <class T, class Sizes, class X, class Keep>
MIM4D_HD Vec<T> sdf_layers(const SdfNet<T, Sizes>& net, const Vec<T>* input, Vec<T>* z, Vec<T>* h, Vec<T>* y, X&& x_of,
                           Keep&& keep) {
  constexpr int tile = kTile<T>;
  const int64_t C = net.size.C, H = net.size.H, L = net.L;
  const Vec<T>* const f = input + 3;
  math::multiply<tile>(3 + C, H, input, net.P, y, lanes_of(net.c));
  for (int64_t l = 1;; ++l) {
    Vec<T>* const next = l + 1 == L ? z : h;
    for (int64_t o = 0; o < H; o += kGroup) {
      Group<T, kGroup> value, slope, bend;
      math::softplus(Group<T, kGroup>::load(y + o), value, slope, bend);
      value.store(next + o);
      for (int i = 0; i < kGroup; ++i) keep((l - 1) * H + o + i, slope.v[i], bend.v[i]);
    }
    if (l + 1 == L) break;
    Vec<T>* const x = x_of(l);
    math::multiply<tile>(C, H, f, net.F + l * C * H, x, [&](int64_t o) { return h[o] + Vec<T>(net.c[l * H + o]); });
    math::multiply<tile>(H, H, x, net.A + (l - 1) * H * H, y, lanes_of(net.b + (l - 1) * H));
  }
  return (dot(z, net.last, H) + dot(f, net.last_F, C)) + Vec<T>(net.last_c[0]);
}

// The SDF at samples whose place the tape has, and what the reverse pass for the normal needs; to `keep`, what the
// backward pass needs too.
template <bool keep, class T, class Sizes>
MIM4D_HD void sdf_forward(const Net<T, Sizes>& net, int64_t channels, const Tape<T, Sizes>& tape,
                          const Scratch<T, Sizes>& s) {
  const int64_t H = net.size.H;
  MIM4D_UNROLL
  for (int d = 0; d < 3; ++d) tape.condition[d] = tape.at->position[d];
  tape.at->weights(s.weights);
  gather(*tape.at, s.weights, net.size.C, channels, tape.feature(), tape.feature_rows);
  tape.sdf[0] = sdf_layers(
      net, tape.condition, tape.z(net.size), s.h, s.y, [&](int64_t l) { return tape.x + (l - 1) * H; },
      [&](int64_t i, Vec<T> slope, Vec<T> bend) {
        tape.slope[i] = slope;
        if constexpr (keep) tape.bend[i] = bend;
      });
}

// The normal: the reverse pass through the SDF decoder, then through the interpolation.
template <class T, class Sizes>
MIM4D_HD void normal_forward(const Net<T, Sizes>& net, int64_t channels, const Tape<T, Sizes>& tape,
                             const Scratch<T, Sizes>& s) {
  constexpr int tile = kTile<T>;
  const int64_t C = net.size.C, H = net.size.H, L = net.L;
  set(tape.q + (L - 1) * H, net.last, H);
  for (int64_t l = L - 2; l >= 0; --l) {
    const Vec<T>* const after = tape.q + (l + 1) * H;
    Vec<T>* const by_y = l > 0 ? s.y : tape.q;
    for (int64_t o = 0; o < H; ++o) by_y[o] = tape.slope[l * H + o] * after[o];
    if (l > 0) math::multiply<tile>(H, H, by_y, net.A_back + (l - 1) * H * H, tape.q + l * H, zero<T>());
  }
  math::multiply<tile>((L - 1) * H, C, tape.q, net.F_back, s.wide, lanes_of(net.last_F));
  transpose_tiles(s.wide, C, tape.q_rows);
  dot_taps(*tape.at, C, channels, tape.q_rows, tape.dots);

  Vec<T>* const n = tape.normal(net.size);
  clear(n, 3);
  math::multiply_few<3>(H, tape.q, net.P_back, n);
  Vec<T> along[3];
  tape.at->gradient(tape.dots, along);
  MIM4D_UNROLL
  for (int d = 0; d < 3; ++d) n[d] = fma_(tape.at->slope[d], along[d], n[d]);
}

// `by_ray`: what each layer adds and what the ray's direction adds to that, (M - 1) * R + 3 values
template <class T, class Sizes>
MIM4D_HD void colour_forward(const Net<T, Sizes>& net, const T* by_ray, const Tape<T, Sizes>& tape,
                             const Scratch<T, Sizes>& s) {
  constexpr int tile = kTile<T>;
  const int64_t R = net.size.R, M = net.M, K = net.K();
  const Vec<T>* const condition = tape.feature();
  math::multiply<tile>(3 + K, R, tape.condition, net.rP, s.y, lanes_of(by_ray));
  for (int64_t o = 0; o < R; ++o) tape.rh[o] = max_(Vec<T>(T(0)), s.y[o]);
  for (int64_t l = 1; l + 1 < M; ++l) {
    Vec<T>*const x = tape.rx + (l - 1) * R, *const h = tape.rh + (l - 1) * R;
    math::multiply<tile>(K, R, condition, net.rK + l * K * R, x,
                         [&](int64_t o) { return h[o] + Vec<T>(by_ray[l * R + o]); });
    math::multiply<tile>(R, R, x, net.rA + (l - 1) * R * R, s.y, lanes_of(net.rb + (l - 1) * R));
    for (int64_t o = 0; o < R; ++o) h[R + o] = max_(Vec<T>(T(0)), s.y[o]);
  }
  Vec<T> colour[3];
  set(colour, by_ray + (M - 1) * R, 3);
  math::multiply_few<3>(K, condition, net.out_K, colour);
  math::multiply_few<3>(R, tape.rh + (M - 2) * R, net.out, colour);
  MIM4D_UNROLL
  for (int k = 0; k < 3; ++k) tape.colour[k] = math::sigmoid(colour[k]);
}

// ---- backward

// Cotangents of a register of samples.
template <class T>
struct Cotangents {
  Vec<T> colour[3], sdf, normal[3];
};

// What the backward pass gives beside the gradients of the weights.
template <class T>
struct RayCotangents {
  Vec<T> position[3], direction[3];
};

// From the colour's cotangent those of feature and z (in s.condition_bar) and, added, of the normal.
template <class T, class Sizes>
MIM4D_HD void colour_backward(const Net<T, Sizes>& net, const NetGrads<T, Sizes>& grads, bool wanted,
                              const Tape<T, Sizes>& tape, const Scratch<T, Sizes>& s, Cotangents<T>& bar) {
  constexpr int tile = kTile<T>;
  const int64_t C = net.size.C, H = net.size.H, R = net.size.R, M = net.M, n = Vec<T>::width;
  Vec<T>* const last_bar = s.rx_bar + (M - 1) * R;
  MIM4D_UNROLL
  for (int k = 0; k < 3; ++k) last_bar[k] = bar.colour[k] * (tape.colour[k] - tape.colour[k] * tape.colour[k]);
  math::multiply<tile>(3, R, last_bar, net.out_back, s.h, zero<T>());
  const Vec<T>* h_bar = s.h;
  for (int64_t l = M - 2; l >= 0; --l) {
    Vec<T>*const x_bar = s.rx_bar + l * R, *const y_bar = l > 0 ? s.y : x_bar;
    const Vec<T>* const h = tape.rh + l * R;
    for (int64_t o = 0; o < R; ++o) y_bar[o] = select(h[o] > Vec<T>(T(0)), h_bar[o], Vec<T>(T(0)));
    if (l == 0) break;
    math::multiply<tile>(R, R, y_bar, net.rA_back + (l - 1) * R * R, x_bar, zero<T>());
    h_bar = x_bar;
    if (wanted) {
      add(grads.rb + (l - 1) * R, y_bar, R);
      transpose_tiles(tape.rx + (l - 1) * R, R, s.wide);
      add_outer<tile>(R, y_bar, R, s.wide, grads.rA + (l - 1) * R * R / n);
    }
  }
  if (wanted) {
    transpose_tiles(tape.z(net.size), H, s.z_rows);
    add_outer<tile>((M - 1) * R, s.rx_bar, C, tape.feature_rows, grads.rF);
    add_outer<tile>((M - 1) * R, s.rx_bar, H, s.z_rows, grads.rZ);
    add_outer<tile>((M - 1) * R, s.rx_bar, kExtra<T>, s.extra, grads.rE);
    transpose_tiles(tape.rh + (M - 2) * R, R, s.wide);
    add_outer<3>(3, last_bar, R, s.wide, grads.out);
    add_outer<3>(3, last_bar, C, tape.feature_rows, grads.out_F);
    add_outer<3>(3, last_bar, H, s.z_rows, grads.out_Z);
    add_outer<3>(3, last_bar, kExtra<T>, s.extra, grads.out_E);
  }
  math::multiply<tile>(net.outputs(), C + H, s.rx_bar, net.rK_back, s.condition_bar, zero<T>());
  math::multiply_few<3>(net.outputs(), s.rx_bar, net.rN_back, bar.normal);
}

// The tangent pass along v, the cotangent of the normal: f_dot, y_dot, x_dot, z_dot.
template <class T, class Sizes>
MIM4D_HD void tangent(const Net<T, Sizes>& net, int64_t channels, const Tape<T, Sizes>& tape,
                      const Scratch<T, Sizes>& s, const Vec<T> (&v)[3], const Vec<T> (&v_cells)[3]) {
  constexpr int tile = kTile<T>;
  const int64_t C = net.size.C, H = net.size.H, L = net.L;
  MIM4D_UNROLL
  for (int d = 0; d < 3; ++d) s.input_dot[d] = v[d];
  Vec<T>* const f_dot = s.input_dot + 3;
  tape.at->weights_along(v_cells, s.weights);
  gather(*tape.at, s.weights, C, channels, f_dot, s.f_dot_rows);
  math::multiply<tile>(3 + C, H, s.input_dot, net.P, s.y_dot, zero<T>());
  for (int64_t l = 1; l < L; ++l) {
    const Vec<T>*const slope = tape.slope + (l - 1) * H, *const before = s.y_dot + (l - 1) * H;
    if (l + 1 == L) {
      for (int64_t o = 0; o < H; ++o) s.z_dot[o] = slope[o] * before[o];
      break;
    }
    Vec<T>* const x_dot = s.x_dot + (l - 1) * H;
    math::multiply<tile>(C, H, f_dot, net.F + l * C * H, x_dot, [&](int64_t o) { return slope[o] * before[o]; });
    math::multiply<tile>(H, H, x_dot, net.A + (l - 1) * H * H, s.y_dot + l * H, zero<T>());
  }
}

// The reverse pass over values and tangents; leaves x_bar, and in s.condition_bar the feature's cotangent.
template <class T, class Sizes>
MIM4D_HD void sdf_backward(const Net<T, Sizes>& net, const NetGrads<T, Sizes>& grads, bool wanted,
                           const Tape<T, Sizes>& tape, const Scratch<T, Sizes>& s, Vec<T> sdf_bar) {
  constexpr int tile = kTile<T>;
  const int64_t C = net.size.C, H = net.size.H, L = net.L, n = Vec<T>::width;
  const Vec<T>*const f_dot = s.input_dot + 3, *const v = s.input_dot;
  if (wanted) {
    const Vec<T>*const f = tape.feature(), *const z = tape.z(net.size);
    for (int64_t o = 0; o < H; ++o) grads.last[o] = grads.last[o] + fma_(sdf_bar, z[o], s.z_dot[o]);
    for (int64_t c = 0; c < C; ++c) grads.last_F[c] = grads.last_F[c] + fma_(sdf_bar, f[c], f_dot[c]);
    grads.last_c[0] = grads.last_c[0] + sdf_bar;
  }
  for (int64_t o = 0; o < H; ++o) s.h[o] = fma_(sdf_bar, Vec<T>(net.last[o]), s.condition_bar[C + o]);
  const Vec<T>* h_bar = s.h;
  for (int64_t l = L - 2; l >= 0; --l) {
    const Vec<T>* const q = tape.q + (l + 1) * H;
    Vec<T>*const x_bar = s.x_bar + l * H, *const y_bar = l > 0 ? s.y : x_bar;
    for (int64_t o = 0; o < H; ++o)
      y_bar[o] = fma_(tape.bend[l * H + o], q[o] * s.y_dot[l * H + o], tape.slope[l * H + o] * h_bar[o]);
    if (l == 0) break;
    math::multiply<tile>(H, H, y_bar, net.A_back + (l - 1) * H * H, x_bar, zero<T>());
    h_bar = x_bar;
    if (wanted) {
      Vec<T>* const sum = grads.A + (l - 1) * H * H / n;
      add(grads.b + (l - 1) * H, y_bar, H);
      add(grads.c + (l - 1) * H, x_bar, H);
      transpose_tiles(tape.x + (l - 1) * H, H, s.wide);
      add_outer<tile>(H, y_bar, H, s.wide, sum);
      for (int64_t o = 0; o < H; ++o) s.y[o] = tape.slope[l * H + o] * q[o];
      transpose_tiles(s.x_dot + (l - 1) * H, H, s.wide);
      add_outer<tile>(H, s.y, H, s.wide, sum);
    }
  }
  if (wanted) {
    add_outer<tile>((L - 1) * H, s.x_bar, C, tape.feature_rows, grads.F);
    add_outer<tile>((L - 1) * H, tape.q, C, s.f_dot_rows, grads.F);
    for (int64_t o = 0; o < H; ++o) {
      Vec<T>* const sum = grads.P + 4 * o;
      MIM4D_UNROLL
      for (int d = 0; d < 3; ++d) sum[d] = fma_(s.x_bar[o], tape.condition[d], fma_(tape.q[o], v[d], sum[d]));
      sum[3] = sum[3] + s.x_bar[o];
    }
  }
  math::multiply<tile>((L - 1) * H, C, s.x_bar, net.F_back, s.condition_bar,
                       [&](int64_t c) { return fma_(sdf_bar, Vec<T>(net.last_F[c]), s.condition_bar[c]); });
}

// Cotangents of position and direction. s.wide holds the feature's cotangent in tiles.
template <class T, class Sizes>
MIM4D_HD void ray_backward(const Net<T, Sizes>& net, int64_t channels, const Tape<T, Sizes>& tape,
                           const Scratch<T, Sizes>& s, const Vec<T> (&v_cells)[3], RayCotangents<T>& bar) {
  clear(bar.position, 3);
  math::multiply_few<3>(net.size.H, s.x_bar, net.P_back, bar.position);
  math::multiply_few<3>(net.size.R, s.rx_bar, net.rP_back, bar.position);
  clear(bar.direction, 3);
  math::multiply_few<3>(net.outputs(), s.rx_bar, net.rD_back, bar.direction);
  Vec<T> by_f[3], by_q[3];
  dot_taps(*tape.at, net.size.C, channels, s.wide, s.weights);
  tape.at->gradient(s.weights, by_f);
  tape.at->curvature(tape.dots, v_cells, by_q);
  MIM4D_UNROLL
  for (int d = 0; d < 3; ++d) bar.position[d] = fma_(tape.at->slope[d], by_f[d] + by_q[d], bar.position[d]);
}

}  // namespace
}  // namespace mim4d::MIM4D_ISA

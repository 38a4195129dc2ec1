#pragma once
// The field at one register of samples, forward and backward: docs/ops/sdf_march.md derives both in the same symbols
// (adjoints end in _bar, tangents in _dot).

#include "math/sdf.h"
#include "sdf_march/cpu_net.h"
#include "sdf_march/cpu_stencil.h"

namespace mim4d::MIM4D_ISA {
namespace {

// What the forward pass of one register of samples leaves for the backward pass of the same ray.
template <class T, class Sizes>
struct Tape {
  Vec<T>*sdf, *colour;   // 1, 3
  Vec<T>* condition;     // C + G + 3: feature, geometry, normal
  Vec<T>* feature_rows;  // C, in tiles
  Vec<T>* x;             // L * H
  Vec<T>*slope, *bend;   // (L - 1) * H: a', a''
  Vec<T>* q;             // L * H: d sdf / d x
  Vec<T>* q_rows;        // C, in tiles: d sdf / d f
  Vec<T>* dots;          // 8: v_k . q_f
  Vec<T>* rx;            // (M - 1) * R
  Vec<T>* rh;            // (M - 1) * R: after the ReLU

  // With a null memory only the count is of use.
  int64_t count;
  const Stencil<T>* at;
  Tape(const Net<T, Sizes>& net, Vec<T>* memory, const Stencil<T>* at) : at(at) {
    const auto& s = net.size;
    Arrays<Vec<T>> arrays{memory};
    sdf = arrays.take(1), colour = arrays.take(3);
    condition = arrays.take(s.C + s.G + 3);
    feature_rows = arrays.take(s.C);
    x = arrays.take(net.L * s.H), slope = arrays.take((net.L - 1) * s.H);
    bend = arrays.take((net.L - 1) * s.H);
    q = arrays.take(net.L * s.H), q_rows = arrays.take(s.C), dots = arrays.take(8);
    rx = arrays.take((net.M - 1) * s.R), rh = arrays.take((net.M - 1) * s.R);
    count = arrays.count;
  }
  Vec<T>* normal(const Sizes& s) const { return condition + s.C + s.G; }
};

// Memory of one thread for the time of one register of samples.
template <class T, class Sizes>
struct Scratch {
  Vec<T>*h, *y;                               // the wider of H, G and R
  Vec<T>* wide;                               // the widest of C, H, R
  Vec<T>*x_bar, *rx_bar, *x_dot, *y_dot;      // L * H, (M - 1) * R + 3, L * H, (L - 1) * H
  Vec<T>*condition_bar, *f_dot, *f_dot_rows;  // C + G, C, C
  Vec<T>*extra, *extra_dot, *geometry_rows;   // extra, extra, G
  int64_t count;
  Scratch(const Net<T, Sizes>& net, Vec<T>* memory) {
    const auto& s = net.size;
    Arrays<Vec<T>> arrays{memory};
    int64_t width = s.H;
    if (s.G > width) width = s.G;
    if (s.R > width) width = s.R;
    h = arrays.take(width), y = arrays.take(width), wide = arrays.take(width > s.C ? width : s.C);
    x_bar = arrays.take(net.L * s.H), rx_bar = arrays.take(net.outputs());
    x_dot = arrays.take(net.L * s.H), y_dot = arrays.take((net.L - 1) * s.H);
    condition_bar = arrays.take(s.C + s.G), f_dot = arrays.take(s.C), f_dot_rows = arrays.take(s.C);
    extra = arrays.take(kExtra<T>), extra_dot = arrays.take(kExtra<T>), geometry_rows = arrays.take(s.G);
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

// The SDF at samples whose place the tape has: feature, sdf, geometry, and what the reverse pass for the normal needs;
// to `keep`, what the backward pass needs too.
template <bool keep, class T, class Sizes>
MIM4D_HD void sdf_forward(const Net<T, Sizes>& net, int64_t channels, const Tape<T, Sizes>& tape,
                          const Scratch<T, Sizes>& s) {
  constexpr int tile = kTile<T>;
  const int64_t C = net.size.C, H = net.size.H, G = net.size.G, L = net.L;
  Vec<T> w[8];
  math::trilinear_weights(tape.at->t[0], tape.at->t[1], tape.at->t[2], w);
  Vec<T>* const f = tape.condition;
  gather(*tape.at, w, C, channels, f, tape.feature_rows);
  math::multiply<tile>(3, H, tape.at->position, net.W, s.h, lanes_of(net.w));
  for (int64_t l = 0; l < L; ++l) {
    Vec<T>* const x = tape.x + l * H;
    math::multiply<tile>(C, H, f, net.U + l * C * H, x, [&](int64_t o) { return s.h[o] + Vec<T>(net.c[l * H + o]); });
    if (l + 1 == L) break;
    math::multiply<tile>(H, H, x, net.A + l * H * H, s.y, lanes_of(net.b + l * H));
    for (int64_t o = 0; o < H; ++o) {
      Vec<T> bend;
      math::softplus(s.y[o], s.h[o], tape.slope[l * H + o], bend);
      if constexpr (keep) tape.bend[l * H + o] = bend;
    }
  }
  const Vec<T>* const x = tape.x + (L - 1) * H;
  tape.sdf[0] = dot(x, net.a, H) + Vec<T>(net.b_sdf[0]);
  math::multiply<tile>(H, G, x, net.geo, f + C, lanes_of(net.b_geo));
}

// The normal: the reverse pass through the SDF decoder, then through the interpolation.
template <class T, class Sizes>
MIM4D_HD void normal_forward(const Net<T, Sizes>& net, int64_t channels, const Tape<T, Sizes>& tape,
                             const Scratch<T, Sizes>& s) {
  constexpr int tile = kTile<T>;
  const int64_t C = net.size.C, H = net.size.H, L = net.L;
  set(tape.q + (L - 1) * H, net.a, H);
  for (int64_t l = L - 2; l >= 0; --l) {
    const Vec<T>* const after = tape.q + (l + 1) * H;
    for (int64_t o = 0; o < H; ++o) s.y[o] = tape.slope[l * H + o] * after[o];
    math::multiply<tile>(H, H, s.y, net.A_back + l * H * H, tape.q + l * H, zero<T>());
  }
  math::multiply<tile>((L - 1) * H, C, tape.q, net.U_back, s.wide, lanes_of(net.q));
  transpose_tiles(s.wide, C, tape.q_rows);
  dot_taps(*tape.at, C, channels, tape.q_rows, tape.dots);

  Vec<T>* const n = tape.normal(net.size);
  clear(n, 3);
  math::multiply_few<3>(H, tape.q, net.W_back, n);
  Vec<T> v[8], along[3];
  MIM4D_UNROLL
  for (int k = 0; k < 8; ++k) v[k] = tape.dots[k];
  const Stencil<T>& at = *tape.at;
  math::trilinear_gradient(v, at.t[0], at.t[1], at.t[2], along[0], along[1], along[2]);
  MIM4D_UNROLL
  for (int d = 0; d < 3; ++d) n[d] = fma_(at.slope[d], along[d], n[d]);
}

// `by_ray`: what each layer adds and what the ray's direction adds to that, (M - 1) * R + 3 values
template <class T, class Sizes>
MIM4D_HD void colour_forward(const Net<T, Sizes>& net, const T* by_ray, const Tape<T, Sizes>& tape,
                             const Scratch<T, Sizes>& s) {
  constexpr int tile = kTile<T>;
  const int64_t R = net.size.R, M = net.M;
  math::multiply<tile>(3, R, tape.at->position, net.rW, s.h, lanes_of(net.rw));
  const Vec<T>* h = s.h;
  for (int64_t l = 0; l + 1 < M; ++l) {
    Vec<T>*const x = tape.rx + l * R, *const next = tape.rh + l * R;
    math::multiply<tile>(net.K(), R, tape.condition, net.rU + l * net.K() * R, x,
                         [&](int64_t o) { return h[o] + Vec<T>(by_ray[l * R + o]); });
    math::multiply<tile>(R, R, x, net.rA + l * R * R, next, lanes_of(net.rb + l * R));
    for (int64_t o = 0; o < R; ++o) next[o] = max_(Vec<T>(T(0)), next[o]);
    h = next;
  }
  Vec<T> z[3];
  set(z, by_ray + (M - 1) * R, 3);
  math::multiply_few<3>(net.K(), tape.condition, net.out_U, z);
  math::multiply_few<3>(R, h, net.out, z);
  MIM4D_UNROLL
  for (int k = 0; k < 3; ++k) tape.colour[k] = math::sigmoid(z[k]);
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

// From the colour's cotangent those of feature and geometry (in s.condition_bar) and, added, of the normal.
template <class T, class Sizes>
MIM4D_HD void colour_backward(const Net<T, Sizes>& net, const NetGrads<T, Sizes>& grads, bool wanted,
                              const Tape<T, Sizes>& tape, const Scratch<T, Sizes>& s, Cotangents<T>& bar) {
  constexpr int tile = kTile<T>;
  const int64_t C = net.size.C, G = net.size.G, R = net.size.R, M = net.M, n = Vec<T>::width;
  Vec<T>* const z_bar = s.rx_bar + (M - 1) * R;
  MIM4D_UNROLL
  for (int k = 0; k < 3; ++k) z_bar[k] = bar.colour[k] * (tape.colour[k] - tape.colour[k] * tape.colour[k]);
  math::multiply<tile>(3, R, z_bar, net.out_back, s.h, zero<T>());
  const Vec<T>* h_bar = s.h;
  for (int64_t l = M - 2; l >= 0; --l) {
    Vec<T>* const x_bar = s.rx_bar + l * R;
    const Vec<T>* const next = tape.rh + l * R;
    for (int64_t o = 0; o < R; ++o) s.y[o] = select(next[o] > Vec<T>(T(0)), h_bar[o], Vec<T>(T(0)));
    math::multiply<tile>(R, R, s.y, net.rA_back + l * R * R, x_bar, zero<T>());
    h_bar = x_bar;
    if (wanted) {
      add(grads.rb + l * R, s.y, R);
      transpose_tiles(tape.rx + l * R, R, s.wide);
      add_outer<tile>(R, s.y, R, s.wide, grads.rA + l * R * R / n);
    }
  }
  if (wanted) {
    transpose_tiles(tape.condition + C, G, s.geometry_rows);
    add_outer<tile>((M - 1) * R, s.rx_bar, C, tape.feature_rows, grads.rU);
    add_outer<tile>((M - 1) * R, s.rx_bar, G, s.geometry_rows, grads.rG);
    add_outer<tile>((M - 1) * R, s.rx_bar, kExtra<T>, s.extra, grads.rE);
    transpose_tiles(tape.rh + (M - 2) * R, R, s.wide);
    add_outer<3>(3, z_bar, R, s.wide, grads.out);
    add_outer<3>(3, z_bar, C, tape.feature_rows, grads.out_U);
    add_outer<3>(3, z_bar, G, s.geometry_rows, grads.out_G);
    add_outer<3>(3, z_bar, kExtra<T>, s.extra, grads.out_E);
  }
  math::multiply<tile>(net.outputs(), C + G, s.rx_bar, net.rU_back, s.condition_bar, zero<T>());
  math::multiply_few<3>(net.outputs(), s.rx_bar, net.rn_back, bar.normal);
}

// The tangent pass along v, the cotangent of the normal: x_dot, y_dot, f_dot. The last layer's x_dot lacks U f_dot:
// nothing but its sum over the samples is of use, and NetGrads::unpack adds that.
template <class T, class Sizes>
MIM4D_HD void tangent(const Net<T, Sizes>& net, int64_t channels, const Tape<T, Sizes>& tape,
                      const Scratch<T, Sizes>& s, const Vec<T> (&v)[3], const Vec<T> (&v_cells)[3]) {
  constexpr int tile = kTile<T>;
  const int64_t C = net.size.C, H = net.size.H, L = net.L;
  const Stencil<T>& at = *tape.at;
  Vec<T> w[8];
  math::trilinear_weights_along(at.t[0], at.t[1], at.t[2], v_cells[0], v_cells[1], v_cells[2], w);
  gather(at, w, C, channels, s.f_dot, s.f_dot_rows);
  math::multiply<tile>(3, H, v, net.W, s.x_dot, zero<T>());
  for (int64_t l = 0; l + 1 < L; ++l) {
    Vec<T>*const x_dot = s.x_dot + l * H, *const y_dot = s.y_dot + l * H;
    math::multiply<tile>(C, H, s.f_dot, net.U + l * C * H, x_dot, [&](int64_t o) { return x_dot[o]; });
    math::multiply<tile>(H, H, x_dot, net.A + l * H * H, y_dot, zero<T>());
    for (int64_t o = 0; o < H; ++o) x_dot[H + o] = tape.slope[l * H + o] * y_dot[o];
  }
}

// The reverse pass over values and tangents; leaves x_bar, and in s.condition_bar the feature's cotangent.
template <class T, class Sizes>
MIM4D_HD void sdf_backward(const Net<T, Sizes>& net, const NetGrads<T, Sizes>& grads, bool wanted,
                           const Tape<T, Sizes>& tape, const Scratch<T, Sizes>& s, Vec<T> sdf_bar) {
  constexpr int tile = kTile<T>;
  const int64_t C = net.size.C, H = net.size.H, G = net.size.G, L = net.L, n = Vec<T>::width;
  {
    Vec<T>* const x_bar = s.x_bar + (L - 1) * H;
    const Vec<T>*const x = tape.x + (L - 1) * H, *const x_dot = s.x_dot + (L - 1) * H;
    const Vec<T>* const geometry_bar = s.condition_bar + C;
    math::multiply<tile>(G, H, geometry_bar, net.geo_back, x_bar,
                         [&](int64_t o) { return sdf_bar * Vec<T>(net.a[o]); });
    if (wanted) {
      for (int64_t o = 0; o < H; ++o) grads.a[o] = grads.a[o] + fma_(sdf_bar, x[o], x_dot[o]);
      grads.b_sdf[0] = grads.b_sdf[0] + sdf_bar;
      add(grads.b_geo, geometry_bar, G);
      transpose_tiles(x, H, s.wide);
      add_outer<tile>(G, geometry_bar, H, s.wide, grads.geo);
    }
  }
  for (int64_t l = L - 2; l >= 0; --l) {
    Vec<T>* const x_bar = s.x_bar + l * H;
    const Vec<T>* const q = tape.q + (l + 1) * H;
    for (int64_t o = 0; o < H; ++o) {
      const Vec<T> slope = tape.slope[l * H + o];
      s.y[o] = fma_(tape.bend[l * H + o], q[o] * s.y_dot[l * H + o], slope * x_bar[H + o]);
      s.h[o] = slope * q[o];
    }
    math::multiply<tile>(H, H, s.y, net.A_back + l * H * H, x_bar, zero<T>());
    if (wanted) {
      add(grads.b + l * H, s.y, H);
      transpose_tiles(tape.x + l * H, H, s.wide);
      add_outer<tile>(H, s.y, H, s.wide, grads.A + l * H * H / n);
      transpose_tiles(s.x_dot + l * H, H, s.wide);
      add_outer<tile>(H, s.h, H, s.wide, grads.A + l * H * H / n);
    }
  }
  if (wanted) {
    add(grads.c, s.x_bar, L * H);
    add_outer<tile>(L * H, s.x_bar, C, tape.feature_rows, grads.U);
    add_outer<tile>((L - 1) * H, tape.q, C, s.f_dot_rows, grads.U);
    add(grads.f_dot, s.f_dot, C);
    add_outer<tile>(H, s.x_bar, kExtra<T>, s.extra, grads.W);
    add_outer<tile>(H, tape.q, kExtra<T>, s.extra_dot, grads.W);
  }
  math::multiply<tile>(L * H, C, s.x_bar, net.U_back, s.condition_bar, [&](int64_t c) { return s.condition_bar[c]; });
}

// Cotangents of position and direction. s.wide holds the feature's cotangent in tiles.
template <class T, class Sizes>
MIM4D_HD void ray_backward(const Net<T, Sizes>& net, int64_t channels, const Tape<T, Sizes>& tape,
                           const Scratch<T, Sizes>& s, const Vec<T> (&v_cells)[3], RayCotangents<T>& bar) {
  const Stencil<T>& at = *tape.at;
  clear(bar.position, 3);
  math::multiply_few<3>(net.size.H, s.x_bar, net.W_back, bar.position);
  math::multiply_few<3>(net.size.R, s.rx_bar, net.rW_back, bar.position);
  clear(bar.direction, 3);
  math::multiply_few<3>(net.outputs(), s.rx_bar, net.rd_back, bar.direction);
  Vec<T> by_f[8], by_q[8], g[3], bend[3];
  dot_taps(at, net.size.C, channels, s.wide, by_f);
  MIM4D_UNROLL
  for (int k = 0; k < 8; ++k) by_q[k] = tape.dots[k];
  math::trilinear_gradient(by_f, at.t[0], at.t[1], at.t[2], g[0], g[1], g[2]);
  math::trilinear_bend(by_q, at.t[0], at.t[1], at.t[2], v_cells[0], v_cells[1], v_cells[2], bend[0], bend[1], bend[2]);
  MIM4D_UNROLL
  for (int d = 0; d < 3; ++d) bar.position[d] = fma_(at.slope[d], g[d] + bend[d], bar.position[d]);
}

}  // namespace
}  // namespace mim4d::MIM4D_ISA

#pragma once
// The decoders' reverse passes at a thread's sample, and the gradients of their weights: products of two vectors,
// summed over the samples of a warp, which owns its sums. docs/ops/sdf_march.md derives them in the same symbols
// (adjoints end in _bar, tangents in _dot).

#include "sdf_march/field.cuh"

namespace mim4d {
namespace {

// A warp's shared memory for sums of products: a row of 16 values of a and one of 32 of b for each sample. With these
// strides no two threads of a quarter of a warp meet a bank when they move four values at once.
constexpr int kRowA = 20, kRowB = 36;
constexpr int kStage = 32 * (kRowA + kRowB);

template <class A, class B>
struct Factors {
  const A& a;  // of the layer's outputs
  const B& b;  // of its inputs
};
template <class A, class B>
Factors(const A&, const B&) -> Factors<A, B>;

// Adds the products of a warp's samples [8 J inputs from i0][16 outputs from o0] to those of this thread: outputs 4
// (lane % 4) and on, inputs J (lane / 4) and on. A sample that is not alive counts zero, whatever its values are.
template <int J, class T, class A, class B>
__device__ __forceinline__ void add_products(int o0, int O, int i0, int I, const Factors<A, B>& factors, bool alive,
                                             T* stage, T (&sum)[J][4]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  T *const rows_a = stage, *const rows_b = stage + 32 * kRowA;
  __syncwarp();
#pragma unroll
  for (int o = 0; o < 16; ++o) rows_a[lane * kRowA + o] = alive && o0 + o < O ? factors.a[o0 + o] : T(0);
#pragma unroll
  for (int i = 0; i < 8 * J; ++i) rows_b[lane * kRowB + i] = alive && i0 + i < I ? factors.b[i0 + i] : T(0);
  __syncwarp();
  [[maybe_unused]] constexpr int unroll = sizeof(T) == 8 ? 1 : 2;
#pragma unroll unroll
  for (int s = 0; s < 32; ++s) {
    T a[4], b[J];
    load_pack(rows_a + s * kRowA + lane % 4 * 4, a);
    load_pack(rows_b + s * kRowB + lane / 4 * J, b);
#pragma unroll
    for (int j = 0; j < J; ++j)
#pragma unroll
      for (int m = 0; m < 4; ++m) sum[j][m] += b[j] * a[m];
  }
}

// sums[i][o] += sum over the samples of all a[o] b[i], for O outputs and I inputs; bias[o] += that of the first a alone
template <class N, int J, class T, class A, class B, class... More>
__device__ __forceinline__ void add_outer(int O, int I, bool alive, T* stage, T* sums, T* bias,
                                          const Factors<A, B>& first, const More&... more) {
  [[maybe_unused]] constexpr int whole = kWidth<N>;
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll whole
  for (int o0 = 0; o0 < O; o0 += 16) {
#pragma unroll whole
    for (int i0 = 0; i0 < I; i0 += 8 * J) {
      T sum[J][4];
#pragma unroll
      for (int k = 0; k < 4 * J; ++k) sum[k / 4][k % 4] = T(0);
      add_products(o0, O, i0, I, first, alive, stage, sum);
      if (bias && i0 == 0 && lane < 16 && o0 + lane < O) {
        T total = bias[o0 + lane];
        for (int s = 0; s < 32; ++s) total += stage[s * kRowA + lane];
        bias[o0 + lane] = total;
      }
      (add_products(o0, O, i0, I, more, alive, stage, sum), ...);
#pragma unroll
      for (int j = 0; j < J; ++j) {
        const int i = i0 + lane / 4 * J + j, o = o0 + lane % 4 * 4;
        if (i >= I) continue;
        T* const to = sums + i * O + o;
        if (N::fixed && o + 4 <= O) {  // rows of 16 and 4: whole packs
          T own[4];
          load_pack(to, own);
#pragma unroll
          for (int m = 0; m < 4; ++m) own[m] += sum[j][m];
          store_pack(to, own);
          continue;
        }
#pragma unroll
        for (int m = 0; m < 4; ++m)
          if (o + m < O) to[m] += sum[j][m];
      }
    }
  }
}

// How many inputs, over 8, are taken at once of the longest vectors; double has no registers to spare.
template <class N, class T>
constexpr int kFeatures = N::fixed         ? 4
                          : sizeof(T) == 4 ? 2
                                           : 1;

// What the weights' gradients are added to: a warp's sums, laid out as the weights are; null: not wanted.
template <class T>
struct WarpSums {
  T* sums;
  T* stage;
  bool alive;
};

// From the cotangent of the colour those of feature and geometry (f_bar, g_bar), and, added, those of direction and
// normal (e_bar) and of the position.
template <class N, class T, class F, class G>
__device__ __forceinline__ void colour_backward(const N& net, const T* w, const WarpSums<T>& sums, const F& f,
                                                const G& g, const T (&p)[3], const T (&e)[N::extra],
                                                const T (&colour)[3], const T (&colour_bar)[3],
                                                const ColourTape<T>& tape, Scratch<N::fixed, T> scratch,
                                                const Column<T>& f_bar, const Column<T>& g_bar, T (&e_bar)[N::extra],
                                                T (&position_bar)[3]) {
  [[maybe_unused]] constexpr int whole = kWidth<N>;
  auto x_bar = scratch.take(net.R), y_bar = scratch.take(net.R);
  T z_bar[4] = {T(0), T(0), T(0), T(0)};
#pragma unroll
  for (int k = 0; k < 3; ++k) z_bar[k] = colour_bar[k] * (colour[k] - colour[k] * colour[k]);
  for (int c = 0; c < net.C; ++c) f_bar[c] = T(0);
  for (int c = 0; c < net.G; ++c) g_bar[c] = T(0);
  {
    const int last = net.colour_layer(net.M - 1);
    multiply_back<N, 4, N::fixed>(net.R, 4, z_bar, w + last + net.rA(), [&](int k, T value) { x_bar[k] = value; });
    if (sums.sums)
      add_outer<N, 2>(4, net.R, sums.alive, sums.stage, sums.sums + last + net.rA(), sums.sums + last + net.b_out(),
                      Factors(z_bar, tape.x + (net.M - 1) * net.R));
  }
#pragma unroll 1
  for (int l = net.M - 1;; --l) {
    const int at = net.colour_layer(l);
    const T* const layer = w + at;
    if (sums.sums) {
      T* const to = sums.sums + at;
      add_outer<N, 1>(net.R, N::extra, sums.alive, sums.stage, to, to + net.rc(), Factors(x_bar, e));
      add_outer<N, kFeatures<N, T>>(net.R, net.C, sums.alive, sums.stage, to + net.rU(), static_cast<T*>(nullptr),
                                    Factors(x_bar, f));
      add_outer<N, 2>(net.R, net.G, sums.alive, sums.stage, to + net.rG(), static_cast<T*>(nullptr), Factors(x_bar, g));
    }
    multiply_back<N, 4, true>(N::extra, net.R, x_bar, layer, [&](int k, T value) { e_bar[k] += value; });
    multiply_back<N, 4, false>(net.C, net.R, x_bar, layer + net.rU(), [&](int k, T value) { f_bar[k] += value; });
    multiply_back<N, 4, false>(net.G, net.R, x_bar, layer + net.rG(), [&](int k, T value) { g_bar[k] += value; });
    if (l == 0) break;
    const int before = net.colour_layer(l - 1);
#pragma unroll whole
    for (int o = 0; o < net.R; ++o) y_bar[o] = tape.h[(l - 1) * net.R + o] > T(0) ? x_bar[o] : T(0);
    if (sums.sums)
      add_outer<N, 2>(net.R, net.R, sums.alive, sums.stage, sums.sums + before + net.rA(),
                      sums.sums + before + net.rb(), Factors(y_bar, tape.x + (l - 1) * net.R));
    multiply_back<N, 4, N::fixed>(net.R, net.R, y_bar, w + before + net.rA(),
                                  [&](int k, T value) { x_bar[k] = value; });
  }
  if (sums.sums)
    add_outer<N, 1>(net.R, 3, sums.alive, sums.stage, sums.sums + net.rW(), sums.sums + net.rw(), Factors(x_bar, p));
  multiply_back<N, 3, true>(3, net.R, x_bar, w + net.rW(), [&](int k, T value) { position_bar[k] += value; });
}

// What the tangent pass leaves.
template <class T>
struct TangentTape {
  Column<T> x;  // L * H: x_dot
  Column<T> y;  // (L - 1) * H: y_dot
};

// The tangent pass along v, the cotangent of the normal.
template <class N, class T, class F>
__device__ __forceinline__ void sdf_tangent(const N& net, const T* w, const F& f_dot, const T (&v)[3],
                                            const SdfTape<T>& tape, const TangentTape<T>& dots,
                                            Scratch<N::fixed, T> scratch) {
  [[maybe_unused]] constexpr int whole = kWidth<N>;
  auto h_dot = scratch.take(net.H), x_dot = scratch.take(net.H);
  multiply<N>(3, net.H, v, w, h_dot, [](int) { return T(0); });
#pragma unroll 1
  for (int l = 0;; ++l) {
    const T* const layer = w + net.layer(l);
    multiply<N>(net.C, net.H, f_dot, layer, x_dot, [&](int o) { return h_dot[o]; });
#pragma unroll whole
    for (int o = 0; o < net.H; ++o) dots.x[l * net.H + o] = x_dot[o];
    if (l + 1 == net.L) break;
    multiply<N>(net.H, net.H, x_dot, layer + net.A(), h_dot, [](int) { return T(0); });
#pragma unroll whole
    for (int o = 0; o < net.H; ++o) {
      dots.y[l * net.H + o] = h_dot[o];
      h_dot[o] = tape.slope[l * net.H + o] * h_dot[o];
    }
  }
}

// The reverse pass over values and tangents: adds to the cotangents of feature and position.
template <class N, class T, class F>
__device__ __forceinline__ void sdf_backward(const N& net, const T* w, const WarpSums<T>& sums, const F& f,
                                             const F& f_dot, const T (&p)[3], const T (&v)[3], T sdf_bar,
                                             const Column<T>& g_bar, const SdfTape<T>& tape, const TangentTape<T>& dots,
                                             Scratch<N::fixed, T> scratch, const Column<T>& f_bar,
                                             T (&position_bar)[3]) {
  [[maybe_unused]] constexpr int whole = kWidth<N>;
  auto x_bar = scratch.take(net.H), y_bar = scratch.take(net.H), z = scratch.take(net.H);
  {
    const int at = net.layer(net.L - 1);
    const T* const last = w + at;
    multiply_back<N, 4, N::fixed>(net.H, net.G, g_bar, last + net.geometry(),
                                  [&](int k, T value) { x_bar[k] = value + sdf_bar * last[net.A() + k]; });
    if (sums.sums) {
      T* const to = sums.sums + at;
      const Column<T> x = tape.x + (net.L - 1) * net.H, x_dot = dots.x + (net.L - 1) * net.H;
      const T bar[1] = {sdf_bar}, one[1] = {T(1)};
      add_outer<N, 2>(1, net.H, sums.alive, sums.stage, to + net.A(), to + net.b_sdf(), Factors(bar, x),
                      Factors(one, x_dot));
      if (net.G > 0)
        add_outer<N, 2>(net.G, net.H, sums.alive, sums.stage, to + net.geometry(), to + net.b_geometry(),
                        Factors(g_bar, x));
    }
  }
#pragma unroll 1
  for (int l = net.L - 1;; --l) {
    const int at = net.layer(l);
    if (sums.sums)
      add_outer<N, kFeatures<N, T>>(net.H, net.C, sums.alive, sums.stage, sums.sums + at, sums.sums + at + net.c(),
                                    Factors(x_bar, f), Factors(tape.q + l * net.H, f_dot));
    multiply_back<N, 4, false>(net.C, net.H, x_bar, w + at, [&](int k, T value) { f_bar[k] += value; });
    if (l == 0) break;
    const int before = net.layer(l - 1), i = (l - 1) * net.H;
#pragma unroll whole
    for (int o = 0; o < net.H; ++o) {
      const T slope = tape.slope[i + o], q = tape.q[l * net.H + o];
      y_bar[o] = tape.bend[i + o] * (q * dots.y[i + o]) + slope * x_bar[o];
      z[o] = slope * q;
    }
    if (sums.sums)
      add_outer<N, 2>(net.H, net.H, sums.alive, sums.stage, sums.sums + before + net.A(), sums.sums + before + net.b(),
                      Factors(y_bar, tape.x + i), Factors(z, dots.x + i));
    multiply_back<N, 4, N::fixed>(net.H, net.H, y_bar, w + before + net.A(), [&](int k, T value) { x_bar[k] = value; });
  }
  if (sums.sums)
    add_outer<N, 1>(net.H, 3, sums.alive, sums.stage, sums.sums, sums.sums + net.w(), Factors(x_bar, p),
                    Factors(tape.q, v));
  multiply_back<N, 3, true>(3, net.H, x_bar, w, [&](int k, T value) { position_bar[k] += value; });
}

}  // namespace
}  // namespace mim4d

#pragma once
// The two decoders as the CPU kernels read them, and the gradients of their weights as they sum them: the folded
// weights of sdf_march/fold.h, in the order of registers.

#include "cpu/tile.h"
#include "cpu/vec_math.h"
#include "math/mlp.h"
#include "sdf_march/cpu_stencil.h"
#include "sdf_march/fold.h"
#include "sdf_march/params.h"

namespace mim4d::MIM4D_ISA {
namespace {

// Outputs whose sums stay in registers together. Every width is padded with zeros to a multiple of it.
#if defined(MIM4D_ISA_avx512)
template <class T>
constexpr int kTile = sizeof(T) == 4 ? 16 : 8;
#else
template <class T>
constexpr int kTile = 8;
#endif

constexpr int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Padded widths: C of a feature, H of the SDF decoder's hidden layers, R of the colour decoder's. Known to the
// compiler, loops over them unroll.
struct FixedSizes {
  static constexpr int64_t C = 32, H = 16, R = 16;
  template <class T>
  using Stencil = LinearStencil<T>;

  template <class T>
  explicit FixedSizes(const SdfFieldParams<T>&) {}

  template <class T>
  static bool fit(const SdfFieldParams<T>& p) {
    return p.C == C && p.sdf_net.hidden == H && p.mode == Mode::trilinear;
  }
  template <class T>
  static bool fit(const SdfMarchParams<T>& p) {
    return fit<T>(static_cast<const SdfFieldParams<T>&>(p)) && p.rgb_net.hidden == R;
  }
};

struct AnySizes {
  int64_t C, H, R = 0;
  template <class T>
  using Stencil = AnyStencil<T>;

  template <class T>
  explicit AnySizes(const SdfFieldParams<T>& p) : C(round_up(p.C, kTile<T>)), H(round_up(p.sdf_net.hidden, kTile<T>)) {}
  template <class T>
  explicit AnySizes(const SdfMarchParams<T>& p) : AnySizes(static_cast<const SdfFieldParams<T>&>(p)) {
    R = round_up(p.rgb_net.hidden, kTile<T>);
  }
};

// f(sizes known to the compiler, or not)
template <class T, template <class> class Params, class F>
MIM4D_HD auto with_sizes(const Params<T>& p, F&& f) {
  if constexpr (sizeof(T) == 4) {
    if (FixedSizes::fit(p)) return f(FixedSizes(p));
  }
  return f(AnySizes(p));
}

// Beside feature and z, the gradients of the colour decoder's weights see these inputs: the normal, 1, the position and
// the direction.
template <class T>
constexpr int64_t kExtra = round_up(10, Vec<T>::width);
constexpr int64_t kOne = 3, kPosition = 4, kDirection = 7;

// Hands out consecutive arrays; with a null base it only counts.
template <class T>
struct Arrays {
  T* next;
  int64_t count = 0;
  T* take(int64_t n) {
    T* const p = next;
    count += n;
    if (next) next += n;
    return p;
  }
};

template <class T>
struct ArrayOf {
  T** array;
  int64_t n;
};

// ---- the weights: matrices lie input by input, w[k][o], as math::multiply reads them

// to[k][o] and back[o][k] from rows [o][k]
template <class T>
void pack_matrix(const double* from, int64_t rows, int64_t columns, T* to, int64_t to_stride, T* back,
                 int64_t back_stride) {
  for (int64_t o = 0; o < rows; ++o)
    for (int64_t k = 0; k < columns; ++k) {
      const T value = static_cast<T>(from[o * columns + k]);
      if (to) to[k * to_stride + o] = value;
      if (back) back[o * back_stride + k] = value;
    }
}

template <class T>
void pack_vector(const double* from, int64_t n, T* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = static_cast<T>(from[i]);
}

// The SDF decoder. In the first layer position and feature are one input of 3 + C values; F of the layers lie one
// behind the other.
template <class T, class Sizes>
struct SdfNet {
  Sizes size;
  int64_t L, count;
  T *P, *F, *c;               // [3][H], then per hidden layer [C][H]; [H]
  T *P_back, *F_back;         // [H][3], [(L - 1) * H][C]
  T *A, *A_back, *b;          // per hidden layer but the first [H][H], [H][H], [H]
  T *last, *last_F, *last_c;  // [H], [C], [1]: the SDF itself

  template <class Params>
  SdfNet(const Params& p, T* memory) : size(p), L(p.sdf_net.layers) {
    const int64_t C = size.C, H = size.H;
    Arrays<T> arrays{memory};
    const ArrayOf<T> all[] = {{&P, 3 * H},
                              {&F, (L - 1) * C * H},
                              {&c, (L - 1) * H},
                              {&P_back, H * 3},
                              {&F_back, (L - 1) * H * C},
                              {&A, (L - 2) * H * H},
                              {&A_back, (L - 2) * H * H},
                              {&b, (L - 2) * H},
                              {&last, H},
                              {&last_F, C},
                              {&last_c, 1}};
    for (auto [array, n] : all) *array = arrays.take(n);
    count = round_up(arrays.count, Vec<T>::width);
  }

  void pack(const Folded& from) const {
    const int64_t C = size.C, H = size.H, h = from.H;
    for (int64_t i = 0; i < count; ++i) P[i] = T(0);
    for (int64_t l = 0; l + 1 < L; ++l) {
      const FoldedLayer& layer = from.sdf[l];
      pack_matrix(layer.F, h, from.C, F + l * C * H, H, F_back + l * H * C, C);
      pack_vector(layer.c, h, c + l * H);
      if (l == 0) {
        pack_matrix(layer.P, h, 3, P, H, P_back, 3);
      } else {
        pack_matrix(layer.A, h, h, A + (l - 1) * H * H, H, A_back + (l - 1) * H * H, H);
        pack_vector(layer.b, h, b + (l - 1) * H);
      }
    }
    pack_vector(from.sdf[L - 1].A, h, last);
    pack_vector(from.sdf[L - 1].F, from.C, last_F);
    pack_vector(from.sdf[L - 1].c, 1, last_c);
  }
};

// Both. The colour decoder's condition is feature, z and normal in one, and the direction, which a ray's samples share;
// in the first layer the position comes before them.
template <class T, class Sizes>
struct Net : SdfNet<T, Sizes> {
  using SdfNet<T, Sizes>::size;
  int64_t M;
  T *rP, *rK, *rD, *rc;            // [3][R], then per hidden layer [C + H + 3][R]; [3][R]; [R]
  T *rA, *rA_back, *rb;            // per hidden layer but the first
  T *out, *out_back;               // [R][3], [3][R]
  T *out_K, *out_D, *out_c;        // [C + H + 3][3], [3][3], [3]
  T* rP_back;                      // [R][3]
  T *rK_back, *rN_back, *rD_back;  // back from the (M - 1) * R hidden values and the 3 last: to [C + H], [3], [3]

  int64_t K() const { return size.C + size.H + 3; }
  int64_t outputs() const { return (M - 1) * size.R + 3; }

  Net(const SdfMarchParams<T>& p, T* memory) : SdfNet<T, Sizes>(p, memory), M(p.rgb_net.layers) {
    const int64_t C = size.C, H = size.H, R = size.R;
    Arrays<T> arrays{memory ? memory + this->count : nullptr};
    const ArrayOf<T> all[] = {{&rP, 3 * R},
                              {&rK, (M - 1) * K() * R},
                              {&rD, (M - 1) * 3 * R},
                              {&rc, (M - 1) * R},
                              {&rA, (M - 2) * R * R},
                              {&rA_back, (M - 2) * R * R},
                              {&rb, (M - 2) * R},
                              {&out, R * 3},
                              {&out_back, 3 * R},
                              {&out_K, K() * 3},
                              {&out_D, 9},
                              {&out_c, 3},
                              {&rP_back, R * 3},
                              {&rK_back, outputs() * (C + H)},
                              {&rN_back, outputs() * 3},
                              {&rD_back, outputs() * 3}};
    for (auto [array, n] : all) *array = arrays.take(n);
    this->count += arrays.count;
  }

  void pack(const Folded& from) const {
    const int64_t C = size.C, H = size.H, R = size.R, r = from.R;
    for (T* p = rP; p < this->P + this->count; ++p) *p = T(0);
    SdfNet<T, Sizes> field = *this;
    field.count = rP - this->P;
    field.pack(from);
    for (int64_t l = 0; l < M; ++l) {
      const FoldedLayer& layer = from.rgb[l];
      const bool last = l + 1 == M;
      const int64_t rows = last ? 3 : r, stride = last ? 3 : R;
      T *const to = last ? out_K : rK + l * K() * R, *const back = rK_back + l * R * (C + H);
      pack_matrix(layer.F, rows, from.C, to, stride, back, C + H);
      pack_matrix(layer.Z, rows, from.H, to + C * stride, stride, back + C, C + H);
      pack_matrix(layer.N, rows, 3, to + (C + H) * stride, stride, rN_back + l * R * 3, 3);
      pack_matrix(layer.D, rows, 3, last ? out_D : rD + l * 3 * R, stride, rD_back + l * R * 3, 3);
      pack_vector(layer.c, rows, last ? out_c : rc + l * R);
      if (l == 0) {
        pack_matrix(layer.P, r, 3, rP, R, rP_back, 3);
      } else if (last) {
        pack_matrix(layer.A, 3, r, out, 3, out_back, R);
      } else {
        pack_matrix(layer.A, r, r, rA + (l - 1) * R * R, R, rA_back + (l - 1) * R * R, R);
        pack_vector(layer.b, r, rb + (l - 1) * R);
      }
    }
  }
};

// ---- the gradients: sums over samples, in registers

// sum[o][i] += sum over the samples of g[o] x[i], for `outputs` rows g and the tiles of x, whose rows are samples
template <int tile, class T>
MIM4D_HD void add_outer(int64_t outputs, const Vec<T>* g, int64_t inputs, const Vec<T>* x, Vec<T>* sum) {
  constexpr int n = Vec<T>::width;
  for (int64_t o = 0; o < outputs; o += tile)
    for (int64_t i = 0; i < inputs; i += n) {
      math::multiply_tile<tile, n>(n, x + i, reinterpret_cast<const T*>(g + o), 1, sum, [=](int k) { return sum[k]; });
      sum += tile;
    }
}

// Element [o][i] of what add_outer sums.
template <int tile, class T>
T outer_at(const Vec<T>* sum, int64_t inputs, int64_t o, int64_t i) {
  constexpr int n = Vec<T>::width;
  return reinterpret_cast<const T*>(sum + (o / tile * (inputs / n) + i / n) * tile + o % tile)[i % n];
}

template <class T>
void add_lanes(const Vec<T>* from, int64_t n, double* to) {
  for (int64_t i = 0; i < n; ++i) to[i] += sum(from[i]);
}

// to[o][k] += rows `row` on and columns `first` on of what add_outer sums
template <int tile, class T>
void add_matrix(const Vec<T>* from, int64_t row, int64_t rows, int64_t inputs, int64_t first, int64_t columns,
                double* to) {
  for (int64_t o = 0; o < rows; ++o)
    for (int64_t i = 0; i < columns; ++i) to[o * columns + i] += outer_at<tile>(from, inputs, row + o, first + i);
}

template <class T, class Sizes>
struct NetGrads {
  Sizes size;
  int64_t L, M, count;
  Vec<T>*F, *P, *A, *b, *c;            // outer (L - 1) H x C; lanes 4 H; per middle layer outer H x H; lanes (L - 2) H
  Vec<T>*last, *last_F, *last_c;       // lanes H, C, 1
  Vec<T>*rF, *rZ, *rE, *rA, *rb;       // outer (M - 1) R x C, x H, x extra, per middle layer R x R; lanes (M - 2) R
  Vec<T>*out, *out_F, *out_Z, *out_E;  // outer 3 x R, x C, x H, x extra
  Vec<T>* inv_s;                       // lanes 1

  NetGrads(const SdfMarchParams<T>& p, Vec<T>* memory) : size(p), L(p.sdf_net.layers), M(p.rgb_net.layers) {
    const int64_t C = size.C, H = size.H, R = size.R, E = kExtra<T>, n = Vec<T>::width;
    Arrays<Vec<T>> arrays{memory};
    const ArrayOf<Vec<T>> all[] = {{&F, (L - 1) * H * C / n},
                                   {&P, 4 * H},
                                   {&A, (L - 2) * H * H / n},
                                   {&b, (L - 2) * H},
                                   {&c, (L - 2) * H},
                                   {&last, H},
                                   {&last_F, C},
                                   {&last_c, 1},
                                   {&rF, (M - 1) * R * C / n},
                                   {&rZ, (M - 1) * R * H / n},
                                   {&rE, (M - 1) * R * E / n},
                                   {&rA, (M - 2) * R * R / n},
                                   {&rb, (M - 2) * R},
                                   {&out, 3 * R / n},
                                   {&out_F, 3 * C / n},
                                   {&out_Z, 3 * H / n},
                                   {&out_E, 3 * E / n},
                                   {&inv_s, 1}};
    for (auto [array, k] : all) *array = arrays.take(k);
    count = arrays.count;
  }

  // Adds these sums to the gradients of the folded weights.
  void unpack(const Folded& to, double* s) const {
    const int64_t C = size.C, H = size.H, R = size.R, E = kExtra<T>, n = Vec<T>::width;
    constexpr int tile = kTile<T>;
    s[0] += sum(inv_s[0]);
    const int64_t h = to.H, r = to.R;
    for (int64_t l = 0; l + 1 < L; ++l) {
      const FoldedLayer& layer = to.sdf[l];
      add_matrix<tile>(F, l * H, h, C, 0, to.C, layer.F);
      if (l == 0) {
        for (int64_t o = 0; o < h; ++o) {
          add_lanes(P + 4 * o, 3, layer.P + 3 * o);
          add_lanes(P + 4 * o + 3, 1, layer.c + o);
        }
      } else {
        add_matrix<tile>(A + (l - 1) * H * H / n, 0, h, H, 0, h, layer.A);
        add_lanes(b + (l - 1) * H, h, layer.b);
        add_lanes(c + (l - 1) * H, h, layer.c);
      }
    }
    add_lanes(last, h, to.sdf[L - 1].A);
    add_lanes(last_F, to.C, to.sdf[L - 1].F);
    add_lanes(last_c, 1, to.sdf[L - 1].c);
    for (int64_t l = 0; l + 1 < M; ++l) {
      const FoldedLayer& layer = to.rgb[l];
      add_matrix<tile>(rF, l * R, r, C, 0, to.C, layer.F);
      add_matrix<tile>(rZ, l * R, r, H, 0, h, layer.Z);
      add_extra<tile>(layer, rE, l * R, r);
      if (l == 0) {
        add_matrix<tile>(rE, 0, r, E, kPosition, 3, layer.P);
      } else {
        add_matrix<tile>(rA + (l - 1) * R * R / n, 0, r, R, 0, r, layer.A);
        add_lanes(rb + (l - 1) * R, r, layer.b);
      }
    }
    const FoldedLayer& layer = to.rgb[M - 1];
    add_matrix<3>(out, 0, 3, R, 0, r, layer.A);
    add_matrix<3>(out_F, 0, 3, C, 0, to.C, layer.F);
    add_matrix<3>(out_Z, 0, 3, H, 0, h, layer.Z);
    add_extra<3>(layer, out_E, 0, 3);
  }

 private:
  template <int tile>
  static void add_extra(const FoldedLayer& layer, const Vec<T>* from, int64_t row, int64_t rows) {
    add_matrix<tile>(from, row, rows, kExtra<T>, 0, 3, layer.N);
    add_matrix<tile>(from, row, rows, kExtra<T>, kOne, 1, layer.c);
    add_matrix<tile>(from, row, rows, kExtra<T>, kDirection, 3, layer.D);
  }
};

}  // namespace
}  // namespace mim4d::MIM4D_ISA

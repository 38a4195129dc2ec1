#pragma once
// The two decoders as the CPU kernels read them, and the gradients of their weights as they sum them.

#include "cpu/tile.h"
#include "cpu/vec_math.h"
#include "math/mlp.h"
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

// Padded widths: C of a feature, H of the SDF decoder's hidden layers, G of the geometry, R of the colour decoder's
// hidden layers. Known to the compiler, loops over them unroll.
struct FixedSizes {
  static constexpr int64_t C = 32, H = 16, G = 16, R = 16;
  template <class T>
  explicit FixedSizes(const SdfMarchParams<T>&) {}
};

struct AnySizes {
  int64_t C, H, G, R;
  template <class T>
  explicit AnySizes(const SdfMarchParams<T>& p)
      : C(round_up(p.C, kTile<T>)),
        H(round_up(p.sdf_net.hidden, kTile<T>)),
        G(round_up(p.geometry(), kTile<T>)),
        R(round_up(p.rgb_net.hidden, kTile<T>)) {}
};

template <class T>
bool has_fixed_sizes(const SdfMarchParams<T>& p) {
  using F = FixedSizes;
  return sizeof(T) == 4 && p.C == F::C && p.sdf_net.hidden == F::H && p.geometry() == F::G && p.rgb_net.hidden == F::R;
}

// Beside feature and geometry, the gradients of the colour decoder's weights see these inputs: the normal, 1, the
// position and the direction.
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

// ---- the weights: matrices lie input by input, w[k][o], as math::multiply reads them

template <class T, class Sizes>
struct Net {
  Sizes size;
  int64_t L, M;  // layers of the SDF decoder and of the colour decoder
  int64_t count;

  // The SDF decoder. Its last layer has two parts: the row of sdf, and the geometry.
  T *W, *w, *W_back;          // [3][H], [H], [H][3]
  T *A, *A_back, *b;          // per hidden layer [H][H], [H][H], [H]
  T *U, *c;                   // per layer [C][H], [H]
  T* U_back;                  // [L * H][C]
  T *a, *q;                   // [H] the row of sdf, [C] its U_back^T a
  T* b_sdf;                   // [1]
  T *geo, *geo_back, *b_geo;  // [H][G], [G][H], [G]

  // The colour decoder; its condition is feature, geometry, normal, and the direction apart. Its last layer has fewer
  // outputs than a hidden layer: there the injection is multiplied out, z = A h + (A U) k + (A c + b).
  T *rW, *rw, *rW_back;
  T *rA, *rA_back, *rb;            // per hidden layer
  T *rU, *rc, *rU_dir;             // per hidden layer [C + G + 3][R], [R], [3][R]
  T *out, *out_back;               // [R][3], [3][R]: A
  T *out_U, *out_c, *out_dir;      // [C + G + 3][3], [3], [3][3]: A U, A c + b, A U for the direction
  T *rU_back, *rn_back, *rd_back;  // back from the (M - 1) * R hidden and the 3 last: to [C + G], [3], [3]

  T* product;  // [3][condition]: A U as it lies in the op's own order

  int64_t K() const { return size.C + size.G + 3; }
  int64_t outputs() const { return (M - 1) * size.R + 3; }  // of the colour decoder's layers that see the condition

  Net(const SdfMarchParams<T>& p, T* memory) : size(p), L(p.sdf_net.layers), M(p.rgb_net.layers) {
    const int64_t C = size.C, H = size.H, G = size.G, R = size.R;
    Arrays<T> arrays{memory};
    const Pair pairs[] = {{&W, 3 * H},
                          {&w, H},
                          {&W_back, 3 * H},
                          {&A, (L - 1) * H * H},
                          {&A_back, (L - 1) * H * H},
                          {&b, (L - 1) * H},
                          {&U, L * C * H},
                          {&c, L * H},
                          {&U_back, L * H * C},
                          {&a, H},
                          {&q, C},
                          {&b_sdf, 1},
                          {&geo, H * G},
                          {&geo_back, G * H},
                          {&b_geo, G},
                          {&rW, 3 * R},
                          {&rw, R},
                          {&rW_back, 3 * R},
                          {&rA, (M - 1) * R * R},
                          {&rA_back, (M - 1) * R * R},
                          {&rb, (M - 1) * R},
                          {&rU, (M - 1) * K() * R},
                          {&rc, (M - 1) * R},
                          {&rU_dir, (M - 1) * 3 * R},
                          {&out, R * 3},
                          {&out_back, 3 * R},
                          {&out_U, K() * 3},
                          {&out_c, 3},
                          {&out_dir, 9},
                          {&rU_back, outputs() * (C + G)},
                          {&rn_back, outputs() * 3},
                          {&rd_back, outputs() * 3},
                          {&product, 3 * p.rgb_net.condition}};
    for (auto [array, n] : pairs) *array = arrays.take(n);
    count = arrays.count;
  }

  void pack(const SdfMarchParams<T>& p) const;

 private:
  struct Pair {
    T** array;
    int64_t n;
  };
};

// to[k][o] and back[o][k] from rows [o][k] of `stride` values, from column `first` on
template <class T>
void pack_matrix(const T* from, int64_t rows, int64_t columns, int64_t stride, int64_t first, T* to, int64_t to_stride,
                 T* back, int64_t back_stride) {
  for (int64_t o = 0; o < rows; ++o)
    for (int64_t k = 0; k < columns; ++k) {
      const T value = from[o * stride + first + k];
      if (to) to[k * to_stride + o] = value;
      if (back) back[o * back_stride + k] = value;
    }
}

template <class T>
void pack_vector(const T* from, int64_t n, T* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = from[i];
}

template <class T, class Sizes>
void Net<T, Sizes>::pack(const SdfMarchParams<T>& p) const {
  const int64_t C = size.C, H = size.H, G = size.G, R = size.R;
  for (int64_t i = 0; i < count; ++i) W[i] = T(0);
  {
    const SdfDecoder<T>& net = p.sdf_net;
    const int64_t h = net.hidden;
    pack_matrix(net.tensors[0], h, 3, 3, 0, W, H, W_back, 3);
    pack_vector(net.tensors[1], h, w);
    for (int64_t l = 0; l < L; ++l) {
      const T* const* t = net.tensors + 2 + 4 * l;
      pack_matrix(t[2], h, p.C, p.C, 0, U + l * C * H, H, U_back + l * H * C, C);
      pack_vector(t[3], h, c + l * H);
      if (l + 1 < L) {
        pack_matrix(t[0], h, h, h, 0, A + l * H * H, H, A_back + l * H * H, H);
        pack_vector(t[1], h, b + l * H);
      } else {
        pack_vector(t[0], h, a);
        pack_matrix(t[0] + h, net.out - 1, h, h, 0, geo, G, geo_back, H);
        b_sdf[0] = t[1][0];
        pack_vector(t[1] + 1, net.out - 1, b_geo);
      }
    }
    for (int64_t o = 0; o < h; ++o)
      for (int64_t k = 0; k < p.C; ++k) q[k] += a[o] * U_back[((L - 1) * H + o) * C + k];
  }
  const SdfDecoder<T>& net = p.rgb_net;
  const int64_t h = net.hidden, g = p.geometry(), stride = net.condition;
  pack_matrix(net.tensors[0], h, 3, 3, 0, rW, R, rW_back, 3);
  pack_vector(net.tensors[1], h, rw);
  const auto pack_injection = [&](const T* U, int64_t rows, int64_t l, T* to, T* dir, int64_t to_stride) {
    T *back = rU_back + l * R * (C + G), *n_back = rn_back + l * R * 3, *d_back = rd_back + l * R * 3;
    pack_matrix(U, rows, 3, stride, 0, dir, to_stride, d_back, 3);
    pack_matrix(U, rows, p.C, stride, 3, to, to_stride, back, C + G);
    pack_matrix(U, rows, 3, stride, 3 + p.C, to + (C + G) * to_stride, to_stride, n_back, 3);
    pack_matrix(U, rows, g, stride, 6 + p.C, to + C * to_stride, to_stride, back + C, C + G);
  };
  for (int64_t l = 0; l + 1 < M; ++l) {
    const T* const* t = net.tensors + 2 + 4 * l;
    pack_matrix(t[0], h, h, h, 0, rA + l * R * R, R, rA_back + l * R * R, R);
    pack_vector(t[1], h, rb + l * R);
    pack_injection(t[2], h, l, rU + l * K() * R, rU_dir + l * 3 * R, R);
    pack_vector(t[3], h, rc + l * R);
  }
  const T* const* t = net.tensors + 2 + 4 * (M - 1);
  pack_matrix(t[0], 3, h, h, 0, out, 3, out_back, R);
  for (int64_t o = 0; o < 3; ++o) {
    out_c[o] = t[1][o];
    for (int64_t i = 0; i < h; ++i) out_c[o] += t[0][o * h + i] * t[3][i];
  }
  T* const AU = product;
  for (int64_t o = 0; o < 3; ++o)
    for (int64_t k = 0; k < stride; ++k) {
      AU[o * stride + k] = T(0);
      for (int64_t i = 0; i < h; ++i) AU[o * stride + k] += t[0][o * h + i] * t[2][i * stride + k];
    }
  pack_injection(AU, 3, M - 1, out_U, out_dir, 3);
}

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

template <class T, class Sizes>
struct NetGrads {
  Sizes size;
  int64_t L, M;
  int64_t count;
  Vec<T>*A, *b, *U, *c, *W;            // outer: per hidden layer H x H, L H x C, H x extra; lanes: b (L-1) H, c L H
  Vec<T>*a, *b_sdf, *geo, *b_geo;      // lanes H, 1; outer G x H; lanes G
  Vec<T>* f_dot;                       // lanes C: the last layer's q is a constant, and so a factor of its U's gradient
  Vec<T>*rA, *rb, *rU, *rG, *rE;       // outer: per hidden layer R x R, (M-1) R x C, x G, x extra; lanes (M-1) R
  Vec<T>*out, *out_U, *out_G, *out_E;  // outer: 3 x R, x C, x G, x extra, of the last layer as Net multiplies it out
  Vec<T>* inv_s;                       // lanes 1

  NetGrads(const SdfMarchParams<T>& p, Vec<T>* memory) : size(p), L(p.sdf_net.layers), M(p.rgb_net.layers) {
    const int64_t C = size.C, H = size.H, G = size.G, R = size.R, E = kExtra<T>, n = Vec<T>::width;
    Arrays<Vec<T>> arrays{memory};
    const Pair pairs[] = {{&A, (L - 1) * H * H / n},
                          {&b, (L - 1) * H},
                          {&U, L * H * C / n},
                          {&c, L * H},
                          {&W, H * E / n},
                          {&a, H},
                          {&b_sdf, 1},
                          {&geo, G * H / n},
                          {&b_geo, G},
                          {&f_dot, C},
                          {&rA, (M - 1) * R * R / n},
                          {&rb, (M - 1) * R},
                          {&rU, (M - 1) * R * C / n},
                          {&rG, (M - 1) * R * G / n},
                          {&rE, (M - 1) * R * E / n},
                          {&out, 3 * R / n},
                          {&out_U, 3 * C / n},
                          {&out_G, 3 * G / n},
                          {&out_E, 3 * E / n},
                          {&inv_s, 1}};
    for (auto [array, k] : pairs) *array = arrays.take(k);
    count = arrays.count;
  }

  // Adds these sums to gradients that lie as the op's own weights do.
  void unpack(const SdfMarchParams<T>& p, double* const* sdf, double* const* rgb, double* s) const;

 private:
  struct Pair {
    Vec<T>** array;
    int64_t n;
  };
};

template <class T>
void add_lanes(const Vec<T>* from, int64_t n, double* to) {
  for (int64_t i = 0; i < n; ++i) to[i] += sum(from[i]);
}

template <int tile, class T>
void add_matrix(const Vec<T>* from, int64_t row, int64_t rows, int64_t inputs, int64_t first, int64_t columns,
                double* to, int64_t stride) {
  for (int64_t o = 0; o < rows; ++o)
    for (int64_t i = 0; i < columns; ++i) to[o * stride + i] += outer_at<tile>(from, inputs, row + o, first + i);
}

template <class T, class Sizes>
void NetGrads<T, Sizes>::unpack(const SdfMarchParams<T>& p, double* const* sdf, double* const* rgb, double* s) const {
  const int64_t C = size.C, H = size.H, G = size.G, R = size.R, E = kExtra<T>, n = Vec<T>::width;
  constexpr int tile = kTile<T>;
  s[0] += sum(inv_s[0]);
  if (sdf) {
    const int64_t h = p.sdf_net.hidden;
    add_matrix<tile>(W, 0, h, E, kPosition, 3, sdf[0], 3);
    add_matrix<tile>(W, 0, h, E, kOne, 1, sdf[1], 1);
    for (int64_t l = 0; l < L; ++l) {
      double* const* t = sdf + 2 + 4 * l;
      add_matrix<tile>(U, l * H, h, C, 0, p.C, t[2], p.C);
      add_lanes(c + l * H, h, t[3]);
      if (l + 1 < L) {
        add_matrix<tile>(A + l * H * H / n, 0, h, H, 0, h, t[0], h);
        add_lanes(b + l * H, h, t[1]);
      } else {
        add_lanes(a, h, t[0]);
        // q is the weights' row of sdf at every sample, and x_dot lacks what U f_dot adds to it.
        for (int64_t k = 0; k < p.C; ++k) {
          const double along = sum(f_dot[k]);
          const T *A = p.sdf_net.tensors[2 + 4 * l], *U = p.sdf_net.tensors[4 + 4 * l];
          for (int64_t o = 0; o < h; ++o) {
            t[0][o] += U[o * p.C + k] * along;
            t[2][o * p.C + k] += A[o] * along;
          }
        }
        add_matrix<tile>(geo, 0, p.geometry(), H, 0, h, t[0] + h, h);
        add_lanes(b_sdf, 1, t[1]);
        add_lanes(b_geo, p.geometry(), t[1] + 1);
      }
    }
  }
  if (rgb) {
    const int64_t h = p.rgb_net.hidden, K = p.rgb_net.condition;
    add_matrix<tile>(rE, 0, h, E, kPosition, 3, rgb[0], 3);
    add_matrix<tile>(rE, 0, h, E, kOne, 1, rgb[1], 1);
    for (int64_t l = 0; l + 1 < M; ++l) {
      double* const* t = rgb + 2 + 4 * l;
      add_matrix<tile>(rA + l * R * R / n, 0, h, R, 0, h, t[0], h);
      add_lanes(rb + l * R, h, t[1]);
      add_matrix<tile>(rE, l * R, h, E, kDirection, 3, t[2], K);
      add_matrix<tile>(rU, l * R, h, C, 0, p.C, t[2] + 3, K);
      add_matrix<tile>(rE, l * R, h, E, 0, 3, t[2] + 3 + p.C, K);
      add_matrix<tile>(rG, l * R, h, G, 0, p.geometry(), t[2] + 6 + p.C, K);
      add_matrix<tile>(rE, l * R, h, E, kOne, 1, t[3], 1);
    }
    // z = A h + (A U) k + (A c + b): the gradients of A, U and c from those of A, A U and A c
    double* const* t = rgb + 2 + 4 * (M - 1);
    const T *A = p.rgb_net.tensors[4 * M - 2], *U = p.rgb_net.tensors[4 * M], *c = p.rgb_net.tensors[4 * M + 1];
    add_matrix<3>(out, 0, 3, R, 0, h, t[0], h);
    for (int64_t o = 0; o < 3; ++o) {
      const auto spread = [&](int64_t k, double by_AU) {
        for (int64_t i = 0; i < h; ++i) {
          t[0][o * h + i] += by_AU * U[i * K + k];
          t[2][i * K + k] += by_AU * A[o * h + i];
        }
      };
      for (int64_t k = 0; k < 3; ++k) {
        spread(k, outer_at<3>(out_E, E, o, kDirection + k));
        spread(3 + p.C + k, outer_at<3>(out_E, E, o, k));
      }
      for (int64_t k = 0; k < p.C; ++k) spread(3 + k, outer_at<3>(out_U, C, o, k));
      for (int64_t k = 0; k < p.geometry(); ++k) spread(6 + p.C + k, outer_at<3>(out_G, G, o, k));
      const double by_b = outer_at<3>(out_E, E, o, kOne);
      t[1][o] += by_b;
      for (int64_t i = 0; i < h; ++i) {
        t[0][o * h + i] += by_b * c[i];
        t[3][i] += by_b * A[o * h + i];
      }
    }
  }
}

}  // namespace
}  // namespace mim4d::MIM4D_ISA

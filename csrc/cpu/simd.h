#pragma once
// Vec<float> and Vec<double>: one register of the instruction set that this unit is compiled for. The arithmetic is the
// compiler's vector extension; intrinsics do what it has no operator for.

#ifndef MIM4D_ISA
#error "cpu/simd.h belongs in sources given to mim4d_isa_sources()"
#endif

#include <stdint.h>
#include <string.h>
#include <utility>

#include "math/scalar.h"

#if defined(MIM4D_ISA_avx2) || defined(MIM4D_ISA_avx512)
#include <immintrin.h>
#endif

namespace mim4d::MIM4D_ISA {

#if defined(MIM4D_ISA_avx512)
#define MIM4D_VECTOR __attribute__((vector_size(64)))
#elif defined(MIM4D_ISA_avx2)
#define MIM4D_VECTOR __attribute__((vector_size(32)))
#else
#define MIM4D_VECTOR __attribute__((vector_size(16)))
#endif

// g++ drops vector_size from a type that depends on a template parameter, hence the named types.
template <class T>
struct Native;
template <>
struct Native<float> {
  typedef float V MIM4D_VECTOR;
  typedef int32_t M MIM4D_VECTOR;
};
template <>
struct Native<double> {
  typedef double V MIM4D_VECTOR;
  typedef int64_t M MIM4D_VECTOR;
};
#undef MIM4D_VECTOR

template <class T>
struct Vec {
  using V = typename Native<T>::V;
  using Mask = typename Native<T>::M;
  static constexpr int width = sizeof(V) / sizeof(T);

  V v;

  Vec() = default;
  MIM4D_HD Vec(V x) : v(x) {}
  MIM4D_HD Vec(T x) : v(x - V{}) {}  // in every lane

  MIM4D_HD static Vec load(const T* p) {
    Vec r;
    memcpy(&r.v, p, sizeof(V));
    return r;
  }
  MIM4D_HD void store(T* p) const { memcpy(p, &v, sizeof(V)); }

  friend MIM4D_HD Vec operator+(Vec a, Vec b) { return Vec(a.v + b.v); }
  friend MIM4D_HD Vec operator-(Vec a, Vec b) { return Vec(a.v - b.v); }
  friend MIM4D_HD Vec operator*(Vec a, Vec b) { return Vec(a.v * b.v); }
  friend MIM4D_HD Mask operator>(Vec a, Vec b) { return a.v > b.v; }
  friend MIM4D_HD Mask operator<(Vec a, Vec b) { return a.v < b.v; }
  friend MIM4D_HD Mask operator!=(Vec a, Vec b) { return a.v != b.v; }
  friend MIM4D_HD Vec select(Mask which, Vec yes, Vec no) { return Vec(which ? yes.v : no.v); }
  friend MIM4D_HD Vec clamp_(Vec x, Vec low, Vec high) {
    const V y = x.v > low.v ? x.v : low.v;
    return Vec(y < high.v ? y : high.v);
  }
};

// ---- what differs between the instruction sets: floor, sum of the lanes, the first n lanes of a row, lanes as int32

#if defined(MIM4D_ISA_avx512)

MIM4D_HD Vec<float> floor_(Vec<float> x) { return Vec<float>(_mm512_floor_ps(x.v)); }
MIM4D_HD Vec<double> floor_(Vec<double> x) { return Vec<double>(_mm512_floor_pd(x.v)); }
MIM4D_HD float sum(Vec<float> x) { return _mm512_reduce_add_ps(x.v); }
MIM4D_HD double sum(Vec<double> x) { return _mm512_reduce_add_pd(x.v); }

MIM4D_HD Vec<float> load_first(const float* p, int n) {
  return Vec<float>(_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p));
}
MIM4D_HD Vec<double> load_first(const double* p, int n) {
  return Vec<double>(_mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << n) - 1), p));
}
MIM4D_HD void store_first(float* p, Vec<float> x, int n) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), x.v);
}
MIM4D_HD void store_first(double* p, Vec<double> x, int n) {
  _mm512_mask_storeu_pd(p, static_cast<__mmask8>((1u << n) - 1), x.v);
}

MIM4D_HD void store_int(int32_t* p, Vec<float> x) { _mm512_storeu_si512(p, _mm512_cvttps_epi32(x.v)); }
MIM4D_HD void store_int(int32_t* p, Vec<double> x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvttpd_epi32(x.v));
}

#elif defined(MIM4D_ISA_avx2)

MIM4D_HD Vec<float> floor_(Vec<float> x) { return Vec<float>(_mm256_floor_ps(x.v)); }
MIM4D_HD Vec<double> floor_(Vec<double> x) { return Vec<double>(_mm256_floor_pd(x.v)); }

MIM4D_HD float sum(Vec<float> x) {
  const __m128 quarter = _mm_add_ps(_mm256_castps256_ps128(x.v), _mm256_extractf128_ps(x.v, 1));
  const __m128 pair = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
  return _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)));
}
MIM4D_HD double sum(Vec<double> x) {
  const __m128d pair = _mm_add_pd(_mm256_castpd256_pd128(x.v), _mm256_extractf128_pd(x.v, 1));
  return _mm_cvtsd_f64(_mm_add_sd(pair, _mm_unpackhi_pd(pair, pair)));
}

MIM4D_HD __m256i first_lanes(int n, float) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
MIM4D_HD __m256i first_lanes(int n, double) {
  return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
}
MIM4D_HD Vec<float> load_first(const float* p, int n) { return Vec<float>(_mm256_maskload_ps(p, first_lanes(n, 0.f))); }
MIM4D_HD Vec<double> load_first(const double* p, int n) {
  return Vec<double>(_mm256_maskload_pd(p, first_lanes(n, 0.0)));
}
MIM4D_HD void store_first(float* p, Vec<float> x, int n) { _mm256_maskstore_ps(p, first_lanes(n, 0.f), x.v); }
MIM4D_HD void store_first(double* p, Vec<double> x, int n) { _mm256_maskstore_pd(p, first_lanes(n, 0.0), x.v); }

MIM4D_HD void store_int(int32_t* p, Vec<float> x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_cvttps_epi32(x.v));
}
MIM4D_HD void store_int(int32_t* p, Vec<double> x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvttpd_epi32(x.v));
}

#else  // any processor

// Through int32: right for |x| < 2^31, and every position that a kernel floors is clamped to a grid.
template <class T>
MIM4D_HD Vec<T> floor_(Vec<T> x) {
  Vec<T> r;
  for (int i = 0; i < Vec<T>::width; ++i) {
    const T whole = static_cast<T>(static_cast<int32_t>(x.v[i]));
    r.v[i] = whole > x.v[i] ? whole - T(1) : whole;
  }
  return r;
}

template <class T>
MIM4D_HD T sum(Vec<T> x) {
  T lane[Vec<T>::width];
  x.store(lane);
  for (int half = Vec<T>::width / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
  return lane[0];
}

template <class T>
MIM4D_HD Vec<T> load_first(const T* p, int n) {
  Vec<T> r(T(0));
  for (int i = 0; i < n; ++i) r.v[i] = p[i];
  return r;
}

template <class T>
MIM4D_HD void store_first(T* p, Vec<T> x, int n) {
  for (int i = 0; i < n; ++i) p[i] = x.v[i];
}

template <class T>
MIM4D_HD void store_int(int32_t* p, Vec<T> x) {
  for (int i = 0; i < Vec<T>::width; ++i) p[i] = static_cast<int32_t>(x.v[i]);
}

#endif

// ---- lanes that change places

// Lanes of a, then of b, by number.
template <class T, int... I>
MIM4D_HD Vec<T> shuffle(Vec<T> a, Vec<T> b, std::integer_sequence<int, I...>) {
#if defined(__clang__)
  return Vec<T>(__builtin_shufflevector(a.v, b.v, I...));
#else
  return Vec<T>(__builtin_shuffle(a.v, b.v, typename Vec<T>::Mask{I...}));
#endif
}

template <class T>
using LaneNumbers = std::make_integer_sequence<int, Vec<T>::width>;

template <int part, class T, int... I>
MIM4D_HD Vec<T> triple(Vec<T> x, Vec<T> y, Vec<T> z, std::integer_sequence<int, I...>) {
  constexpr int n = sizeof...(I), start = part * n;
  const Vec<T> xy = shuffle(x, y, std::integer_sequence<int, ((start + I) / 3 + (start + I) % 3 % 2 * n)...>{});
  return shuffle(xy, z, std::integer_sequence<int, ((start + I) % 3 == 2 ? n + (start + I) / 3 : I)...>{});
}

template <int part, class T, int... I>
MIM4D_HD Vec<T> every_third(Vec<T> a, Vec<T> b, Vec<T> c, std::integer_sequence<int, I...>) {
  constexpr int n = sizeof...(I);
  const Vec<T> ab = shuffle(a, b, std::integer_sequence<int, ((3 * I + part) % (2 * n))...>{});
  return shuffle(ab, c, std::integer_sequence<int, (3 * I + part >= 2 * n ? 3 * I + part - n : I)...>{});
}

// Three rows x, y, z <-> one row of triples x0 y0 z0 x1 ...
template <class T>
MIM4D_HD void store_triples(T* p, Vec<T> x, Vec<T> y, Vec<T> z) {
  triple<0>(x, y, z, LaneNumbers<T>{}).store(p);
  triple<1>(x, y, z, LaneNumbers<T>{}).store(p + Vec<T>::width);
  triple<2>(x, y, z, LaneNumbers<T>{}).store(p + 2 * Vec<T>::width);
}
template <class T>
MIM4D_HD void load_triples(const T* p, Vec<T>& x, Vec<T>& y, Vec<T>& z) {
  const auto a = Vec<T>::load(p), b = Vec<T>::load(p + Vec<T>::width), c = Vec<T>::load(p + 2 * Vec<T>::width);
  x = every_third<0>(a, b, c, LaneNumbers<T>{});
  y = every_third<1>(a, b, c, LaneNumbers<T>{});
  z = every_third<2>(a, b, c, LaneNumbers<T>{});
}
// The same for the first n lanes.
template <class T>
MIM4D_HD void store_first_triples(T* p, Vec<T> x, Vec<T> y, Vec<T> z, int n) {
  T whole[3 * Vec<T>::width];
  store_triples(whole, x, y, z);
  for (int i = 0; i < 3 * n; ++i) p[i] = whole[i];
}
template <class T>
MIM4D_HD void load_first_triples(const T* p, Vec<T>& x, Vec<T>& y, Vec<T>& z, int n) {
  T whole[3 * Vec<T>::width] = {};
  for (int i = 0; i < 3 * n; ++i) whole[i] = p[i];
  load_triples(whole, x, y, z);
}

// ---- several registers of a row at once: their sums do not wait for each other

template <class T, int N>
struct Wide {
  Vec<T> v[N];

  MIM4D_HD static Wide all(T x) {
    Wide r;
    MIM4D_UNROLL
    for (int i = 0; i < N; ++i) r.v[i] = Vec<T>(x);
    return r;
  }
  friend MIM4D_HD Wide operator+(Wide a, Wide b) {
    MIM4D_UNROLL
    for (int i = 0; i < N; ++i) a.v[i] = a.v[i] + b.v[i];
    return a;
  }
  friend MIM4D_HD Wide operator*(Vec<T> a, Wide b) {
    MIM4D_UNROLL
    for (int i = 0; i < N; ++i) b.v[i] = a * b.v[i];
    return b;
  }
};

// Which lanes of a row are meant: N whole registers, or the first n lanes of one.
template <class T, int N>
struct WholeLanes {
  using W = Wide<T, N>;
  static constexpr int w = Vec<T>::width;

  MIM4D_HD W all(T x) const { return W::all(x); }
  MIM4D_HD W load(const T* p) const {
    W r;
    MIM4D_UNROLL
    for (int i = 0; i < N; ++i) r.v[i] = Vec<T>::load(p + i * w);
    return r;
  }
  MIM4D_HD void store(T* p, const W& x) const {
    MIM4D_UNROLL
    for (int i = 0; i < N; ++i) x.v[i].store(p + i * w);
  }
  MIM4D_HD void load_triples(const T* p, W& x, W& y, W& z) const {
    MIM4D_UNROLL
    for (int i = 0; i < N; ++i) MIM4D_ISA::load_triples(p + 3 * i * w, x.v[i], y.v[i], z.v[i]);
  }
  MIM4D_HD void store_triples(T* p, const W& x, const W& y, const W& z) const {
    MIM4D_UNROLL
    for (int i = 0; i < N; ++i) MIM4D_ISA::store_triples(p + 3 * i * w, x.v[i], y.v[i], z.v[i]);
  }
};

template <class T>
struct PartOfLanes {
  using W = Wide<T, 1>;
  int n;

  MIM4D_HD W all(T x) const { return W::all(x); }
  MIM4D_HD W load(const T* p) const { return {{load_first(p, n)}}; }
  MIM4D_HD void store(T* p, const W& x) const { store_first(p, x.v[0], n); }
  MIM4D_HD void load_triples(const T* p, W& x, W& y, W& z) const { load_first_triples(p, x.v[0], y.v[0], z.v[0], n); }
  MIM4D_HD void store_triples(T* p, const W& x, const W& y, const W& z) const {
    store_first_triples(p, x.v[0], y.v[0], z.v[0], n);
  }
};

// f(offset, lanes) along a row of n values with lanes.load(p) and lanes.store(p, x), four registers at a time as long
// as there are so many
template <class T, class F>
MIM4D_HD void for_wide_row(int64_t n, F&& f) {
  constexpr int w = Vec<T>::width;
  int64_t i = 0;
  for (; i + 4 * w <= n; i += 4 * w) f(i, WholeLanes<T, 4>{});
  if (i + 2 * w <= n) f(i, WholeLanes<T, 2>{}), i += 2 * w;
  if (i + w <= n) f(i, WholeLanes<T, 1>{}), i += w;
  if (i < n) f(i, PartOfLanes<T>{static_cast<int>(n - i)});
}

// f(offset, lanes) along a row of n values, a register at a time
template <class T, class F>
MIM4D_HD void for_row(int64_t n, F&& f) {
  constexpr int w = Vec<T>::width;
  int64_t i = 0;
  for (; i + w <= n; i += w) f(i, WholeLanes<T, 1>{});
  if (i < n) f(i, PartOfLanes<T>{static_cast<int>(n - i)});
}

}  // namespace mim4d::MIM4D_ISA

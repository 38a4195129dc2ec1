#pragma once
// Vec<float> and Vec<double>: one register of the instruction set that this unit is compiled for. The arithmetic is the
// compiler's vector extension; intrinsics do what it has no operator for.

#ifndef MIM4D_ISA
#error "cpu/simd.h belongs in sources given to mim4d_isa_sources()"
#endif

#include <stdint.h>
#include <string.h>

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

// ---- rows of n values, a register at a time: f(offset, lanes) with lanes.load(p) and lanes.store(p, x)

struct AllLanes {
  template <class T>
  MIM4D_HD Vec<T> load(const T* p) const {
    return Vec<T>::load(p);
  }
  template <class T>
  MIM4D_HD void store(T* p, Vec<T> x) const {
    x.store(p);
  }
};

struct FirstLanes {
  int n;
  template <class T>
  MIM4D_HD Vec<T> load(const T* p) const {
    return load_first(p, n);
  }
  template <class T>
  MIM4D_HD void store(T* p, Vec<T> x) const {
    store_first(p, x, n);
  }
};

template <class T, class F>
MIM4D_HD void for_row(int64_t n, F&& f) {
  int64_t i = 0;
  for (; i + Vec<T>::width <= n; i += Vec<T>::width) f(i, AllLanes{});
  if (i < n) f(i, FirstLanes{static_cast<int>(n - i)});
}

}  // namespace mim4d::MIM4D_ISA

#pragma once
// What formulas ask of a value beyond cpu/simd.h: fused multiply-add, extremes, and the exponential function and
// logarithm with their error bounds. tests/ops/test_vec_math.py measures the errors over the whole range.

#include "cpu/simd.h"

namespace mim4d::MIM4D_ISA {

template <class T>
MIM4D_HD Vec<T> operator/(Vec<T> a, Vec<T> b) {
  return Vec<T>(a.v / b.v);
}
template <class T>
MIM4D_HD Vec<T> operator-(Vec<T> a) {
  return Vec<T>(-a.v);
}
template <class T>
MIM4D_HD typename Vec<T>::Mask operator>=(Vec<T> a, Vec<T> b) {
  return a.v >= b.v;
}
template <class T>
MIM4D_HD typename Vec<T>::Mask operator<=(Vec<T> a, Vec<T> b) {
  return a.v <= b.v;
}

// ---- what differs between the instruction sets: one rounding of a b + c, extremes (b where either is NaN), a quick
// reciprocal of a number that is finite and not tiny, and 2^n p

#if defined(MIM4D_ISA_avx512)

MIM4D_HD Vec<float> fma_(Vec<float> a, Vec<float> b, Vec<float> c) {
  return Vec<float>(_mm512_fmadd_ps(a.v, b.v, c.v));
}
MIM4D_HD Vec<double> fma_(Vec<double> a, Vec<double> b, Vec<double> c) {
  return Vec<double>(_mm512_fmadd_pd(a.v, b.v, c.v));
}
MIM4D_HD Vec<float> max_(Vec<float> a, Vec<float> b) { return Vec<float>(_mm512_max_ps(a.v, b.v)); }
MIM4D_HD Vec<double> max_(Vec<double> a, Vec<double> b) { return Vec<double>(_mm512_max_pd(a.v, b.v)); }
MIM4D_HD Vec<float> min_(Vec<float> a, Vec<float> b) { return Vec<float>(_mm512_min_ps(a.v, b.v)); }
MIM4D_HD Vec<double> min_(Vec<double> a, Vec<double> b) { return Vec<double>(_mm512_min_pd(a.v, b.v)); }
MIM4D_HD Vec<float> abs_(Vec<float> a) { return Vec<float>(_mm512_abs_ps(a.v)); }
MIM4D_HD Vec<double> abs_(Vec<double> a) { return Vec<double>(_mm512_abs_pd(a.v)); }

MIM4D_HD Vec<float> reciprocal_(Vec<float> x) {  // 14 bits and one step of Newton's: to 0.5 eps
  const Vec<float> r(_mm512_rcp14_ps(x.v));
  return Vec<float>(_mm512_fmadd_ps(_mm512_fnmadd_ps(x.v, r.v, _mm512_set1_ps(1.f)), r.v, r.v));
}
MIM4D_HD Vec<double> reciprocal_(Vec<double> x) { return Vec<double>(1.0) / x; }

MIM4D_HD Vec<float> power_of_two(Vec<float> shifted, Vec<float> magic, Vec<float> p) {
  return Vec<float>(_mm512_scalef_ps(p.v, (shifted - magic).v));
}
MIM4D_HD Vec<double> power_of_two(Vec<double> shifted, Vec<double> magic, Vec<double> p) {
  return Vec<double>(_mm512_scalef_pd(p.v, (shifted - magic).v));
}

#else

#if defined(MIM4D_ISA_avx2)

MIM4D_HD Vec<float> fma_(Vec<float> a, Vec<float> b, Vec<float> c) {
  return Vec<float>(_mm256_fmadd_ps(a.v, b.v, c.v));
}
MIM4D_HD Vec<double> fma_(Vec<double> a, Vec<double> b, Vec<double> c) {
  return Vec<double>(_mm256_fmadd_pd(a.v, b.v, c.v));
}
MIM4D_HD Vec<float> max_(Vec<float> a, Vec<float> b) { return Vec<float>(_mm256_max_ps(a.v, b.v)); }
MIM4D_HD Vec<double> max_(Vec<double> a, Vec<double> b) { return Vec<double>(_mm256_max_pd(a.v, b.v)); }
MIM4D_HD Vec<float> min_(Vec<float> a, Vec<float> b) { return Vec<float>(_mm256_min_ps(a.v, b.v)); }
MIM4D_HD Vec<double> min_(Vec<double> a, Vec<double> b) { return Vec<double>(_mm256_min_pd(a.v, b.v)); }

#else  // any processor

template <class T>
MIM4D_HD Vec<T> fma_(Vec<T> a, Vec<T> b, Vec<T> c) {
  return a * b + c;
}
template <class T>
MIM4D_HD Vec<T> max_(Vec<T> a, Vec<T> b) {
  return select(a > b, a, b);
}
template <class T>
MIM4D_HD Vec<T> min_(Vec<T> a, Vec<T> b) {
  return select(a < b, a, b);
}

#endif

template <class T>
MIM4D_HD Vec<T> abs_(Vec<T> a) {
  using Mask = typename Vec<T>::Mask;
  Mask sign;
  const Vec<T> minus_zero(T(-0.0));
  memcpy(&sign, &minus_zero.v, sizeof sign);
  Mask bits;
  memcpy(&bits, &a.v, sizeof bits);
  bits &= ~sign;
  memcpy(&a.v, &bits, sizeof bits);
  return a;
}

template <class T>
MIM4D_HD Vec<T> reciprocal_(Vec<T> x) {
  return Vec<T>(T(1)) / x;
}

// 2^n p for n = shifted - magic, in two factors: n may lie beyond the exponents of T, where the result is 0, denormal
// or infinite. The bits of `shifted` count n, for its last bit weighs 1.
template <class T>
MIM4D_HD Vec<T> power_of_two(Vec<T> shifted, Vec<T> magic, Vec<T> p) {
  using Mask = typename Vec<T>::Mask;
  constexpr int mantissa = sizeof(T) == 4 ? 23 : 52, bias = sizeof(T) == 4 ? 127 : 1023;
  Mask n, zero;
  memcpy(&n, &shifted.v, sizeof n);
  memcpy(&zero, &magic.v, sizeof zero);
  n -= zero;
  const Mask half = n >> 1;
  const Mask low_bits = (half + bias) << mantissa, high_bits = (n - half + bias) << mantissa;
  Vec<T> low, high;
  memcpy(&low.v, &low_bits, sizeof low_bits);
  memcpy(&high.v, &high_bits, sizeof high_bits);
  return p * low * high;
}

#endif

// ---- exponential function and logarithm

namespace {  // internal, as every symbol of one instruction set

template <class T>
struct ExpConstants;

template <>
struct ExpConstants<float> {
  static constexpr float lowest = -104.f, highest = 89.f;  // the result is 0, infinite beyond
  static constexpr float magic = 12582912.f;               // 1.5 * 2^23: x + magic is x rounded to a whole number
  static constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
  // (e^r - 1 - r) / r^2 on |r| <= 1.01 ln(2) / 2 by interpolation at Chebyshev's points: e^r to 1.1e-8
  static constexpr float series[] = {0.5f, 0.1666657338f, 0.04166655011f, 0.008363773874f, 0.001392692661f};
  // log(1 + x) / x on [0, 1] in the same way: to 3.4e-8
  static constexpr float log1p[] = {0.9999999659f,  -0.4999944498f, 0.3331812171f,   -0.2483539899f, 0.1907688074f,
                                    -0.1360224762f, 0.07751608674f, -0.02907406468f, 0.005126102141f};
};

template <>
struct ExpConstants<double> {
  static constexpr double lowest = -746.0, highest = 710.0;
  static constexpr double magic = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double ln2_high = 0x1.62e42feep-1, ln2_low = 0x1.a39ef35793c76p-33;
  // to 1.8e-17
  static constexpr double series[] = {0.500000000000000113,     0.166666666666666675,   0.0416666666666206386,
                                      0.0083333333333297935,    0.00138888889189391678, 0.000198412698643805133,
                                      0.0000248015186413959936, 2.75572664186123037e-6, 2.76213386691429238e-7,
                                      2.51013469283503402e-8};
  // to 6.4e-17
  static constexpr double log1p[] = {
      0.9999999999999999364,   -0.4999999999999490595,   0.3333333333265183249,    -0.2499999996362910752,
      0.1999999896792021621,   -0.1666664866590576204,   0.142855038356318111,     -0.1249825393328012524,
      0.1110041240399414938,   -0.0995015979448041811,   0.08910457377919343675,   -0.07816619989902080765,
      0.06504582676908699,     -0.04919486634913780394,  0.03221173180577001029,   -0.01733799236127139083,
      0.007238154348004206666, -0.002172263249482751661, 0.0004137149986328025386, -0.00003736111090625510826};
};

}  // namespace

// ---- registers side by side

// N registers as one value, whose chains of operations go side by side: none waits for itself. It says the words that
// math::softplus is written in.
template <class T, int N>
struct Group {
  Vec<T> v[N];

  Group() = default;
  MIM4D_HD Group(T x) {  // in every lane
    MIM4D_UNROLL
    for (int i = 0; i < N; ++i) v[i] = Vec<T>(x);
  }
  MIM4D_HD static Group load(const Vec<T>* p) {
    Group r;
    MIM4D_UNROLL
    for (int i = 0; i < N; ++i) r.v[i] = p[i];
    return r;
  }
  MIM4D_HD void store(Vec<T>* p) const {
    MIM4D_UNROLL
    for (int i = 0; i < N; ++i) p[i] = v[i];
  }
};

template <class T, int N>
struct GroupMask {
  typename Vec<T>::Mask v[N];
};

template <class R, class F, class... G>
MIM4D_HD R each(F&& f, const G&... x) {
  R r;
  MIM4D_UNROLL
  for (int i = 0; i < int(sizeof(r.v) / sizeof(r.v[0])); ++i) r.v[i] = f(x.v[i]...);
  return r;
}

template <class T, int N>
MIM4D_HD Group<T, N> operator+(const Group<T, N>& a, const Group<T, N>& b) {
  return each<Group<T, N>>([](Vec<T> x, Vec<T> y) { return x + y; }, a, b);
}
template <class T, int N>
MIM4D_HD Group<T, N> operator-(const Group<T, N>& a, const Group<T, N>& b) {
  return each<Group<T, N>>([](Vec<T> x, Vec<T> y) { return x - y; }, a, b);
}
template <class T, int N>
MIM4D_HD Group<T, N> operator*(const Group<T, N>& a, const Group<T, N>& b) {
  return each<Group<T, N>>([](Vec<T> x, Vec<T> y) { return x * y; }, a, b);
}
template <class T, int N>
MIM4D_HD GroupMask<T, N> operator<(const Group<T, N>& a, const Group<T, N>& b) {
  return each<GroupMask<T, N>>([](Vec<T> x, Vec<T> y) { return x < y; }, a, b);
}
template <class T, int N>
MIM4D_HD Group<T, N> select(const GroupMask<T, N>& which, const Group<T, N>& yes, const Group<T, N>& no) {
  return each<Group<T, N>>([](typename Vec<T>::Mask m, Vec<T> x, Vec<T> y) { return select(m, x, y); }, which, yes, no);
}
template <class T, int N>
MIM4D_HD Group<T, N> fma_(const Group<T, N>& a, const Group<T, N>& b, const Group<T, N>& c) {
  return each<Group<T, N>>([](Vec<T> x, Vec<T> y, Vec<T> z) { return fma_(x, y, z); }, a, b, c);
}
template <class T, int N>
MIM4D_HD Group<T, N> max_(const Group<T, N>& a, const Group<T, N>& b) {
  return each<Group<T, N>>([](Vec<T> x, Vec<T> y) { return max_(x, y); }, a, b);
}
template <class T, int N>
MIM4D_HD Group<T, N> min_(const Group<T, N>& a, const Group<T, N>& b) {
  return each<Group<T, N>>([](Vec<T> x, Vec<T> y) { return min_(x, y); }, a, b);
}
template <class T, int N>
MIM4D_HD Group<T, N> abs_(const Group<T, N>& a) {
  return each<Group<T, N>>([](Vec<T> x) { return abs_(x); }, a);
}
template <class T, int N>
MIM4D_HD Group<T, N> reciprocal_(const Group<T, N>& a) {
  return each<Group<T, N>>([](Vec<T> x) { return reciprocal_(x); }, a);
}
template <class T, int N>
MIM4D_HD Group<T, N> power_of_two(const Group<T, N>& shifted, const Group<T, N>& magic, const Group<T, N>& p) {
  return each<Group<T, N>>([](Vec<T> x, Vec<T> y, Vec<T> z) { return power_of_two(x, y, z); }, shifted, magic, p);
}

// ---- the functions; V is a register or a group of them

template <class T, int n, class V>
MIM4D_HD V polynomial(const T (&coefficient)[n], const V& x) {
  V sum(coefficient[n - 1]);
  MIM4D_UNROLL
  for (int i = n - 2; i >= 0; --i) sum = fma_(sum, x, V(coefficient[i]));
  return sum;
}

// x = n ln 2 + r: n as `shifted - magic`, and e^r - 1.
template <class T, class V>
struct ExpParts {
  V shifted, magic, rest;

  MIM4D_HD explicit ExpParts(const V& x) : magic(ExpConstants<T>::magic) {
    using Constants = ExpConstants<T>;
    const V y = max_(V(Constants::lowest), min_(V(Constants::highest), x));  // NaN stays
    shifted = fma_(y, V(T(1.44269504088896340736)), magic);
    const V n = shifted - magic;
    const V r = fma_(n, V(-Constants::ln2_low), fma_(n, V(-Constants::ln2_high), y));
    rest = fma_(r * r, polynomial(Constants::series, r), r);
  }
};

// e^x for every x, denormal results, infinities and NaN as they should be; to 0.75 eps.
template <class T>
MIM4D_HD Vec<T> exp_(Vec<T> x) {
  const ExpParts<T, Vec<T>> e(x);
  return power_of_two(e.shifted, e.magic, e.rest + Vec<T>(T(1)));
}
template <class T, int N>
MIM4D_HD Group<T, N> exp_(const Group<T, N>& x) {
  const ExpParts<T, Group<T, N>> e(x);
  return power_of_two(e.shifted, e.magic, e.rest + Group<T, N>(T(1)));
}

// e^x - 1 for x <= 0, however small; to eps.
template <class T>
MIM4D_HD Vec<T> expm1_(Vec<T> x) {
  const ExpParts<T, Vec<T>> e(x);
  return power_of_two(e.shifted, e.magic, e.rest) + (power_of_two(e.shifted, e.magic, Vec<T>(T(1))) - Vec<T>(T(1)));
}

// log(1 + x) for x in [0, 1], denormal x too, NaN for NaN; to 2 eps.
template <class T>
MIM4D_HD Vec<T> log1p_unit_(Vec<T> x) {
  return polynomial(ExpConstants<T>::log1p, x) * x;
}

template <class T, int N>
MIM4D_HD Group<T, N> log1p_unit_(const Group<T, N>& x) {
  return polynomial(ExpConstants<T>::log1p, x) * x;
}

}  // namespace mim4d::MIM4D_ISA

#pragma once
// __half and __nv_bfloat16: 16 bits in memory, arithmetic in float, every result rounded to nearest even.

#include <bit>
#include <cmath>
#include <concepts>
#include <stdint.h>

#include "simt/types.h"

// A namespace of its own: overloads of the emulator are never found through an argument of these types.
namespace simt::halves {

struct Ieee {  // 1 sign, 5 exponent, 10 mantissa bits
  static float widen(uint16_t h) {
    const uint32_t sign = (h & 0x8000u) << 16, exponent = h >> 10 & 31, mantissa = h & 1023;
    if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | mantissa << 13);
    if (exponent != 0) return std::bit_cast<float>(sign | (exponent + 112) << 23 | mantissa << 13);
    return std::copysign(static_cast<float>(mantissa) * 0x1p-24f, std::bit_cast<float>(sign));
  }
  static uint16_t round(float f) {
    uint32_t u = std::bit_cast<uint32_t>(f);
    const uint32_t sign = u >> 16 & 0x8000u;
    u &= 0x7fffffffu;
    if (u > 0x7f800000u) return 0x7fff;                                  // NaN, as the hardware writes it
    if (u >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65520 and more
    if (u < 0x38800000u) {                                               // subnormal: a multiple of 2^-24
      const float units = std::nearbyint(std::bit_cast<float>(u) * 0x1p24f);
      return static_cast<uint16_t>(sign | static_cast<uint32_t>(units));
    }
    u += 0xfffu + (u >> 13 & 1u);
    return static_cast<uint16_t>(sign | (u - 0x38000000u) >> 13);
  }
};

struct Brain {  // 1 sign, 8 exponent, 7 mantissa bits: the upper half of a float
  static float widen(uint16_t h) { return std::bit_cast<float>(static_cast<uint32_t>(h) << 16); }
  static uint16_t round(float f) {
    const uint32_t u = std::bit_cast<uint32_t>(f);
    if ((u & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return static_cast<uint16_t>((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
  }
};

// The float that rounds to the same 16 bits as the double: the nearest one towards zero, made odd if it is not exact.
inline float round_to_odd(double d) {
  const float nearest = static_cast<float>(d);
  if (!std::isfinite(nearest) || static_cast<double>(nearest) == d) return nearest;
  uint32_t u = std::bit_cast<uint32_t>(nearest);
  if (std::fabs(static_cast<double>(nearest)) > std::fabs(d)) --u;
  return std::bit_cast<float>(u | 1u);
}

template <class Format>
struct Half {
  uint16_t bits;

  Half() = default;
  Half(float f) : bits(Format::round(f)) {}
  Half(double d) : bits(Format::round(round_to_odd(d))) {}
  template <std::integral I>
  Half(I i) : Half(static_cast<double>(i)) {}
  operator float() const { return Format::widen(bits); }

  friend Half operator+(Half a, Half b) { return float(a) + float(b); }
  friend Half operator-(Half a, Half b) { return float(a) - float(b); }
  friend Half operator*(Half a, Half b) { return float(a) * float(b); }
  friend Half operator/(Half a, Half b) { return float(a) / float(b); }
  friend Half operator-(Half a) { return -float(a); }
  Half& operator+=(Half o) { return *this = *this + o; }
  Half& operator-=(Half o) { return *this = *this - o; }
  Half& operator*=(Half o) { return *this = *this * o; }
  Half& operator/=(Half o) { return *this = *this / o; }
};

template <class Format>
struct alignas(4) HalfPair {
  Half<Format> x, y;
};

template <class H>
H half_from_bits(uint16_t bits) {
  H h;
  h.bits = bits;
  return h;
}

}  // namespace simt::halves

using __half = simt::halves::Half<simt::halves::Ieee>;
using __half2 = simt::halves::HalfPair<simt::halves::Ieee>;
using __nv_bfloat16 = simt::halves::Half<simt::halves::Brain>;
using __nv_bfloat162 = simt::halves::HalfPair<simt::halves::Brain>;
using half = __half;
using half2 = __half2;
using nv_bfloat16 = __nv_bfloat16;
using nv_bfloat162 = __nv_bfloat162;

inline float __half2float(__half h) { return h; }
inline __half __float2half(float f) { return f; }
inline __half __float2half_rn(float f) { return f; }
inline __half __double2half(double d) { return d; }
inline unsigned short __half_as_ushort(__half h) { return h.bits; }
inline __half __ushort_as_half(unsigned short bits) { return simt::halves::half_from_bits<__half>(bits); }
inline float2 __half22float2(__half2 h) { return {h.x, h.y}; }
inline __half2 __float22half2_rn(float2 f) { return {f.x, f.y}; }
inline __half2 __floats2half2_rn(float a, float b) { return {a, b}; }
inline __half2 __float2half2_rn(float a) { return {a, a}; }
inline __half2 __half2half2(__half h) { return {h, h}; }
inline __half2 __halves2half2(__half a, __half b) { return {a, b}; }

inline float __bfloat162float(__nv_bfloat16 h) { return h; }
inline __nv_bfloat16 __float2bfloat16(float f) { return f; }
inline __nv_bfloat16 __float2bfloat16_rn(float f) { return f; }
inline __nv_bfloat16 __double2bfloat16(double d) { return d; }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 h) { return h.bits; }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) {
  return simt::halves::half_from_bits<__nv_bfloat16>(bits);
}
inline float2 __bfloat1622float2(__nv_bfloat162 h) { return {h.x, h.y}; }
inline __nv_bfloat162 __float22bfloat162_rn(float2 f) { return {f.x, f.y}; }
inline __nv_bfloat162 __floats2bfloat162_rn(float a, float b) { return {a, b}; }
inline __nv_bfloat162 __float2bfloat162_rn(float a) { return {a, a}; }
inline __nv_bfloat162 __bfloat162bfloat162(__nv_bfloat16 h) { return {h, h}; }
inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 a, __nv_bfloat16 b) { return {a, b}; }

template <class F>
simt::halves::Half<F> __low2half(simt::halves::HalfPair<F> h) {
  return h.x;
}
template <class F>
simt::halves::Half<F> __high2half(simt::halves::HalfPair<F> h) {
  return h.y;
}
template <class F>
float __low2float(simt::halves::HalfPair<F> h) {
  return h.x;
}
template <class F>
float __high2float(simt::halves::HalfPair<F> h) {
  return h.y;
}
template <class F>
simt::halves::Half<F> __hadd(simt::halves::Half<F> a, simt::halves::Half<F> b) {
  return a + b;
}
template <class F>
simt::halves::Half<F> __hmul(simt::halves::Half<F> a, simt::halves::Half<F> b) {
  return a * b;
}
template <class F>
simt::halves::Half<F> __hfma(simt::halves::Half<F> a, simt::halves::Half<F> b, simt::halves::Half<F> c) {
  return std::fma(double(float(a)), double(float(b)), double(float(c)));
}
template <class F>
simt::halves::HalfPair<F> __hadd2(simt::halves::HalfPair<F> a, simt::halves::HalfPair<F> b) {
  return {a.x + b.x, a.y + b.y};
}
template <class F>
simt::halves::HalfPair<F> __hmul2(simt::halves::HalfPair<F> a, simt::halves::HalfPair<F> b) {
  return {a.x * b.x, a.y * b.y};
}
template <class F>
simt::halves::HalfPair<F> __hfma2(simt::halves::HalfPair<F> a, simt::halves::HalfPair<F> b,
                                  simt::halves::HalfPair<F> c) {
  return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)};
}

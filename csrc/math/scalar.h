#pragma once
// The words in which formulas are written, for scalars. cpu/simd.h says the same words for its vectors.

#include <math.h>

#include "math/macros.h"

namespace mim4d::math {

MIM4D_HD float floor_(float x) { return ::floorf(x); }
MIM4D_HD double floor_(double x) { return ::floor(x); }

// A NaN in x gives the limit: both compare false.
template <class T>
MIM4D_HD T clamp_(T x, T low, T high) {
  const T y = x > low ? x : low;
  return y < high ? y : high;
}

template <class T>
MIM4D_HD T select(bool which, T yes, T no) {
  return which ? yes : no;
}

// ---- cpu/vec_math.h says these

template <class T>
MIM4D_HD T max_(T a, T b) {  // b where either is NaN
  return a > b ? a : b;
}

template <class T>
MIM4D_HD T min_(T a, T b) {  // b where either is NaN
  return a < b ? a : b;
}

template <class T>
MIM4D_HD T fma_(T a, T b, T c) {  // a b + c, rounded once where the machine can
  return a * b + c;
}

template <class T>
MIM4D_HD T reciprocal_(T x) {  // of a finite number that is not tiny
  return T(1) / x;
}

MIM4D_HD float abs_(float x) { return ::fabsf(x); }
MIM4D_HD double abs_(double x) { return ::fabs(x); }
MIM4D_HD float exp_(float x) { return ::expf(x); }
MIM4D_HD double exp_(double x) { return ::exp(x); }
MIM4D_HD float expm1_(float x) { return ::expm1f(x); }  // for x <= 0
MIM4D_HD double expm1_(double x) { return ::expm1(x); }
MIM4D_HD float log1p_unit_(float x) { return ::log1pf(x); }  // log(1 + x) for x in [0, 1]
MIM4D_HD double log1p_unit_(double x) { return ::log1p(x); }

}  // namespace mim4d::math

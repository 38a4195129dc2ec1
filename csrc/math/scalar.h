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

}  // namespace mim4d::math

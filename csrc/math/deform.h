#pragma once
// The tap of deformable attention: a map read bilinearly at a location in [0, 1], zeros outside, and its adjoint.
// docs/ops/ms_deform_attn.md has the same symbols.

#include "math/macros.h"
#include "math/scalar.h"

namespace mim4d::math {

// a b, rounded before anything is added. Locations often lie on cell centres, (x + 1/2) / W, where the slope has a
// jump: fused with the - 1/2 behind it, the product would fall to either side by chance, and not as the reference does.
MIM4D_HD float product_(float a, float b) {
#if defined(__CUDA_ARCH__) && defined(__CUDACC__)
  return __fmul_rn(a, b);
#else
  volatile float product = a * b;
  return product;
#endif
}
MIM4D_HD double product_(double a, double b) {
#if defined(__CUDA_ARCH__) && defined(__CUDACC__)
  return __dmul_rn(a, b);
#else
  volatile double product = a * b;
  return product;
#endif
}

constexpr int kNoCell = -2;  // neither it nor the cell behind it is in a map

// A location on one axis: between the cells `first` and first + 1, at the fraction t.
template <class T>
struct DeformAxis {
  T first;  // a whole number in [-1, size - 1], or kNoCell: the location is a cell or more outside, infinite or NaN
  T t;      // in [0, 1)
};

template <class T>
MIM4D_HD DeformAxis<T> deform_axis(T location, T size) {
  const T position = product_(location, size) - T(0.5);  // in cells
  const T near = select((position > T(-1)) & (position < size), position, T(kNoCell));
  const T first = floor_(near);
  return {first, near - first};
}

// Weights of the four cells; bit 0 of a cell's number is its step in x, bit 1 in y.
template <class T>
MIM4D_HD void deform_weights(T tx, T ty, T (&w)[4]) {
  const T sx = T(1) - tx, sy = T(1) - ty;
  w[0] = sx * sy, w[1] = tx * sy, w[2] = sx * ty, w[3] = tx * ty;
}

// The interpolation of one number a cell, and its derivatives by tx and ty.
template <class T>
MIM4D_HD void deform_slopes(const T (&v)[4], T tx, T ty, T& value, T& dx, T& dy) {
  const T sx = T(1) - tx, sy = T(1) - ty;
  const T upper = sx * v[0] + tx * v[1], lower = sx * v[2] + tx * v[3];
  value = sy * upper + ty * lower;
  dx = sy * (v[1] - v[0]) + ty * (v[3] - v[2]);
  dy = lower - upper;
}

}  // namespace mim4d::math

#pragma once
// A signed distance field as opacity along a ray (NeuS), and its adjoint. docs/ops/sdf_march.md has the same symbols.

#include "math/macros.h"
#include "math/scalar.h"

namespace mim4d::math {

// sigmoid(x), and 1 - sigmoid(x) to the same relative error
template <class T>
MIM4D_HD void sigmoids(T x, T& value, T& rest) {
  const T e = exp_(-abs_(x));
  const T r = reciprocal_(T(1) + e);
  value = select(x < T(0), e * r, r);
  rest = select(x < T(0), r, e * r);
}

template <class T>
MIM4D_HD T sigmoid(T x) {
  T value, rest;
  sigmoids(x, value, rest);
  return value;
}

// softplus with beta = 100, its first derivative a' and its second one, from one exponential.
template <class T>
MIM4D_HD void softplus(T y, T& value, T& slope, T& bend) {
  const T e = exp_(abs_(y) * T(-100));
  const T r = reciprocal_(T(1) + e), rest = e * r;
  slope = select(y < T(0), rest, r);
  bend = r * rest * T(100);  // 100 a' (1 - a'), which does not cancel
  value = fma_(log1p_unit_(e), T(0.01), max_(T(0), y));
}

// ---- opacity of a section

// c: how fast sdf falls along the ray, at most 0; cosine = d . n, a: how far annealed
template <class T>
MIM4D_HD T fall(T cosine, T a) {
  const T soft = max_(T(0), fma_(cosine, T(-0.5), T(0.5))), hard = max_(T(0), -cosine);
  return -(soft * (T(1) - a) + hard * a);
}

template <class T>
MIM4D_HD T fall_slope(T cosine, T a) {
  return select(cosine < T(1), (T(1) - a) * T(0.5), T(0)) + select(cosine < T(0), a, T(0));
}

template <class T>
struct Opacity {
  T enter, enter_rest;  // P, 1 - P
  T leave, leave_rest;  // N, 1 - N
  T gap;                // P - N
  T ratio;              // before it is clipped
  T alpha;
};

// half: c delta / 2, half the change of sdf over the section. P - N = P (1 - N) (1 - e^(2 s half)) does not cancel, as
// the difference of two rounded numbers would where a section is short.
template <class T>
MIM4D_HD Opacity<T> opacity(T sdf, T half, T inv_s) {
  Opacity<T> o;
  sigmoids((sdf - half) * inv_s, o.enter, o.enter_rest);
  sigmoids((sdf + half) * inv_s, o.leave, o.leave_rest);
  o.gap = -(o.enter * o.leave_rest) * expm1_(half * inv_s * T(2));
  o.ratio = (o.gap + T(1e-5)) / (o.enter + T(1e-5));
  o.alpha = max_(T(0), min_(T(1), o.ratio));
  return o;
}

template <class T>
struct OpacityAdjoint {
  T sdf;
  T half;
  T inv_s;
};

template <class T>
MIM4D_HD OpacityAdjoint<T> opacity_adjoint(const Opacity<T>& o, T sdf, T half, T inv_s, T alpha_bar) {
  const T free = select((o.ratio >= T(0)) & (o.ratio <= T(1)), alpha_bar, T(0));
  const T scale = T(1) / (o.enter + T(1e-5));
  const T by_both = free * o.leave * scale;
  // The cotangents of s (f - half) and of s (f + half), over by_both: their sum and their difference.
  const T pad = o.enter_rest * scale * T(1e-5);
  const T sum = -o.gap - pad, difference = -(o.enter_rest - pad + o.leave_rest);
  return {by_both * sum * inv_s, by_both * difference * inv_s, by_both * fma_(sdf, sum, half * difference)};
}

// ---- compositing, front to back

// The light that a section lets through.
template <class T>
MIM4D_HD T passed(T alpha) {
  return T(1) - alpha + T(1e-7);
}

// Walking back, `behind` is what the sections behind would weigh in the loss if all light reached them. Returns alpha's
// cotangent from that of the weight.
template <class T>
MIM4D_HD T composite_adjoint(T alpha, T transmittance, T weight_bar, T& behind) {
  const T alpha_bar = transmittance * (weight_bar - behind);
  behind = weight_bar * alpha + passed(alpha) * behind;
  return alpha_bar;
}

// ---- where a ray is read: equal sections first, then more of them where light is lost

// Boundary i of n equal sections as a share of the stretch: it moves between the midpoints around it by the share
// `jitter`.
template <class T>
MIM4D_HD T section_boundary(T i, T n, T jitter) {
  const T low = max_(T(0), i - T(0.5)) / n, high = min_(n, i + T(0.5)) / n;
  return low + (high - low) * jitter;
}

// How fast sdf changes over a section of this length.
template <class T>
MIM4D_HD T section_quotient(T sdf, T next, T length) {
  return (next - sdf) / (length + T(1e-5));
}

// alpha of a section from the sdf at both ends, its quotient and that of the section before (0 for the first).
template <class T>
MIM4D_HD T section_alpha(T sdf, T next, T length, T quotient, T before, T sharpness) {
  const T slope = clamp_(min_(quotient, before), T(-1000), T(0));
  return opacity((sdf + next) * T(0.5), slope * length * T(0.5), sharpness).alpha;
}

// What is added to the weight of each of n sections, so that together they weigh 1e-5 or more.
template <class T>
MIM4D_HD T section_padding(T total, T n) {
  return max_(T(0), T(1e-5) - total) / n;
}

// The last of n sections that begins at or below `wanted`, the very last where NaN is compared; mass(i): the weight of
// all sections before i, asked for 0 < i < n.
template <class T, class Mass>
MIM4D_HD int section_of(T wanted, int n, Mass&& mass) {
  int low = 0, high = n - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (mass(middle) > wanted)
      high = middle - 1;
    else
      low = middle;
  }
  return low;
}

// The place in a section between two edges where the mass reaches `wanted`.
template <class T>
MIM4D_HD T place_in_section(T wanted, T mass0, T mass1, T edge0, T edge1) {
  const T share = clamp_((wanted - mass0) / (mass1 - mass0), T(0), T(1));
  // Rounded, the sum may pass the edge, and then the places of two sections would not ascend.
  return min_(edge1, edge0 + (edge1 - edge0) * select(mass1 > mass0, share, T(0)));
}

}  // namespace mim4d::math

#pragma once
// Division by a number that stays the same, without the machine's slow division.

#include <stdint.h>

#include "math/macros.h"

namespace mim4d::math {

// x / divisor for 0 <= x < 2^31 and 1 <= divisor < 2^31, by a product and a shift (Granlund and Montgomery 1994): with
// 2^bits >= divisor and factor * divisor = 2^(31 + bits) + e, 0 < e <= divisor, the quotient is too large by
// x e / (2^(31 + bits) divisor) < 1 / divisor.
struct Divider {
  uint64_t factor = 1;
  int shift = 0;

  Divider() = default;
  explicit Divider(int64_t divisor) {
    int bits = 0;
    while ((int64_t{1} << bits) < divisor) ++bits;
    shift = 31 + bits;
    factor = (uint64_t{1} << shift) / static_cast<uint64_t>(divisor < 1 ? 1 : divisor) + 1;
  }
  MIM4D_HD int64_t operator()(int64_t x) const {
    return static_cast<int64_t>(static_cast<uint64_t>(x) * factor >> shift);
  }
};

}  // namespace mim4d::math

#pragma once
// Square tiles in registers, one register a row: transposition, and the sums of all rows at once.

#include <utility>

#include "cpu/simd.h"

namespace mim4d::MIM4D_ISA {

// Shuffles of two registers that every instruction set has: a lane's place is one of 16 bytes, then one within these.
template <class T>
struct Shuffles {
  static constexpr int n = Vec<T>::width;
  static constexpr int part = 16 / sizeof(T) < n ? 16 / sizeof(T) : n;  // lanes in 16 bytes

  // groups of `run` lanes of a and b in turn, within each 16 bytes: their first half or their second
  static constexpr int mixed(int i, int run, bool second) {
    const int group = i % part / run;
    return group % 2 * n + i / part * part + (group / 2 + (second ? part / run / 2 : 0)) * run + i % run;
  }
  // every other 16 bytes of a, then of b: the even ones or the odd ones
  static constexpr int other(int i, bool odd) {
    const int half = n < 2 * part ? 1 : n / part / 2, place = i / part;
    return place / half * n + (2 * (place % half) + odd) * part + i % part;
  }

  template <int run, bool second, int... I>
  MIM4D_HD static Vec<T> mix(Vec<T> a, Vec<T> b, std::integer_sequence<int, I...>) {
    return shuffle(a, b, std::integer_sequence<int, mixed(I, run, second)...>{});
  }
  template <bool odd, int... I>
  MIM4D_HD static Vec<T> pick(Vec<T> a, Vec<T> b, std::integer_sequence<int, I...>) {
    return shuffle(a, b, std::integer_sequence<int, other(I, odd)...>{});
  }
};

// f(run) for run = 1, 2, ... below the lanes of 16 bytes, and g() once for every doubling beyond
template <class T, class F, class G>
MIM4D_HD void for_stages(F&& f, G&& g) {
  constexpr int part = Shuffles<T>::part;
  if constexpr (part > 1) f(std::integral_constant<int, 1>{});
  if constexpr (part > 2) f(std::integral_constant<int, 2>{});
  if constexpr (Vec<T>::width >= 2 * part) g();
  if constexpr (Vec<T>::width >= 4 * part) g();
}

template <class T>
MIM4D_HD void transpose_tile(Vec<T> (&row)[Vec<T>::width]) {
  using S = Shuffles<T>;
  constexpr int n = S::n, part = S::part, places = n / part;
  constexpr auto lanes = std::make_integer_sequence<int, n>{};
  Vec<T> next[n];
  for_stages<T>(
      [&](auto run) {  // rows that differ in this bit of their number change places with lanes that do
        MIM4D_UNROLL
        for (int i = 0; i < n; ++i) {
          const int low = i & ~run, high = i | run;
          next[i] = i & run ? S::template mix<run, true>(row[low], row[high], lanes)
                            : S::template mix<run, false>(row[low], row[high], lanes);
        }
        MIM4D_UNROLL
        for (int i = 0; i < n; ++i) row[i] = next[i];
      },
      [] {});
  // Now row `part` g + swapped(i) holds, in its 16 bytes number p, column p * part + i of the rows of group g.
  constexpr auto swapped = [](int i) { return part == 4 ? i % 2 * 2 + i / 2 : i; };
  MIM4D_UNROLL
  for (int i = 0; i < part; ++i) {
    Vec<T> x[places];
    MIM4D_UNROLL
    for (int g = 0; g < places; ++g) x[g] = row[g * part + swapped(i)];
    if constexpr (places == 1) {
      next[i] = x[0];
    } else if constexpr (places == 2) {
      next[i] = S::template pick<false>(x[0], x[1], lanes);
      next[part + i] = S::template pick<true>(x[0], x[1], lanes);
    } else {
      const Vec<T> e0 = S::template pick<false>(x[0], x[1], lanes), e1 = S::template pick<false>(x[2], x[3], lanes);
      const Vec<T> o0 = S::template pick<true>(x[0], x[1], lanes), o1 = S::template pick<true>(x[2], x[3], lanes);
      next[i] = S::template pick<false>(e0, e1, lanes);
      next[part + i] = S::template pick<false>(o0, o1, lanes);
      next[2 * part + i] = S::template pick<true>(e0, e1, lanes);
      next[3 * part + i] = S::template pick<true>(o0, o1, lanes);
    }
  }
  MIM4D_UNROLL
  for (int i = 0; i < n; ++i) row[i] = next[i];
}

// Lane i of the result is the sum of row i's lanes. Of half as many rows as lanes they come twice.
template <int G, class T>
MIM4D_HD Vec<T> row_sums(Vec<T> (&row)[G]) {
  using S = Shuffles<T>;
  static_assert(G == S::n || 2 * G == S::n);
  constexpr auto lanes = std::make_integer_sequence<int, S::n>{};
  int rows = G;
  for_stages<T>(
      [&](auto run) {
        const int next = rows > 1;  // the last of half as many rows: one row, with itself
        rows = (rows + 1) / 2;
        MIM4D_UNROLL
        for (int i = 0; i < rows; ++i)
          row[i] = S::template mix<run, false>(row[2 * i], row[2 * i + next], lanes) +
                   S::template mix<run, true>(row[2 * i], row[2 * i + next], lanes);
      },
      [&] {
        const int next = rows > 1;
        rows = (rows + 1) / 2;
        MIM4D_UNROLL
        for (int i = 0; i < rows; ++i)
          row[i] = S::template pick<false>(row[2 * i], row[2 * i + next], lanes) +
                   S::template pick<true>(row[2 * i], row[2 * i + next], lanes);
      });
  return row[0];
}

}  // namespace mim4d::MIM4D_ISA

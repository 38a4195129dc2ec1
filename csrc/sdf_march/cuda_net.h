#pragma once
// The weights of both decoders as the CUDA kernels read them, and as they sum their gradients: one array in which every
// matrix lies input by input, w[k][o], with widths that are padded with zeros.

#include "math/macros.h"

namespace mim4d {

// Padded widths: C of a feature, H of the SDF decoder's hidden layers, G of the geometry, R of the colour decoder's
// hidden layers. Known to the compiler, vectors of a layer stay in registers.
struct FixedWidths {
  static constexpr bool fixed = true;
  static constexpr int C = 32, H = 16, G = 16, R = 16;
  static constexpr int tile = 16;  // outputs whose sums a thread keeps together
};

struct AnyWidths {
  static constexpr bool fixed = false;
  static constexpr int tile = 8;
  int C, H, G, R;  // multiples of the tile
};

// Offsets in the array. All are multiples of 4, and so a row's values are moved four at a time.
template <class Widths>
struct SdfMarchNet : Widths {
  using Widths::C, Widths::H, Widths::G, Widths::R;
  int L, M;  // layers of the SDF decoder and of the colour decoder (0: there is none)

  // The SDF decoder: W [3][H], w [H], then its layers.
  MIM4D_HD int w() const { return 3 * H; }
  MIM4D_HD int layer(int l) const { return 4 * H + l * (C * H + H * H + 2 * H); }
  // In a layer: U [C][H] at 0, c [H], A [H][H], b [H]; in the last one the row of sdf a [H], the geometry's [H][G], and
  // their biases [1], [G] in the place of A and b.
  MIM4D_HD int c() const { return C * H; }
  MIM4D_HD int A() const { return C * H + H; }
  MIM4D_HD int b() const { return A() + H * H; }
  MIM4D_HD int geometry() const { return A() + H; }
  MIM4D_HD int b_sdf() const { return geometry() + H * G; }
  MIM4D_HD int b_geometry() const { return b_sdf() + 4; }
  MIM4D_HD int sdf_count() const { return layer(L - 1) + b_geometry() + G; }

  // The colour decoder: W [3][R], w [R], then its layers.
  MIM4D_HD int rW() const { return sdf_count(); }
  MIM4D_HD int rw() const { return rW() + 3 * R; }
  MIM4D_HD int colour_layer(int l) const { return rW() + 4 * R + l * ((extra + C + G) * R + R * R + 2 * R); }
  // In a layer: the columns of U for direction and normal [8][R] at 0, for the feature [C][R], for the geometry [G][R],
  // c [R], A [R][R], b [R]; in the last one A [R][4], b [4].
  static constexpr int extra = 8;
  MIM4D_HD int rU() const { return extra * R; }
  MIM4D_HD int rG() const { return (extra + C) * R; }
  MIM4D_HD int rc() const { return (extra + C + G) * R; }
  MIM4D_HD int rA() const { return rc() + R; }
  MIM4D_HD int rb() const { return rA() + R * R; }
  MIM4D_HD int b_out() const { return rA() + 4 * R; }

  MIM4D_HD int count() const { return M == 0 ? sdf_count() : colour_layer(M - 1) + b_out() + 4; }
  // Of gradients alone: that of inv_s.
  MIM4D_HD int inv_s() const { return count(); }
  MIM4D_HD int gradients() const { return count() + 4; }
};

}  // namespace mim4d

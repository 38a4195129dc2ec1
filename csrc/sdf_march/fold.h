#pragma once
// The decoders with everything multiplied out that no activation stands between, in double: fewer products for each
// sample, the same function. docs/ops/sdf_march.md, "What is left out, exactly", has the formulas.

#include <stdint.h>
#include <vector>

#include "sdf_march/params.h"

namespace mim4d {

// A decoder in the order of the op's weights, row by row, in double.
struct Decoder : DecoderSizes {
  std::vector<std::vector<double>> tensors;
};

// The weights of one layer, row by row, or the gradients of its weights. h is the layer's input, p the position, f the
// feature, z the last activation of the SDF decoder, n the normal, d the direction, 1 a constant:
//   first and last layer   y = A h + P p + F f + Z z + N n + D d + c
//   layers between         y = A (h + F f + Z z + N n + D d + c) + b
// A first layer has no A, others no P; the SDF decoder has no Z, N and D, and its last layer gives the SDF alone.
struct FoldedLayer {
  double *A, *b, *P, *F, *Z, *N, *D, *c;
};

struct Folded {
  int64_t C, H, R;  // numbers of f, z, and of the colour decoder's hidden values
  std::vector<FoldedLayer> sdf, rgb;

  // All zero. `rgb` may have no layers: sdf_sample reads the SDF alone.
  Folded(const Decoder& sdf, const Decoder& rgb);
  Folded(Folded&&) = default;  // the layers point into the memory

 private:
  std::vector<double> memory;
};

Folded fold(const Decoder& sdf, const Decoder& rgb);

// Adds to gradients in the order of the op's weights, from those of the folded weights.
void unfold(const Decoder& sdf, const Decoder& rgb, const Folded& by_folded, std::vector<std::vector<double>>& by_sdf,
            std::vector<std::vector<double>>& by_rgb);

}  // namespace mim4d

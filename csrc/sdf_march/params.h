#pragma once

#include <stdint.h>

#include "math/macros.h"
#include "math/modes.h"

namespace mim4d {

// A decoder: W [hidden, 3], w [hidden], then for each layer A [out, hidden], b [out], U [hidden, condition], c
// [hidden]; `out` is that of the last layer, the others have `hidden` outputs.
struct DecoderSizes {
  int64_t hidden, condition, out, layers;
};

// A field along rays: what both ops read.
template <class T>
struct SdfFieldParams {
  const T* volume;      // [B, Z, Y, X, C]: channels last
  const T* outside;     // [C] zeros: the voxel outside of the volume (CPU kernels)
  const T* origins;     // [B, R, 3]
  const T* directions;  // [B, R, 3]
  DecoderSizes sdf_net;
  int64_t B, R, C, Z, Y, X;
  T aabb[6];
  Mode mode;
  Padding padding;
  bool align;

  MIM4D_HD int64_t rays() const { return B * R; }
  MIM4D_HD int64_t geometry() const { return sdf_net.out - 1; }
};

template <class T>
struct SdfMarchParams : SdfFieldParams<T> {
  const T* edges;        // [B, R, S + 1]
  DecoderSizes rgb_net;  // its condition: direction 3, feature C, normal 3, geometry
  T* rgb;                // [B, R, 3]
  T* depth;              // [B, R]
  T* opacity;            // [B, R]
  T* sdf;                // [B, R, S]
  T* gradient;           // [B, R, S, 3]
  T* weights;            // [B, R, S]
  int64_t S;
  T inv_s;
  T cos_anneal;
};

template <class T>
struct SdfSampleParams : SdfFieldParams<T> {
  const T* near;    // [B, R]
  const T* far;     // [B, R]
  const T* jitter;  // [B, R, 2], or null: evaluation
  T* edges;         // [B, R, n_uniform + n_importance + 1]
  int64_t n_uniform, n_importance;
  T sharpness;
};

// Cotangents of the results, null where there is none, and what is wanted.
template <class T>
struct SdfMarchAdjoint {
  const T* rgb;
  const T* depth;
  const T* opacity;
  const T* sdf;
  const T* gradient;
  const T* weights;
  T* grad_volume;      // [B, Z, Y, X, C], null: not wanted
  T* grad_origins;     // [B, R, 3], null: not wanted
  T* grad_directions;  // [B, R, 3], null: not wanted
  bool sdf_net, rgb_net;
};

}  // namespace mim4d

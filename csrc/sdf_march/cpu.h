#pragma once

#include <stdint.h>

#include "cpu/isa.h"
#include "sdf_march/fold.h"
#include "sdf_march/params.h"

namespace mim4d {

// Where a sample touches the gradient of the volume.
template <class T>
struct SampleCell {
  int32_t x, y, z;  // of the first taps
  T t[3];           // fractions
  T v[3];           // the cotangent of its normal, in cells
};

constexpr int32_t kNowhere = -1 << 24;  // as x: the sample touches nothing

// The same in a row of voxels, which is the list that holds the sample.
template <class T>
struct PlacedSample {
  int64_t index;  // in the batch of samples
  SampleCell<T> cell;
};

// Samples of consecutive rays between the two halves of the backward pass: the cotangents f_bar and q of their
// features.
template <class T>
struct SampleBatch {
  int64_t first_ray;
  T* rows;               // [samples][2][C, padded]
  SampleCell<T>* cells;  // [samples]
};

// The volume's gradient is summed slice by slice: the voxels of one (b, y). Samples are listed by the row of voxels (b,
// z, y) of their first taps, which may lie as many rows below the volume in z and y as the axis has taps, less one.
template <class T>
struct SampleLists {
  const int64_t* start;  // [lists + 1]
  const PlacedSample<T>* samples;

  static MIM4D_HD int taps_y(const SdfMarchParams<T>& p) { return p.mode >= Mode::bicubic ? 4 : 2; }
  static MIM4D_HD int taps_z(const SdfMarchParams<T>& p) { return p.mode == Mode::tricubic ? 4 : 2; }
  static MIM4D_HD int64_t number(const SdfMarchParams<T>& p, int64_t b, int64_t z, int64_t y) {
    const int64_t more_z = taps_z(p) - 1, more_y = taps_y(p) - 1;
    return (b * (p.Z + more_z) + z + more_z) * (p.Y + more_y) + y + more_y;
  }
  static int64_t count(const SdfMarchParams<T>& p) { return p.B * (p.Z + taps_z(p) - 1) * (p.Y + taps_y(p) - 1); }
};

// Numbers of values to allocate, each array aligned to 64 bytes.
struct SdfMarchMemory {
  int64_t net;     // the weights as the kernels read them
  int64_t thread;  // of one thread
  int64_t sums;    // gradients of the weights, of one group of rays
  int64_t row;     // of one sample's features
};

// What one instruction set offers. Ranges [begin, end) are independent of each other and may run in parallel.
template <class T>
struct SdfMarchCpu {
  using Params = SdfMarchParams<T>;
  SdfMarchMemory (*memory)(const Params& p, bool backward);
  void (*pack)(const Params& p, const Folded& folded, T* net);
  void (*forward)(const Params& p, T* net, T* thread, int64_t begin, int64_t end);  // rays
  // rays; adds to `sums`, which one caller at a time may do, and fills the batch
  void (*backward)(const Params& p, const SdfMarchAdjoint<T>& adjoint, T* net, T* thread, T* sums,
                   const SampleBatch<T>& batch, int64_t begin, int64_t end);
  void (*unpack)(const Params& p, T* sums, const Folded& gradients, double* inv_s);  // adds to both
  // samples of the batch. count: adds to count[list] for each; place: writes each to placed[cursor[list]++]
  void (*count)(const Params& p, const SampleBatch<T>& batch, int64_t begin, int64_t end, int64_t* count);
  void (*place)(const Params& p, const SampleBatch<T>& batch, int64_t begin, int64_t end, int64_t* cursor,
                PlacedSample<T>* placed);
  // slices of voxels, all of one (b, y), numbered b * Y + y; added to unless `fresh`
  void (*add_slices)(const Params& p, const SampleBatch<T>& batch, const SampleLists<T>& lists, bool fresh,
                     T* grad_volume, int64_t begin, int64_t end);
};

template <class T>
struct SdfSampleCpu {
  using Params = SdfSampleParams<T>;
  SdfMarchMemory (*memory)(const Params& p);  // of net and thread
  void (*pack)(const Params& p, const Folded& folded, T* net);
  void (*sample)(const Params& p, T* net, T* thread, int64_t begin, int64_t end);  // rays
};

}  // namespace mim4d

MIM4D_DECLARE_ISA(::mim4d::SdfMarchCpu<float>, sdf_march_float)
MIM4D_DECLARE_ISA(::mim4d::SdfMarchCpu<double>, sdf_march_double)
MIM4D_DECLARE_ISA(::mim4d::SdfSampleCpu<float>, sdf_sample_float)
MIM4D_DECLARE_ISA(::mim4d::SdfSampleCpu<double>, sdf_sample_double)

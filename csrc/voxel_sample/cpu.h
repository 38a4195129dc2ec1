#pragma once

#include <stdint.h>

#include "cpu/isa.h"
#include "voxel_sample/params.h"

namespace mim4d {

// A point in the list of the row of voxels that holds its first tap.
template <class T>
struct ListedPoint {
  int64_t index;  // in [0, B * N)
  T coordinate[3];
};

// The volume's gradient is made row by row: the X voxels of one (b, z, y). Points are listed by the row of their first
// tap, which may lie as many rows below the volume in z and y as the axis has taps, less one.
template <class T>
struct PointLists {
  const int64_t* start;  // [lists + 1]
  const ListedPoint<T>* points;

  MIM4D_HD int64_t number(const VoxelSampleParams<T>& p, int64_t b, int64_t z, int64_t y) const {
    return (b * (p.Z + p.taps_z() - 1) + z + p.taps_z() - 1) * (p.Y + p.taps() - 1) + y + p.taps() - 1;
  }
  int64_t count(const VoxelSampleParams<T>& p) const { return p.B * (p.Z + p.taps_z() - 1) * (p.Y + p.taps() - 1); }
};

// What one instruction set offers for one shape of stencil. Ranges [begin, end) are independent of each other and may
// run in parallel; they are of points, or of rows numbered with z fastest: (b * Y + y) * Z + z.
template <class T>
struct VoxelSampleCpu {
  using Params = VoxelSampleParams<T>;
  void (*forward)(const Params& p, int64_t begin, int64_t end);          // -> out
  void (*backward_points)(const Params& p, int64_t begin, int64_t end);  // grad -> grad_points
};

template <class T>
struct VoxelSampleDerivativesCpu {
  using Params = VoxelSampleParams<T>;
  void (*with_grad)(const Params& p, int64_t begin, int64_t end);         // -> out, jacobian
  void (*with_grad_points)(const Params& p, int64_t begin, int64_t end);  // grad, grad_jacobian -> grad_points
  // grad, grad_grad_volume, grad_grad_points -> grad_grad, grad_points
  void (*double_points)(const Params& p, int64_t begin, int64_t end);
};

template <class T>
struct VoxelSampleVolumeCpu {
  using Params = VoxelSampleParams<T>;
  using Lists = PointLists<T>;
  // count: adds to count[list] for each point that touches the volume; place: writes it to listed[cursor[list]++]
  void (*count)(const Params& p, const Lists& lists, int64_t begin, int64_t end, int64_t* count);
  void (*place)(const Params& p, const Lists& lists, int64_t begin, int64_t end, int64_t* cursor,
                ListedPoint<T>* listed);
  // to rows of grad_volume
  void (*backward_rows)(const Params& p, const Lists& lists, int64_t begin, int64_t end);   // from grad
  void (*with_grad_rows)(const Params& p, const Lists& lists, int64_t begin, int64_t end);  // and grad_jacobian
  void (*double_rows)(const Params& p, const Lists& lists, int64_t begin, int64_t end);     // and grad_grad_points
};

// The kernels by shape of stencil: linear axes, cubic axes but for z, cubic axes.
template <class Kernels>
struct ByShape {
  Kernels shape[3];
};

}  // namespace mim4d

MIM4D_DECLARE_ISA(::mim4d::ByShape<::mim4d::VoxelSampleCpu<float>>, voxel_sample_float)
MIM4D_DECLARE_ISA(::mim4d::ByShape<::mim4d::VoxelSampleCpu<double>>, voxel_sample_double)
MIM4D_DECLARE_ISA(::mim4d::ByShape<::mim4d::VoxelSampleDerivativesCpu<float>>, voxel_sample_derivatives_float)
MIM4D_DECLARE_ISA(::mim4d::ByShape<::mim4d::VoxelSampleDerivativesCpu<double>>, voxel_sample_derivatives_double)
MIM4D_DECLARE_ISA(::mim4d::ByShape<::mim4d::VoxelSampleVolumeCpu<float>>, voxel_sample_volume_float)
MIM4D_DECLARE_ISA(::mim4d::ByShape<::mim4d::VoxelSampleVolumeCpu<double>>, voxel_sample_volume_double)

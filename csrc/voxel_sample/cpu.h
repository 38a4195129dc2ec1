#pragma once

#include <stdint.h>

#include "cpu/isa.h"
#include "voxel_sample/params.h"

namespace mim4d {

// A point with its place in a row of voxels; the row itself is the list that holds the point.
template <class T>
struct PlacedPoint {
  int64_t index;  // of the point, in [0, B * N)
  int32_t x;      // lower cell
  T t[3];         // fractions in x, y, z
};

// The volume's gradient is made row by row: the X voxels of one (b, z, y). Points are listed by the row of their lower
// corner, which may lie one below the volume in z and y.
template <class T>
struct PointLists {
  const int64_t* start;  // [lists + 1]
  const PlacedPoint<T>* points;

  static MIM4D_HD int64_t number(const VoxelSampleParams<T>& p, int64_t b, int64_t z, int64_t y) {
    return (b * (p.Z + 1) + z + 1) * (p.Y + 1) + y + 1;
  }
};

// What one instruction set offers. Ranges [begin, end) are independent of each other and may run in parallel.
template <class T>
struct VoxelSampleCpu {
  using Params = VoxelSampleParams<T>;
  void (*forward)(const Params& p, int64_t begin, int64_t end);          // points
  void (*backward_points)(const Params& p, int64_t begin, int64_t end);  // points
  // count: adds to count[list] for each point; place: writes each point to placed[cursor[list]++]
  void (*count)(const Params& p, int64_t begin, int64_t end, int64_t* count);
  void (*place)(const Params& p, int64_t begin, int64_t end, int64_t* cursor, PlacedPoint<T>* placed);
  // rows, numbered with z fastest: (b * Y + y) * Z + z
  void (*backward_rows)(const Params& p, const PointLists<T>& lists, int64_t begin, int64_t end);
};

}  // namespace mim4d

MIM4D_DECLARE_ISA(::mim4d::VoxelSampleCpu<float>, voxel_sample_float)
MIM4D_DECLARE_ISA(::mim4d::VoxelSampleCpu<double>, voxel_sample_double)

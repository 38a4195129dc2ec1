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

// The volume's gradient row by row. A row is the X voxels of one (b, z, y); points are listed by the row of their lower
// corner, which may be one below the volume: list (b, z, y) has the number (b * (Z + 1) + z + 1) * (Y + 1) + y + 1.
template <class T>
struct PointLists {
  const int64_t* start;  // [lists + 1]
  const PlacedPoint<T>* points;
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
  void (*backward_rows)(const Params& p, const PointLists<T>& lists, int64_t begin, int64_t end);  // rows
};

}  // namespace mim4d

MIM4D_DECLARE_ISA(::mim4d::VoxelSampleCpu<float>, voxel_sample_float)
MIM4D_DECLARE_ISA(::mim4d::VoxelSampleCpu<double>, voxel_sample_double)

// Trilinear sampling on one instruction set. Channels are the SIMD lanes; the stencils of a block of points are
// computed with points as the lanes. Outside taps read a row of zeros: no branch, and never 0 * inf.

#include "voxel_sample/cpu.h"

#include "cpu/simd.h"
#include "math/interp.h"

namespace mim4d::MIM4D_ISA {
namespace {

// Lower corners and fractions of up to Vec<T>::width points of one batch item.
template <class T>
struct Block {
  static constexpr int width = Vec<T>::width;
  int32_t low[3][width];
  T t[3][width];
  T slope[3][width];

  void locate(const VoxelSampleParams<T>& p, const T* points, int n) {
    T coordinate[3][width] = {};
    for (int j = 0; j < n; ++j)
      for (int d = 0; d < 3; ++d) coordinate[d][j] = points[3 * j + d];
    const int64_t size[3] = {p.X, p.Y, p.Z};
    for (int d = 0; d < 3; ++d) {
      const auto axis = math::linear_axis(Vec<T>::load(coordinate[d]), Vec<T>(T(size[d])), p.align, p.padding);
      store_int(low[d], axis.low);
      axis.t.store(t[d]);
      axis.slope.store(slope[d]);
    }
  }
};

// f(point, batch item, block, lane) for each point of a range
template <class T, class F>
MIM4D_HD void for_points(const VoxelSampleParams<T>& p, int64_t begin, int64_t end, F&& f) {
  Block<T> block;
  for (int64_t i = begin; i < end;) {
    const int64_t item = i / p.N;
    const int64_t stop = end < (item + 1) * p.N ? end : (item + 1) * p.N;
    const int n = stop - i < Block<T>::width ? static_cast<int>(stop - i) : Block<T>::width;
    block.locate(p, p.points + 3 * i, n);
    for (int j = 0; j < n; ++j) f(i + j, item, block, j);
    i += n;
  }
}

MIM4D_HD bool inside(int32_t cell, int64_t size) { return cell >= 0 && cell < size; }

// The eight voxels around a point; false when all of them lie outside.
template <class T>
MIM4D_HD bool corners(const VoxelSampleParams<T>& p, int64_t item, const Block<T>& b, int j, const T* (&corner)[8]) {
  const int32_t x = b.low[0][j], y = b.low[1][j], z = b.low[2][j];
  const int64_t dy = p.X * p.C, dz = p.Y * dy;
  const int64_t first = item * p.Z * dz + z * dz + y * dy + x * p.C;
  const bool in_x[2] = {inside(x, p.X), inside(x + 1, p.X)};
  const bool in_y[2] = {inside(y, p.Y), inside(y + 1, p.Y)};
  const bool in_z[2] = {inside(z, p.Z), inside(z + 1, p.Z)};
  MIM4D_UNROLL
  for (int k = 0; k < 8; ++k) {
    const bool in = in_x[k & 1] & in_y[k >> 1 & 1] & in_z[k >> 2];
    corner[k] = in ? p.volume + (first + (k & 1) * p.C + (k >> 1 & 1) * dy + (k >> 2) * dz) : p.outside;
  }
  return (in_x[0] | in_x[1]) & (in_y[0] | in_y[1]) & (in_z[0] | in_z[1]);
}

template <class T>
void forward(const VoxelSampleParams<T>& p, int64_t begin, int64_t end) {
  for_points(p, begin, end, [&](int64_t i, int64_t item, const Block<T>& b, int j) {
    const T tx = b.t[0][j], ty = b.t[1][j], tz = b.t[2][j];
    T* out = p.out + i * p.C;
    const T* corner[8];
    if (!corners(p, item, b, j, corner)) {
      const T nothing = (tx + ty + tz) * T(0);  // NaN for a NaN point
      for_row<T>(p.C, [&](int64_t c, auto lanes) { lanes.store(out + c, Vec<T>(nothing)); });
      return;
    }
    T w[8];
    math::trilinear_weights(tx, ty, tz, w);
    for_row<T>(p.C, [&](int64_t c, auto lanes) {
      Vec<T> sum = Vec<T>(w[0]) * lanes.load(corner[0] + c);
      MIM4D_UNROLL
      for (int k = 1; k < 8; ++k) sum = sum + Vec<T>(w[k]) * lanes.load(corner[k] + c);
      lanes.store(out + c, sum);
    });
  });
}

template <class T>
void backward_points(const VoxelSampleParams<T>& p, int64_t begin, int64_t end) {
  for_points(p, begin, end, [&](int64_t i, int64_t item, const Block<T>& b, int j) {
    T* out = p.grad_points + 3 * i;
    const T* corner[8];
    if (!corners(p, item, b, j, corner)) {
      out[0] = out[1] = out[2] = T(0);
      return;
    }
    const T* grad = p.grad + i * p.C;
    const Vec<T> tx(b.t[0][j]), ty(b.t[1][j]), tz(b.t[2][j]);
    Vec<T> sum_x(T(0)), sum_y(T(0)), sum_z(T(0));
    for_row<T>(p.C, [&](int64_t c, auto lanes) {
      Vec<T> v[8], dx, dy, dz;
      MIM4D_UNROLL
      for (int k = 0; k < 8; ++k) v[k] = lanes.load(corner[k] + c);
      math::trilinear_gradient(v, tx, ty, tz, dx, dy, dz);
      const Vec<T> g = lanes.load(grad + c);
      sum_x = sum_x + g * dx;
      sum_y = sum_y + g * dy;
      sum_z = sum_z + g * dz;
    });
    out[0] = sum(sum_x) * b.slope[0][j];
    out[1] = sum(sum_y) * b.slope[1][j];
    out[2] = sum(sum_z) * b.slope[2][j];
  });
}

// f(list, x, point, block, lane) for each point that touches the volume
template <class T, class F>
MIM4D_HD void for_listed_points(const VoxelSampleParams<T>& p, int64_t begin, int64_t end, F&& f) {
  for_points(p, begin, end, [&](int64_t i, int64_t item, const Block<T>& b, int j) {
    const int32_t x = b.low[0][j], y = b.low[1][j], z = b.low[2][j];
    if (x < -1 || x >= p.X || y < -1 || y >= p.Y || z < -1 || z >= p.Z) return;
    f(PointLists<T>::number(p, item, z, y), x, i, b, j);
  });
}

template <class T>
void count(const VoxelSampleParams<T>& p, int64_t begin, int64_t end, int64_t* counts) {
  for_listed_points(p, begin, end, [&](int64_t list, int32_t, int64_t, const Block<T>&, int) { ++counts[list]; });
}

template <class T>
void place(const VoxelSampleParams<T>& p, int64_t begin, int64_t end, int64_t* cursor, PlacedPoint<T>* placed) {
  for_listed_points(p, begin, end, [&](int64_t list, int32_t x, int64_t i, const Block<T>& b, int j) {
    placed[cursor[list]++] = {i, x, {b.t[0][j], b.t[1][j], b.t[2][j]}};
  });
}

// row += weight x gradient of the result, for the two voxels that each point of one list has in the row. In z and in y,
// the row is the lower one of the list's points (0) or the upper one (1).
template <int in_z, int in_y, class T>
MIM4D_HD void add_list(const VoxelSampleParams<T>& p, const PointLists<T>& lists, int64_t list, T* row) {
  constexpr int64_t kAhead = 12;  // points; their gradients lie anywhere in memory
  const int64_t last = lists.start[list + 1];
  for (int64_t k = lists.start[list]; k < last; ++k) {
    const T* soon = p.grad + lists.points[k + kAhead < last ? k + kAhead : k].index * p.C;
    for (int64_t c = 0; c < p.C; c += 64 / sizeof(T)) __builtin_prefetch(soon + c);
    const PlacedPoint<T>& point = lists.points[k];
    T w[8];
    math::trilinear_weights(point.t[0], point.t[1], point.t[2], w);
    const Vec<T> w0(w[4 * in_z + 2 * in_y]), w1(w[4 * in_z + 2 * in_y + 1]);
    const T* grad = p.grad + point.index * p.C;
    T* voxel = row + point.x * p.C;
    const bool in0 = point.x >= 0, in1 = point.x + 1 < p.X;
    for_row<T>(p.C, [&](int64_t c, auto lanes) {
      const Vec<T> g = lanes.load(grad + c);
      if (in0) lanes.store(voxel + c, lanes.load(voxel + c) + w0 * g);
      if (in1) lanes.store(voxel + p.C + c, lanes.load(voxel + p.C + c) + w1 * g);
    });
  }
}

// Each row is written by one thread, from four lists in a fixed order: no atomics, and the same bits for any number of
// threads. Rows are numbered with z fastest, so that the gradients of a list are still in the cache for its other rows.
template <class T>
void backward_rows(const VoxelSampleParams<T>& p, const PointLists<T>& lists, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    const int64_t z = r % p.Z, y = r / p.Z % p.Y, item = r / p.Z / p.Y;
    T* row = p.grad_volume + ((item * p.Z + z) * p.Y + y) * p.X * p.C;
    for_row<T>(p.X * p.C, [&](int64_t c, auto lanes) { lanes.store(row + c, Vec<T>(T(0))); });
    add_list<0, 0>(p, lists, lists.number(p, item, z, y), row);
    add_list<0, 1>(p, lists, lists.number(p, item, z, y - 1), row);
    add_list<1, 0>(p, lists, lists.number(p, item, z - 1, y), row);
    add_list<1, 1>(p, lists, lists.number(p, item, z - 1, y - 1), row);
  }
}

}  // namespace

extern const VoxelSampleCpu<float> voxel_sample_float = {forward<float>, backward_points<float>, count<float>,
                                                         place<float>, backward_rows<float>};
extern const VoxelSampleCpu<double> voxel_sample_double = {forward<double>, backward_points<double>, count<double>,
                                                           place<double>, backward_rows<double>};

}  // namespace mim4d::MIM4D_ISA

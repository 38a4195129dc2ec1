#pragma once
// The volume's gradient from the cotangents of the samples' features. Channels are the lanes.

#include "cpu/simd.h"
#include "math/interp.h"
#include "math/trilinear.h"
#include "sdf_march/cpu.h"

namespace mim4d::MIM4D_ISA {
namespace {

// f(list, sample) for each sample that touches the volume
template <class T, class F>
MIM4D_HD void for_listed_samples(const SdfMarchParams<T>& p, const SampleBatch<T>& batch, int64_t begin, int64_t end,
                                 F&& f) {
  for (int64_t i = begin; i < end; ++i) {
    const SampleCell<T>& at = batch.cells[i];
    if (at.x < -1 || at.x >= p.X || at.y < -1 || at.y >= p.Y || at.z < -1 || at.z >= p.Z) continue;
    f(SampleLists<T>::number(p, (batch.first_ray + i / p.S) / p.R, at.z, at.y), i);
  }
}

template <class T>
void count(const SdfMarchParams<T>& p, const SampleBatch<T>& batch, int64_t begin, int64_t end, int64_t* counts) {
  for_listed_samples(p, batch, begin, end, [&](int64_t list, int64_t) { ++counts[list]; });
}

template <class T>
void place(const SdfMarchParams<T>& p, const SampleBatch<T>& batch, int64_t begin, int64_t end, int64_t* cursor,
           PlacedSample<T>* placed) {
  for_listed_samples(p, batch, begin, end,
                     [&](int64_t list, int64_t i) { placed[cursor[list]++] = {i, batch.cells[i]}; });
}

// row += w f_bar + (dw . v) q for the two voxels that each sample of one list has in the row. In z and in y, the row is
// the lower one of the list's samples (0) or the upper one (1).
template <int in_z, int in_y, class T>
MIM4D_HD void add_list(const SdfMarchParams<T>& p, const SampleBatch<T>& batch, const SampleLists<T>& lists,
                       int64_t list, int64_t stride, T* row) {
  constexpr int64_t kAhead = 8;  // samples
  const int64_t last = lists.start[list + 1];
  for (int64_t k = lists.start[list]; k < last; ++k) {
    const T* soon = batch.rows + lists.samples[k + kAhead < last ? k + kAhead : k].index * 2 * stride;
    for (int64_t c = 0; c < 2 * stride; c += 64 / sizeof(T)) __builtin_prefetch(soon + c);
    const SampleCell<T>& at = lists.samples[k].cell;
    T w[8], w_dot[8];
    math::trilinear_weights(at.t[0], at.t[1], at.t[2], w);
    math::trilinear_weights_along(at.t[0], at.t[1], at.t[2], at.v[0], at.v[1], at.v[2], w_dot);
    constexpr int corner = 4 * in_z + 2 * in_y;
    const Vec<T> w0(w[corner]), w1(w[corner + 1]), d0(w_dot[corner]), d1(w_dot[corner + 1]);
    const T* f_bar = batch.rows + lists.samples[k].index * 2 * stride;
    const T* q = f_bar + stride;
    T* voxel = row + at.x * p.C;
    const bool in0 = at.x >= 0, in1 = at.x + 1 < p.X;
    for_row<T>(p.C, [&](int64_t c, auto lanes) {
      const auto f = lanes.load(f_bar + c), g = lanes.load(q + c);
      if (in0) lanes.store(voxel + c, lanes.load(voxel + c) + w0 * f + d0 * g);
      if (in1) lanes.store(voxel + p.C + c, lanes.load(voxel + p.C + c) + w1 * f + d1 * g);
    });
  }
}

// Each row is written by one thread, from four lists in a fixed order: no atomics, and the same bits for any number of
// threads.
template <class T>
void add_rows(const SdfMarchParams<T>& p, const SampleBatch<T>& batch, const SampleLists<T>& lists, int64_t stride,
              bool fresh, T* grad_volume, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    const int64_t z = r % p.Z, y = r / p.Z % p.Y, item = r / p.Z / p.Y;
    T* row = grad_volume + ((item * p.Z + z) * p.Y + y) * p.X * p.C;
    if (fresh) for_row<T>(p.X * p.C, [&](int64_t c, auto lanes) { lanes.store(row + c, lanes.all(T(0))); });
    add_list<0, 0>(p, batch, lists, lists.number(p, item, z, y), stride, row);
    add_list<0, 1>(p, batch, lists, lists.number(p, item, z, y - 1), stride, row);
    add_list<1, 0>(p, batch, lists, lists.number(p, item, z - 1, y), stride, row);
    add_list<1, 1>(p, batch, lists, lists.number(p, item, z - 1, y - 1), stride, row);
  }
}

}  // namespace
}  // namespace mim4d::MIM4D_ISA

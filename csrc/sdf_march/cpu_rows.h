#pragma once
// The volume's gradient from the cotangents of the samples' features. Channels are the lanes.

#include "cpu/simd.h"
#include "math/interp.h"
#include "math/trilinear.h"
#include "sdf_march/cpu.h"
#include "sdf_march/cpu_stencil.h"

namespace mim4d::MIM4D_ISA {
namespace {

// f(list, sample) for each sample that touches the volume
template <class T, class F>
MIM4D_HD void for_listed_samples(const SdfMarchParams<T>& p, const SampleBatch<T>& batch, int64_t begin, int64_t end,
                                 F&& f) {
  const int K = SampleLists<T>::taps_y(p), KZ = SampleLists<T>::taps_z(p);
  for (int64_t i = begin; i < end; ++i) {
    const SampleCell<T>& at = batch.cells[i];
    if (at.x <= -K || at.x >= p.X || at.y <= -K || at.y >= p.Y || at.z <= -KZ || at.z >= p.Z) continue;
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

// row[iz * K + iy] += w f_bar + (dw . v) q for the taps that the samples of one list have in each row; a null row is
// not to be written.
template <int K, int KZ, class T>
MIM4D_HD void add_list(const SdfMarchParams<T>& p, const SampleBatch<T>& batch, const SampleLists<T>& lists,
                       int64_t list, int64_t stride, T* const (&row)[KZ * K]) {
  constexpr int64_t kAhead = 8;  // samples
  const auto taps = [&]<int taps>(std::integral_constant<int, taps>, int32_t first, T t, int64_t size) {
    return cell_taps<taps>(math::LinearAxis<T>{T(first + taps / 2 - 1), t, T(1), T(1)}, T(size), p.mode, p.padding);
  };
  constexpr std::integral_constant<int, K> in_plane{};
  constexpr std::integral_constant<int, KZ> in_z{};
  const int64_t last = lists.start[list + 1];
  for (int64_t i = lists.start[list]; i < last; ++i) {
    const T* soon = batch.rows + lists.samples[i + kAhead < last ? i + kAhead : i].index * 2 * stride;
    for (int64_t c = 0; c < 2 * stride; c += 64 / sizeof(T)) __builtin_prefetch(soon + c);
    const SampleCell<T>& at = lists.samples[i].cell;
    const auto x = taps(in_plane, at.x, at.t[0], p.X), y = taps(in_plane, at.y, at.t[1], p.Y);
    const auto z = taps(in_z, at.z, at.t[2], p.Z);
    T weight[KZ * K][K], dot[KZ * K][K];
    MIM4D_UNROLL
    for (int k = 0; k < KZ * K; ++k) {
      const int iy = k % K, iz = k / K;
      const T w = y.w[iy] * z.w[iz], along_x = at.v[0] * w;
      const T along = at.v[1] * y.d[iy] * z.w[iz] + at.v[2] * y.w[iy] * z.d[iz];
      MIM4D_UNROLL
      for (int ix = 0; ix < K; ++ix) {
        weight[k][ix] = x.w[ix] * w;
        dot[k][ix] = x.d[ix] * along_x + x.w[ix] * along;
      }
    }
    const T* const f_bar = batch.rows + lists.samples[i].index * 2 * stride;
    const T* const q = f_bar + stride;
    for_row<T>(p.C, [&](int64_t c, auto lanes) {
      const auto f = lanes.load(f_bar + c), g = lanes.load(q + c);
      MIM4D_UNROLL
      for (int k = 0; k < KZ * K; ++k) {
        if (!row[k]) continue;
        MIM4D_UNROLL
        for (int ix = 0; ix < K; ++ix) {
          if (!inside(at.x + ix, p.X)) continue;
          T* const voxel = row[k] + (at.x + ix) * p.C + c;
          lanes.store(voxel, lanes.load(voxel) + Vec<T>(weight[k][ix]) * f + Vec<T>(dot[k][ix]) * g);
        }
      }
    });
  }
}

// Slices are all voxels of one (b, y). Each is written by one thread, from its lists in a fixed order: no atomics, and
// the same bits for any number of threads.
template <int K, int KZ, class T>
void add_slices(const SdfMarchParams<T>& p, const SampleBatch<T>& batch, const SampleLists<T>& lists, int64_t stride,
                bool fresh, T* grad_volume, int64_t begin, int64_t end) {
  for (int64_t slice = begin; slice < end;) {
    const int64_t item = slice / p.Y, from = slice % p.Y, to = from + end - slice < p.Y ? from + end - slice : p.Y;
    const auto row = [&](int64_t z, int64_t y) { return grad_volume + ((item * p.Z + z) * p.Y + y) * p.X * p.C; };
    int64_t cleared = from;
    for (int64_t y = from - (K - 1); y < to; ++y) {  // of the first taps
      for (; fresh && cleared < to && cleared < y + K; ++cleared)
        for (int64_t z = 0; z < p.Z; ++z) {
          T* const at = row(z, cleared);
          for_row<T>(p.X * p.C, [&](int64_t c, auto lanes) { lanes.store(at + c, lanes.all(T(0))); });
        }
      for (int64_t z = 1 - KZ; z < p.Z; ++z) {
        T* rows[KZ * K];
        for (int k = 0; k < KZ * K; ++k) {
          const int64_t at_y = y + k % K, at_z = z + k / K;
          rows[k] = at_y >= from && at_y < to && at_z >= 0 && at_z < p.Z ? row(at_z, at_y) : nullptr;
        }
        add_list<K, KZ>(p, batch, lists, lists.number(p, item, z, y), stride, rows);
      }
    }
    slice += to - from;
  }
}

template <class T>
void add_slices(const SdfMarchParams<T>& p, const SampleBatch<T>& batch, const SampleLists<T>& lists, int64_t stride,
                bool fresh, T* grad_volume, int64_t begin, int64_t end) {
  switch (p.mode) {
    case Mode::trilinear:
    case Mode::smoothstep:
      return add_slices<2, 2>(p, batch, lists, stride, fresh, grad_volume, begin, end);
    case Mode::bicubic:
      return add_slices<4, 2>(p, batch, lists, stride, fresh, grad_volume, begin, end);
    case Mode::tricubic:
      return add_slices<4, 4>(p, batch, lists, stride, fresh, grad_volume, begin, end);
  }
}

}  // namespace
}  // namespace mim4d::MIM4D_ISA

#pragma once
// What the CUDA kernels share: the taps of a point, loops over the voxels that it reads, and which thread takes which
// point and which channels.

#include <algorithm>
#include <array>

#include "cuda/launch.cuh"
#include "cuda/pack.cuh"
#include "cuda/reduce.cuh"
#include "math/interp.h"
#include "voxel_sample/cuda.h"

namespace mim4d {
namespace {

constexpr int kThreads = 256;  // in a block

// The taps of one point: K = 2, linear axes; K = 4, cubic ones, but the z of bicubic has two taps that weigh nothing.
template <class T, int K>
struct Stencil {
  math::Taps<T, K> x, y, z;
  unsigned bits;   // what in() and free() tell, in one register
  int64_t offset;  // of the channels of the first tap, in the volume or not

  // Bit k: tap k of the axis d lies in the volume.
  __device__ unsigned in(int d) const { return bits >> 4 * d & 15u; }
  // False: the position is clamped along the axis d, and nothing depends on the coordinate.
  __device__ bool free(int d) const { return bits >> (12 + d) & 1u; }
  __device__ bool touches() const { return in(0) && in(1) && in(2); }
  __device__ T nothing() const { return x.nothing + y.nothing + z.nothing; }
};

template <class T, int K>
__device__ __forceinline__ unsigned tap_bits(const math::Taps<T, K>& taps) {
  return ((1u << static_cast<int>(taps.to)) - 1) & ~((1u << static_cast<int>(taps.from)) - 1);
}

template <class T>
__device__ __forceinline__ math::Taps<T, 4> padded(const math::Taps<T, 2>& taps) {
  return {taps.first,
          taps.from,
          taps.to,
          {taps.w[0], taps.w[1], T(0), T(0)},
          {taps.d[0], taps.d[1], T(0), T(0)},
          {taps.dd[0], taps.dd[1], T(0), T(0)},
          taps.nothing,
          taps.free};
}

template <int K, class S, class T>
__device__ __forceinline__ Stencil<T, K> locate(const VoxelSampleParams<S, T>& p, int64_t item, int64_t point) {
  const T* at = p.points + 3 * point;
  const T size[3] = {static_cast<T>(p.X), static_cast<T>(p.Y), static_cast<T>(p.Z)};
  const bool smooth = p.mode == Mode::smoothstep;
  Stencil<T, K> s;
  s.x = math::axis_taps<K>(at[0], size[0], smooth, p.align, p.padding);
  s.y = math::axis_taps<K>(at[1], size[1], smooth, p.align, p.padding);
  if (K == 4 && p.mode == Mode::bicubic) {
    if constexpr (K == 4) s.z = padded(math::axis_taps<2>(at[2], size[2], false, p.align, p.padding));
  } else {
    s.z = math::axis_taps<K>(at[2], size[2], smooth, p.align, p.padding);
  }
  s.bits = tap_bits(s.x) | tap_bits(s.y) << 4 | tap_bits(s.z) << 8 | unsigned(s.x.free != T(0)) << 12 |
           unsigned(s.y.free != T(0)) << 13 | unsigned(s.z.free != T(0)) << 14;
  const int64_t first[3] = {static_cast<int64_t>(s.x.first), static_cast<int64_t>(s.y.first),
                            static_cast<int64_t>(s.z.first)};
  s.offset = (((item * p.Z + first[2]) * p.Y + first[1]) * p.X + first[0]) * p.C;
  return s;
}

// w[i], for w in registers
template <int K, class T>
__device__ __forceinline__ T pick(const T (&w)[K], int i) {
  T x = w[0];
#pragma unroll
  for (int k = 1; k < K; ++k) x = i == k ? w[k] : x;
  return x;
}

// f(z, rows, offset) for the slices of z: the slice as the one tap of an axis; bit k of `rows`: row k lies in the
// volume; where the row 0 begins. Of K = 2 both slices, so that all loads may be under way at once.
template <int K, class S, class T, class F>
__device__ __forceinline__ void for_slices(const VoxelSampleParams<S, T>& p, const Stencil<T, K>& s, F&& f) {
  const int64_t dz = p.Y * p.X * p.C;
  if constexpr (K == 2) {
#pragma unroll
    for (int iz = 0; iz < K; ++iz)
      f(math::Taps<T, 1>{T(0), T(0), T(1), {s.z.w[iz]}, {s.z.d[iz]}, {s.z.dd[iz]}, T(0), T(1)},
        s.in(2) >> iz & 1u ? s.in(1) : 0u, s.offset + iz * dz);
  } else {
#pragma unroll 1
    for (int iz = 0; iz < K; ++iz)
      if (s.in(2) >> iz & 1u)
        f(math::Taps<T, 1>{T(0), T(0), T(1), {pick(s.z.w, iz)}, {pick(s.z.d, iz)}, {pick(s.z.dd, iz)}, T(0), T(1)},
          s.in(1), s.offset + iz * dz);
  }
}

// f(iy, where the row begins, which of its taps lie in the volume) for the rows of a slice
template <int K, class S, class T, class F>
__device__ __forceinline__ void for_rows(const VoxelSampleParams<S, T>& p, const Stencil<T, K>& s, unsigned rows,
                                         int64_t offset, F&& f) {
#pragma unroll
  for (int iy = 0; iy < K; ++iy, offset += p.X * p.C) f(iy, offset, rows >> iy & 1u ? s.in(0) : 0u);
}

// V channels of each tap of a row, summed with the weights and with their derivatives
template <int K, int V, class S, class T>
__device__ __forceinline__ void along_x(const Stencil<T, K>& s, const S* row, int64_t C, unsigned in, T (&w)[V],
                                        T (&d)[V]) {
  T v[K][V];
#pragma unroll
  for (int ix = 0; ix < K; ++ix, row += C) load_if<V>(in >> ix & 1u, row, v[ix]);
#pragma unroll
  for (int i = 0; i < V; ++i) {
    w[i] = s.x.w[0] * v[0][i], d[i] = s.x.d[0] * v[0][i];
#pragma unroll
    for (int ix = 1; ix < K; ++ix) w[i] += s.x.w[ix] * v[ix][i], d[i] += s.x.d[ix] * v[ix][i];
  }
}

// x[i][d] = p[3 i + d], and the other way round
template <int V, class S, class T>
__device__ __forceinline__ void load_triples(const S* p, T (&x)[V][3]) {
  T flat[3][V];
#pragma unroll
  for (int k = 0; k < 3; ++k) load_pack(p + k * V, flat[k]);
#pragma unroll
  for (int k = 0; k < 3 * V; ++k) x[k / 3][k % 3] = flat[k / V][k % V];
}

template <int V, class S, class T>
__device__ __forceinline__ void store_triples(S* p, const T (&x)[V][3]) {
  T flat[3][V];
#pragma unroll
  for (int k = 0; k < 3 * V; ++k) flat[k / V][k % V] = x[k / 3][k % 3];
#pragma unroll
  for (int k = 0; k < 3; ++k) store_pack(p + k * V, flat[k]);
}

// Which point and which channels a thread takes: 2^lane_bits threads a point, the points of one batch item along the
// grid's x.
struct Place {
  int64_t point;  // in [0, N), or beyond: the last warp is filled up
  int lane, lanes;
};

__device__ __forceinline__ Place place(int lane_bits) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int lanes = 1 << lane_bits;
  return {thread >> lane_bits, static_cast<int>(threadIdx.x) & (lanes - 1), lanes};
}

// grad_points of one point, from what its threads have summed
template <int K, class S, class T>
__device__ __forceinline__ void store_slope(const VoxelSampleParams<S, T>& p, const Place& at, const Stencil<T, K>& s,
                                            int64_t point, const T (&slope)[3]) {
#pragma unroll
  for (int d = 0; d < 3; ++d) {
    const T total = group_sum(slope[d], at.lanes);
    // Not 0 times what the voxels are, which may be infinite.
    if (at.lane == 0 && at.point < p.N) p.grad_points[3 * point + d] = s.free(d) && s.touches() ? total : T(0);
  }
}

// ---- host

template <class S, class T>
bool packs_fit(const VoxelSampleParams<S, T>& p, const void* more = nullptr) {
  constexpr uintptr_t align = sizeof(T) * kPack<S>;
  const std::array<const void*, 9> tensors = {
      p.volume, p.out, p.grad, p.grad_volume, p.jacobian, p.grad_jacobian, p.grad_grad_volume, p.grad_grad, more};
  return p.C % kPack<S> == 0 && std::all_of(tensors.begin(), tensors.end(), [](const void* tensor) {
           return reinterpret_cast<uintptr_t>(tensor) % align == 0;
         });
}

template <class P>
cudaError_t launch_points(void (*kernel)(P, int), const P& p, int pack, cudaStream_t stream) {
  const int bits = lane_bits(p.C, pack);
  // The grid's limit of 2^31 - 1 blocks in x is 1.7e10 points or more, whose coordinates alone fill 200 GB.
  const int64_t blocks = ((p.N << bits) + kThreads - 1) / kThreads;
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(std::min<int64_t>(p.B, 65535)));
  return launch(kernel, grid, dim3(kThreads), 0, stream, p, bits);
}

// The instantiation of a kernel template <..., K, V> for a call.
#define MIM4D_LAUNCH_POINTS(kernel, S, T, p, stream)                                                             \
  (packs_fit(p)                                                                                                  \
       ? launch_points((p).cubic() ? kernel<S, T, 4, kPack<S>> : kernel<S, T, 2, kPack<S>>, p, kPack<S>, stream) \
       : launch_points((p).cubic() ? kernel<S, T, 4, 1> : kernel<S, T, 2, 1>, p, 1, stream))

// Their entries: of one dtype, V the channels of its packs.
#define MIM4D_ENTRY(name, S, T, K, V)                                                      \
  KernelEntry {                                                                            \
    "voxel_sample_" #name "<" #S ", " #K ", " #V ">",                                      \
        reinterpret_cast<const void*>(&voxel_sample_##name##_kernel<S, T, K, V>), kThreads \
  }
#define MIM4D_ENTRIES(name, S, T, V)                                                           \
  MIM4D_ENTRY(name, S, T, 2, V), MIM4D_ENTRY(name, S, T, 2, 1), MIM4D_ENTRY(name, S, T, 4, V), \
      MIM4D_ENTRY(name, S, T, 4, 1)

}  // namespace
}  // namespace mim4d

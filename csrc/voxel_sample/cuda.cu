// Trilinear sampling on a GPU. A group of 1 to 32 threads takes one point; each thread takes V neighbouring channels at
// a time, so that a group reads whole rows of channels by wide loads.

#include <algorithm>
#include <iterator>

#include "cuda/launch.cuh"
#include "cuda/pack.cuh"
#include "cuda/reduce.cuh"
#include "math/interp.h"
#include "voxel_sample/cuda.h"

namespace mim4d {
namespace {

constexpr int kThreads = 256;  // in a block; __launch_bounds__ asks for 3 or 2 blocks at once: 80 or 128 registers

// The eight taps of one point.
template <class T>
struct Taps {
  int64_t first;     // offset of the lower corner's channels, inside of the volume or not
  unsigned inside;   // bit k: tap k lies in the volume
  T t[3], slope[3];  // per axis x, y, z
};

template <class S, class T>
__device__ __forceinline__ Taps<T> locate(const VoxelSampleParams<S, T>& p, int64_t item, int64_t point) {
  const int64_t size[3] = {p.X, p.Y, p.Z};
  Taps<T> taps;
  int64_t low[3];
  unsigned in[3];  // bit 0: the lower cell, bit 1: the upper one
#pragma unroll
  for (int d = 0; d < 3; ++d) {
    const auto axis = math::linear_axis(p.points[3 * point + d], static_cast<T>(size[d]), p.align, p.padding);
    low[d] = static_cast<int64_t>(axis.low);
    in[d] = (low[d] >= 0 && low[d] < size[d] ? 1u : 0u) | (low[d] + 1 >= 0 && low[d] + 1 < size[d] ? 2u : 0u);
    taps.t[d] = axis.t;
    taps.slope[d] = axis.slope;
  }
  taps.first = (((item * p.Z + low[2]) * p.Y + low[1]) * p.X + low[0]) * p.C;
  taps.inside = 0;
#pragma unroll
  for (int k = 0; k < 8; ++k) taps.inside |= (in[0] >> (k & 1) & in[1] >> (k >> 1 & 1) & in[2] >> (k >> 2) & 1u) << k;
  return taps;
}

template <class S, class T>
__device__ __forceinline__ int64_t tap_offset(const VoxelSampleParams<S, T>& p, int k) {
  return ((k & 1) + ((k >> 1 & 1) + (k >> 2) * p.Y) * p.X) * p.C;
}

// V channels of the eight taps; 0 outside.
template <int V, class S, class T>
__device__ __forceinline__ void load_taps(const VoxelSampleParams<S, T>& p, const Taps<T>& taps, int64_t channel,
                                          T (&v)[8][V]) {
#pragma unroll
  for (int k = 0; k < 8; ++k) {
    if (taps.inside >> k & 1u) {
      load_pack(p.volume + taps.first + tap_offset(p, k) + channel, v[k]);
    } else {
#pragma unroll
      for (int i = 0; i < V; ++i) v[k][i] = T(0);
    }
  }
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

template <class S, class T, int V>
__global__ void __launch_bounds__(kThreads, 3) voxel_sample_forward_kernel(VoxelSampleParams<S, T> p, int lane_bits) {
  const Place at = place(lane_bits);
  if (at.point >= p.N) return;
  for (int64_t item = blockIdx.y; item < p.B; item += gridDim.y) {
    const int64_t point = item * p.N + at.point;
    const Taps<T> taps = locate(p, item, point);
    T w[8];
    math::trilinear_weights(taps.t[0], taps.t[1], taps.t[2], w);
    const T nothing = (taps.t[0] + taps.t[1] + taps.t[2]) * T(0);  // NaN for a NaN point
    for (int64_t c = at.lane * V; c < p.C; c += at.lanes * V) {
      T v[8][V], sum[V];
      load_taps<V>(p, taps, c, v);
#pragma unroll
      for (int i = 0; i < V; ++i) {
        sum[i] = nothing;
#pragma unroll
        for (int k = 0; k < 8; ++k) sum[i] += w[k] * v[k][i];
      }
      store_pack(p.out + point * p.C + c, sum);
    }
  }
}

// grad_volume += weights of the taps x g, for V channels
template <int V, class S, class T>
__device__ __forceinline__ void add_to_taps(const VoxelSampleParams<S, T>& p, const Taps<T>& taps, int64_t channel,
                                            const T (&g)[V]) {
  T w[8];
  math::trilinear_weights(taps.t[0], taps.t[1], taps.t[2], w);
#pragma unroll
  for (int k = 0; k < 8; ++k) {
    if (!(taps.inside >> k & 1u)) continue;
    T add[V];
#pragma unroll
    for (int i = 0; i < V; ++i) add[i] = w[k] * g[i];
    atomic_add_pack(p.grad_volume + taps.first + tap_offset(p, k) + channel, add);
  }
}

// sum += derivative of (g . result) by the position, for V channels
template <int V, class S, class T>
__device__ __forceinline__ void add_derivative(const VoxelSampleParams<S, T>& p, const Taps<T>& taps, int64_t channel,
                                               const T (&g)[V], T (&sum)[3]) {
  T v[8][V];
  load_taps<V>(p, taps, channel, v);
#pragma unroll
  for (int i = 0; i < V; ++i) {
    const T tap[8] = {v[0][i], v[1][i], v[2][i], v[3][i], v[4][i], v[5][i], v[6][i], v[7][i]};
    T d[3];
    math::trilinear_gradient(tap, taps.t[0], taps.t[1], taps.t[2], d[0], d[1], d[2]);
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) sum[axis] += g[i] * d[axis];
  }
}

template <class S, class T, int V>
__global__ void __launch_bounds__(kThreads, 2) voxel_sample_backward_kernel(VoxelSampleParams<S, T> p, int lane_bits) {
  const Place at = place(lane_bits);
  for (int64_t item = blockIdx.y; item < p.B; item += gridDim.y) {
    const int64_t point = item * p.N + at.point;
    T sum[3] = {T(0), T(0), T(0)};
    Taps<T> taps{};
    if (at.point < p.N) taps = locate(p, item, point);  // no early exit: all threads of a warp join its sums
    if (taps.inside) {
      for (int64_t c = at.lane * V; c < p.C; c += at.lanes * V) {
        T g[V];
        load_pack(p.grad + point * p.C + c, g);
        if (p.grad_volume) add_to_taps(p, taps, c, g);
        if (p.grad_points) add_derivative(p, taps, c, g, sum);
      }
    }
    if (p.grad_points) {
#pragma unroll
      for (int axis = 0; axis < 3; ++axis) {
        const T total = group_sum(sum[axis], at.lanes) * taps.slope[axis];
        if (at.lane == 0 && at.point < p.N) p.grad_points[3 * point + axis] = total;
      }
    }
  }
}

// Channels of a pack: 16 bytes, but no more than 4 channels, so that the taps of a thread stay in registers.
template <class S>
constexpr int kPack = 16 / sizeof(S) < 4 ? 16 / sizeof(S) : 4;

template <class S, class T>
bool packs_fit(const VoxelSampleParams<S, T>& p) {
  constexpr uintptr_t align = sizeof(T) * kPack<S>;
  const void* tensors[] = {p.volume, p.out, p.grad, p.grad_volume};
  return p.C % kPack<S> == 0 && std::all_of(std::begin(tensors), std::end(tensors), [](const void* tensor) {
           return reinterpret_cast<uintptr_t>(tensor) % align == 0;
         });
}

template <class S, class T>
cudaError_t launch_points(void (*kernel)(VoxelSampleParams<S, T>, int), const VoxelSampleParams<S, T>& p, int pack,
                          cudaStream_t stream) {
  const int64_t packs = (p.C + pack - 1) / pack;
  int lane_bits = 0;  // 2^lane_bits threads take a point: enough for all of its channels at once, at most a warp
  while (lane_bits < 5 && 1 << lane_bits < packs) ++lane_bits;
  // The grid's limit of 2^31 - 1 blocks in x is 1.7e10 points or more, whose coordinates alone fill 200 GB.
  const int64_t blocks = ((p.N << lane_bits) + kThreads - 1) / kThreads;
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(std::min<int64_t>(p.B, 65535)));
  return launch(kernel, grid, dim3(kThreads), 0, stream, p, lane_bits);
}

}  // namespace

template <class S, class T>
cudaError_t launch_voxel_sample_forward(const VoxelSampleParams<S, T>& p, cudaStream_t stream) {
  return packs_fit(p) ? launch_points(voxel_sample_forward_kernel<S, T, kPack<S>>, p, kPack<S>, stream)
                      : launch_points(voxel_sample_forward_kernel<S, T, 1>, p, 1, stream);
}

template <class S, class T>
cudaError_t launch_voxel_sample_backward(const VoxelSampleParams<S, T>& p, cudaStream_t stream) {
  return packs_fit(p) ? launch_points(voxel_sample_backward_kernel<S, T, kPack<S>>, p, kPack<S>, stream)
                      : launch_points(voxel_sample_backward_kernel<S, T, 1>, p, 1, stream);
}

#define MIM4D_INSTANTIATE(S, T)                                                                            \
  template cudaError_t launch_voxel_sample_forward(const VoxelSampleParams<S, T>& p, cudaStream_t stream); \
  template cudaError_t launch_voxel_sample_backward(const VoxelSampleParams<S, T>& p, cudaStream_t stream);
MIM4D_INSTANTIATE(float, float)
MIM4D_INSTANTIATE(double, double)
MIM4D_INSTANTIATE(__half, float)
MIM4D_INSTANTIATE(__nv_bfloat16, float)
#undef MIM4D_INSTANTIATE

#define MIM4D_KERNELS(S, T, V)                                                                             \
  {"voxel_sample_forward<" #S ", " #V ">", (const void*)voxel_sample_forward_kernel<S, T, V>, kThreads}, { \
    "voxel_sample_backward<" #S ", " #V ">", (const void*)voxel_sample_backward_kernel<S, T, V>, kThreads  \
  }
std::span<const KernelEntry> voxel_sample_kernels() {
  static const KernelEntry kernels[] = {MIM4D_KERNELS(float, float, 4),         MIM4D_KERNELS(float, float, 1),
                                        MIM4D_KERNELS(double, double, 2),       MIM4D_KERNELS(double, double, 1),
                                        MIM4D_KERNELS(__half, float, 4),        MIM4D_KERNELS(__half, float, 1),
                                        MIM4D_KERNELS(__nv_bfloat16, float, 4), MIM4D_KERNELS(__nv_bfloat16, float, 1)};
  return kernels;
}
#undef MIM4D_KERNELS

}  // namespace mim4d

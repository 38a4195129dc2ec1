// Pooling on a GPU. A warp takes one cell and sums the points that fall into it, or one pixel and gathers from the
// cells of its ray: no atomics, and one order of every sum. Its threads share out 32 points or bins, whose numbers they
// load at once and hand round, and then the channels: 2^lane_bits threads with V neighbouring channels each take a
// point, so that few channels leave threads for several points at a time.

#include <algorithm>
#include <array>

#include "cuda/launch.cuh"
#include "cuda/pack.cuh"
#include "cuda/reduce.cuh"
#include "cuda/search.cuh"
#include "voxel_pool/cuda.h"

namespace mim4d {
namespace {

constexpr int kThreads = 256;  // in a block
constexpr int kWarps = kThreads / 32;
constexpr unsigned kAll = 0xffffffffu;

// ---- the index

__global__ void __launch_bounds__(kThreads) voxel_pool_index_keys_kernel(PoolIndexParams p) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= p.count) return;
  const int32_t cell = p.cells[i];
  const bool kept = static_cast<uint32_t>(cell) < static_cast<uint32_t>(p.volume);
  const uint32_t item = static_cast<uint32_t>(i) / static_cast<uint32_t>(p.points_of_item);
  p.key[i] = static_cast<int32_t>(kept ? item * p.volume + cell : p.rows);
}

__global__ void __launch_bounds__(kThreads) voxel_pool_index_starts_kernel(PoolIndexParams p) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < p.count) p.points[i] = static_cast<int32_t>(p.order[i]);
  if (i > p.rows) return;
  p.starts[i] = static_cast<int32_t>(first_not_below(p.sorted, p.count, i));
}

// ---- pooling

template <class S, class T, int V>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 3 : 4)
    voxel_pool_forward_kernel(VoxelPoolParams<S, T> p, int lane_bits) {
  const int64_t cell = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (cell >= p.rows()) return;  // a whole warp
  const int64_t first = max(p.starts[cell], 0), last = min(static_cast<int64_t>(p.starts[cell + 1]), p.count());
  const int lane = static_cast<int>(threadIdx.x) % 32, lanes = 1 << lane_bits, parts = 32 >> lane_bits;
  const int64_t chunk = lanes * V, channels = (p.C + chunk - 1) & ~(chunk - 1);  // all lanes stay, to hand round
  for (int64_t c = (lane & (lanes - 1)) * V; c < channels; c += chunk) {
    T sum[V];
#pragma unroll
    for (int i = 0; i < V; ++i) sum[i] = T(0);
    for (int64_t base = first; base < last; base += 32) {
      T weight = T(0);
      int32_t pixel = -1;
      if (base + lane < last) {
        const int32_t point = p.points[base + lane];
        if (p.has(point)) weight = p.depth[point], pixel = static_cast<int32_t>(p.pixel(point));
      }
      const int n = static_cast<int>(min(last - base, int64_t{32}));
#pragma unroll 4
      for (int j = 0; j < n; j += parts) {
        const int mine = j + (lane >> lane_bits);  // at most 31: parts divides 32
        const int32_t from = __shfl_sync(kAll, pixel, mine);
        const T w = __shfl_sync(kAll, weight, mine);
        if (from < 0 || c >= p.C) continue;
        T f[V];
        load_pack(p.features + from * p.C + c, f);
#pragma unroll
        for (int i = 0; i < V; ++i) sum[i] += w * f[i];
      }
    }
    sum_apart(sum, lanes);  // of the threads that have the same channels
    if (lane < lanes && c < p.C) store_pack(p.out + cell * p.C + c, sum);
  }
}

constexpr int kBins = 4;  // whose rows are on their way together

template <class S, class T, int V>
__global__ void __launch_bounds__(kThreads, 3) voxel_pool_backward_kernel(VoxelPoolParams<S, T> p, int lane_bits) {
  const int64_t pixel = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (pixel >= p.pixels()) return;  // a whole warp
  const int64_t camera = pixel / p.area, first = camera * p.D * p.area + (pixel - camera * p.area);
  const S* volume = p.grad + camera / p.N * p.volume * p.C;
  const int lane = static_cast<int>(threadIdx.x) % 32, lanes = 1 << lane_bits, parts = 32 >> lane_bits;
  const int64_t chunk = lanes * V, channels = p.C ? (p.C + chunk - 1) & ~(chunk - 1) : 1;  // no channel: zeros
  for (int64_t c = (lane & (lanes - 1)) * V; c < channels; c += chunk) {
    T feature[V], sum[V];
#pragma unroll
    for (int i = 0; i < V; ++i) feature[i] = sum[i] = T(0);
    if (p.grad_depth && c < p.C) load_pack(p.features + pixel * p.C + c, feature);
    for (int64_t base = 0; base < p.D; base += 32) {
      const int64_t point = first + (base + lane) * p.area;
      T weight = T(0), mine = T(0);  // of this thread's bin: its depth weight, and the gradient of it
      int32_t cell = -1;
      if (base + lane < p.D) {
        cell = p.cells[point];
        if (!p.keeps(cell)) cell = -1;
        if (cell >= 0) weight = p.depth[point];
      }
      const int n = static_cast<int>(min(p.D - base, int64_t{32}));
      for (int j = 0; j < n; j += kBins * parts) {
        T g[kBins][V], w[kBins];
        unsigned kept = 0;
#pragma unroll
        for (int k = 0; k < kBins; ++k) {
          const int bin = j + k * parts + (lane >> lane_bits);
          const int32_t from = __shfl_sync(kAll, cell, bin & 31);
          w[k] = __shfl_sync(kAll, weight, bin & 31);
          const bool read = bin < n && from >= 0 && c < p.C;
          load_if(read, volume + from * p.C + c, g[k]);
          kept |= static_cast<unsigned>(read) << k;
        }
#pragma unroll
        for (int k = 0; k < kBins; ++k) {
          T dot = T(0);
#pragma unroll
          for (int i = 0; i < V; ++i) {
            sum[i] += w[k] * g[k][i];  // a dropped bin has the weight 0
            dot += feature[i] * g[k][i];
          }
          if (p.grad_depth) {  // the bins at .. at + parts - 1, to their threads
            const int at = j + k * parts;
            dot = group_sum(kept >> k & 1u ? dot : T(0), lanes);  // of a dropped bin 0, whatever the feature is
            const T found = __shfl_sync(kAll, dot, (lane - at) << lane_bits & 31);
            if (lane >= at && lane < at + parts) mine = found;
          }
        }
      }
      if (p.grad_depth && base + lane < p.D) p.grad_depth[point] = c < chunk ? mine : p.grad_depth[point] + mine;
    }
    sum_apart(sum, lanes);
    if (p.grad_features && lane < lanes && c < p.C) store_pack(p.grad_features + pixel * p.C + c, sum);
  }
}

// ---- host

template <class S, class T>
bool packs_fit(const VoxelPoolParams<S, T>& p) {
  const std::array<const void*, 4> rows = {p.features, p.out, p.grad, p.grad_features};
  return p.C % kPack<S> == 0 && std::all_of(rows.begin(), rows.end(), [](const void* row) {
           return reinterpret_cast<uintptr_t>(row) % (sizeof(S) * kPack<S>) == 0;
         });
}

template <class P>
cudaError_t launch_warps(void (*kernel)(P, int), const P& p, int64_t warps, int pack, cudaStream_t stream) {
  return launch(kernel, dim3(static_cast<unsigned>((warps + kWarps - 1) / kWarps)), dim3(kThreads), 0, stream, p,
                lane_bits(p.C, pack));
}

unsigned blocks_for(int64_t threads) { return static_cast<unsigned>((threads + kThreads - 1) / kThreads); }

}  // namespace

cudaError_t launch_pool_index_keys(const PoolIndexParams& p, cudaStream_t stream) {
  return launch(voxel_pool_index_keys_kernel, dim3(blocks_for(p.count)), dim3(kThreads), 0, stream, p);
}

cudaError_t launch_pool_index_starts(const PoolIndexParams& p, cudaStream_t stream) {
  return launch(voxel_pool_index_starts_kernel, dim3(blocks_for(std::max(p.count, p.rows + 1))), dim3(kThreads), 0,
                stream, p);
}

template <class S, class T>
cudaError_t launch_voxel_pool_forward(const VoxelPoolParams<S, T>& p, cudaStream_t stream) {
  return packs_fit(p) ? launch_warps(voxel_pool_forward_kernel<S, T, kPack<S>>, p, p.rows(), kPack<S>, stream)
                      : launch_warps(voxel_pool_forward_kernel<S, T, 1>, p, p.rows(), 1, stream);
}

template <class S, class T>
cudaError_t launch_voxel_pool_backward(const VoxelPoolParams<S, T>& p, cudaStream_t stream) {
  return packs_fit(p) ? launch_warps(voxel_pool_backward_kernel<S, T, kPack<S>>, p, p.pixels(), kPack<S>, stream)
                      : launch_warps(voxel_pool_backward_kernel<S, T, 1>, p, p.pixels(), 1, stream);
}

#define MIM4D_INSTANTIATE(S, T)                                                               \
  template cudaError_t launch_voxel_pool_forward(const VoxelPoolParams<S, T>&, cudaStream_t); \
  template cudaError_t launch_voxel_pool_backward(const VoxelPoolParams<S, T>&, cudaStream_t);
MIM4D_INSTANTIATE(float, float)
MIM4D_INSTANTIATE(double, double)
MIM4D_INSTANTIATE(__half, float)
MIM4D_INSTANTIATE(__nv_bfloat16, float)
#undef MIM4D_INSTANTIATE

#define MIM4D_KERNEL(name, ...) \
  KernelEntry { name, reinterpret_cast<const void*>(&__VA_ARGS__), kThreads }
#define MIM4D_KERNELS(S, T, V)                                                                  \
  MIM4D_KERNEL("voxel_pool_forward<" #S ", " #V ">", voxel_pool_forward_kernel<S, T, V>),       \
      MIM4D_KERNEL("voxel_pool_forward<" #S ", 1>", voxel_pool_forward_kernel<S, T, 1>),        \
      MIM4D_KERNEL("voxel_pool_backward<" #S ", " #V ">", voxel_pool_backward_kernel<S, T, V>), \
      MIM4D_KERNEL("voxel_pool_backward<" #S ", 1>", voxel_pool_backward_kernel<S, T, 1>)

std::span<const KernelEntry> voxel_pool_kernels() {
  static const KernelEntry kernels[] = {
      MIM4D_KERNEL("voxel_pool_index_keys", voxel_pool_index_keys_kernel),
      MIM4D_KERNEL("voxel_pool_index_starts", voxel_pool_index_starts_kernel),
      MIM4D_KERNELS(float, float, 4),
      MIM4D_KERNELS(double, double, 2),
      MIM4D_KERNELS(__half, float, 4),
      MIM4D_KERNELS(__nv_bfloat16, float, 4),
  };
  return kernels;
}

}  // namespace mim4d

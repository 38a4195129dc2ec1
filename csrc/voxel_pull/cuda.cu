// Voxels that look themselves up in the images, on a GPU. Forward, 2^lane_bits threads take one voxel: they walk its
// cameras and levels together, keep the sum of V neighbouring channels each in registers and write it once. Backward,
// nothing is added by atomics: each pixel gathers from the views that touch it.

#include "cuda/launch.cuh"
#include "cuda/pack.cuh"
#include "cuda/reduce.cuh"
#include "cuda/search.cuh"
#include "math/pull.h"
#include "voxel_pull/cuda.h"

namespace mim4d {
namespace {

constexpr int kThreads = 256;  // in a block
constexpr int kWarps = kThreads / 32;
constexpr unsigned kAll = 0xffffffffu;
constexpr int kBins = 4;  // of depth that a thread sums: a warp takes 128 at a time

template <class T>
struct View {
  T u, v, d;
  bool seen;
};

template <class S, class T>
__device__ __forceinline__ View<T> view_of(const VoxelPullCudaParams<S, T>& p, int64_t view) {
  const T* at = p.uvd + 3 * view;
  return {at[0], at[1], at[2], sees(at[0], at[1], at[2])};
}

template <class S, class T>
__device__ __forceinline__ math::PullTaps<T> taps_of(const VoxelPullCudaParams<S, T>& p, const View<T>& view, int64_t H,
                                                     int64_t W) {
  return math::pull_taps(view.u, view.v, view.d, static_cast<T>(W), static_cast<T>(H), static_cast<T>(p.D));
}

// Where a camera's map has the first tap of a place, in it or not.
template <class T>
__device__ __forceinline__ int64_t first_pixel(const math::PullTaps<T>& at, int64_t W) {
  return static_cast<int64_t>(at.y.first) * W + static_cast<int64_t>(at.x.first);
}

template <class S, class T, int V>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 2 : 4)
    voxel_pull_forward_kernel(const __grid_constant__ VoxelPullCudaParams<S, T> p, int lane_bits) {
  const int64_t voxel = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) >> lane_bits;
  if (voxel >= p.B * p.V) return;
  const int lanes = 1 << lane_bits, lane = static_cast<int>(threadIdx.x) & (lanes - 1);
  const int64_t item = voxel / p.V;
  for (int64_t c = lane * V; c < p.C; c += lanes * V) {
    T sum[V];
#pragma unroll
    for (int i = 0; i < V; ++i) sum[i] = T(0);
    for (int64_t camera = item * p.N; camera < (item + 1) * p.N; ++camera) {
      const View<T> view = view_of(p, camera * p.V + voxel - item * p.V);
      if (!view.seen) continue;
      for (int l = 0; l < p.levels; ++l) {
        const VoxelPullLevel<S, T>& level = p.level[l];
        const int64_t H = level.H, W = level.W;
        const math::PullTaps<T> at = taps_of(p, view, H, W);
        T slope[3];
        const T depth = math::read_depth<false>(at, level.depth + camera * p.D * H * W, H, W, slope);
        const S* row = level.features + (camera * H * W + first_pixel(at, W)) * p.C + c;
        math::for_pixels(at, [&](int iy, int ix) {
          const T w = at.y.w[iy] * at.x.w[ix] * depth;
          T f[V];
          load_pack(row + (iy * W + ix) * p.C, f);
#pragma unroll
          for (int i = 0; i < V; ++i) sum[i] += w * f[i];
        });
      }
    }
    store_pack(p.out + voxel * p.C + c, sum);
  }
}

template <class S, class T, int V>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 2 : 3)
    voxel_pull_views_kernel(const __grid_constant__ VoxelPullCudaParams<S, T> p,
                            const __grid_constant__ PulledViews<T> views, int lane_bits) {
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) >> lane_bits;
  const int lanes = 1 << lane_bits, lane = static_cast<int>(threadIdx.x) & (lanes - 1);
  const bool mine = i < p.views();  // no early exit: all threads of a warp join its sums
  View<T> view{T(0), T(0), T(0), false};
  if (mine) view = view_of(p, i);
  const int64_t camera = i / p.V, voxel = camera / p.N * p.V + (i - camera * p.V);
  const bool any = __any_sync(kAll, view.seen);
  T slope[3] = {T(0), T(0), T(0)};
  for (int l = 0; l < p.levels; ++l) {
    const VoxelPullLevel<S, T>& level = p.level[l];
    const int64_t H = level.H, W = level.W;
    int64_t key = views.lists;
    if (any) {
      const math::PullTaps<T> at = taps_of(p, view, H, W);  // of a view that is not seen: of (0, 0, 0) or unused
      T dot[4] = {T(0), T(0), T(0), T(0)};
      const S* row = level.features + (camera * H * W + first_pixel(at, W)) * p.C;
      for (int64_t c = lane * V; view.seen && c < p.C; c += lanes * V) {
        T g[V];
        load_pack(p.grad + voxel * p.C + c, g);
        math::for_pixels(at, [&](int iy, int ix) {
          T f[V];
          load_pack(row + (iy * W + ix) * p.C + c, f);
#pragma unroll
          for (int k = 0; k < V; ++k) dot[2 * iy + ix] += f[k] * g[k];
        });
      }
#pragma unroll
      for (int k = 0; k < 4; ++k) dot[k] = group_sum(dot[k], lanes);
      if (view.seen) {
        T d[3], f = T(0);
        const T depth = math::read_depth<true>(at, level.depth + camera * p.D * H * W, H, W, d);
        math::add_pull_gradient(at, dot, depth, d, slope);
#pragma unroll
        for (int k = 0; k < 4; ++k) f += at.y.w[k / 2] * at.x.w[k % 2] * dot[k];
        if (lane == 0 && views.key) views.depth[l * p.views() + i] = depth, views.dot[l * p.views() + i] = f;
        key = views.first_list[l] + (camera * (H + 1) + static_cast<int64_t>(at.y.first) + 1) * (W + 1) +
              static_cast<int64_t>(at.x.first) + 1;
      }
    }
    if (mine && lane == 0 && views.key) views.key[l * p.views() + i] = static_cast<int32_t>(key);
  }
  if (mine && lane < 1 && p.grad_uvd) {
#pragma unroll
    for (int k = 0; k < 3; ++k) p.grad_uvd[3 * i + k] = slope[k];
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) voxel_pull_starts_kernel(const __grid_constant__ PulledViews<T> views) {
  const int64_t list = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (list > views.lists) return;
  views.start[list] = first_not_below(views.sorted, views.listed, list);
}

// What a pixel must know of a view that touches it.
template <class T>
struct Touch {
  int64_t view;  // in [0, views), or -1: none
  T weight;      // of the pixel
  T low, high;   // of the bins z and z + 1
  int z;
};

// f(touch, n) with one view a thread, n of them in the first threads, for all views that touch the pixel (x, y).
template <class S, class T, class F>
__device__ __forceinline__ void for_touches(const VoxelPullCudaParams<S, T>& p, const PulledViews<T>& views, int l,
                                            int64_t camera, int64_t y, int64_t x, F&& f) {
  const int64_t H = p.level[l].H, W = p.level[l].W;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int iy = 0; iy < 2; ++iy) {
    // The lists of the pixels x - 1 and x of this row, or of the row before, lie side by side.
    const int64_t list = views.first_list[l] + (camera * (H + 1) + y - iy + 1) * (W + 1) + x;
    const int64_t end = views.start[list + 2];
    for (int64_t base = views.start[list]; base < end; base += 32) {
      Touch<T> touch{-1, T(0), T(0), T(0), 0};
      if (base + lane < end) {
        touch.view = views.order[base + lane] - l * p.views();
        const math::PullTaps<T> at = taps_of(p, view_of(p, touch.view), H, W);
        touch.weight = (iy ? at.y.w[1] : at.y.w[0]) * (static_cast<int64_t>(at.x.first) == x ? at.x.w[0] : at.x.w[1]);
        touch.low = at.z.w[0], touch.high = at.z.w[1], touch.z = static_cast<int>(at.z.first);
      }
      f(touch, static_cast<int>(end - base < 32 ? end - base : 32));
    }
  }
}

template <class S, class T, int V>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 2 : 4)
    voxel_pull_gather_kernel(const __grid_constant__ VoxelPullCudaParams<S, T> p,
                             const __grid_constant__ PulledViews<T> views, int l, int lane_bits) {
  const int64_t H = p.level[l].H, W = p.level[l].W;
  const int64_t pixel = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (pixel >= p.B * p.N * H * W) return;  // a whole warp
  const int64_t camera = pixel / (H * W), y = pixel / W % H, x = pixel % W;
  const int64_t voxels = (camera / p.N - camera) * p.V;  // voxel of a view, less the view
  const int lane = static_cast<int>(threadIdx.x) % 32, lanes = 1 << lane_bits, parts = 32 >> lane_bits;
  const int64_t chunk = lanes * V, channels = (p.C + chunk - 1) & ~(chunk - 1);  // all lanes stay, to hand round
  for (int64_t c = (lane & (lanes - 1)) * V; c < channels; c += chunk) {
    T sum[V];
#pragma unroll
    for (int i = 0; i < V; ++i) sum[i] = T(0);
    for_touches(p, views, l, camera, y, x, [&](Touch<T> touch, int n) {
      const T weight = touch.view < 0 ? T(0) : touch.weight * views.depth[l * p.views() + touch.view];
      const int32_t row = touch.view < 0 ? -1 : static_cast<int32_t>(touch.view - camera * p.V);
#pragma unroll 2
      for (int j = 0; j < n; j += parts) {
        const int mine = j + (lane >> lane_bits);  // at most 31: parts divides 32
        const int32_t from = __shfl_sync(kAll, row, mine);
        const T w = __shfl_sync(kAll, weight, mine);
        if (from < 0 || c >= p.C) continue;
        T g[V];
        load_pack(p.grad + (voxels + camera * p.V + from) * p.C + c, g);
#pragma unroll
        for (int i = 0; i < V; ++i) sum[i] += w * g[i];
      }
    });
    sum_apart(sum, lanes);  // of the threads that have the same channels
    if (lane < lanes && c < p.C) store_pack(p.level[l].grad_features + pixel * p.C + c, sum);
  }
}

// A thread sums the bins lane, lane + 32, ... of its warp's pixel, 128 of them at a time.
template <class S, class T>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 2 : 4)
    voxel_pull_gather_depth_kernel(const __grid_constant__ VoxelPullCudaParams<S, T> p,
                                   const __grid_constant__ PulledViews<T> views, int l) {
  const int64_t H = p.level[l].H, W = p.level[l].W;
  const int64_t pixel = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (pixel >= p.B * p.N * H * W) return;  // a whole warp
  const int64_t camera = pixel / (H * W), y = pixel / W % H, x = pixel % W;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int64_t z = lane; z < p.D + lane; z += 32 * kBins) {
    T sum[kBins];
#pragma unroll
    for (int k = 0; k < kBins; ++k) sum[k] = T(0);
    for_touches(p, views, l, camera, y, x, [&](Touch<T> touch, int n) {
      const T whole = touch.view < 0 ? T(0) : touch.weight * views.dot[l * p.views() + touch.view];
      const T low = whole * touch.low, high = whole * touch.high;
      for (int j = 0; j < n; ++j) {
        const int at = __shfl_sync(kAll, touch.z, j);
        const T at_low = __shfl_sync(kAll, low, j), at_high = __shfl_sync(kAll, high, j);
#pragma unroll
        for (int k = 0; k < kBins; ++k) {
          const int64_t step = z + 32 * k - at;
          if (step == 0) sum[k] += at_low;
          if (step == 1) sum[k] += at_high;
        }
      }
    });
#pragma unroll
    for (int k = 0; k < kBins; ++k)
      if (z + 32 * k < p.D) p.level[l].grad_depth[((camera * p.D + z + 32 * k) * H + y) * W + x] = sum[k];
  }
}

// ---- host

template <class S, class T>
bool packs_fit(const VoxelPullCudaParams<S, T>& p) {
  const auto fits = [](const void* row) { return reinterpret_cast<uintptr_t>(row) % (sizeof(S) * kPack<S>) == 0; };
  bool all = p.C % kPack<S> == 0 && fits(p.out) && fits(p.grad);
  for (int l = 0; l < p.levels; ++l) all = all && fits(p.level[l].features) && fits(p.level[l].grad_features);
  return all;
}

dim3 blocks_for(int64_t threads) { return dim3(static_cast<unsigned>((threads + kThreads - 1) / kThreads)); }

template <class S, class T, int V>
cudaError_t launch_gather(const VoxelPullCudaParams<S, T>& p, const PulledViews<T>& views, int l, dim3 blocks,
                          cudaStream_t stream) {
  return launch(voxel_pull_gather_kernel<S, T, V>, blocks, dim3(kThreads), 0, stream, p, views, l, lane_bits(p.C, V));
}

}  // namespace

template <class S, class T>
cudaError_t launch_voxel_pull_forward(const VoxelPullCudaParams<S, T>& p, cudaStream_t stream) {
  const int pack = packs_fit(p) ? kPack<S> : 1, bits = lane_bits(p.C, pack);
  return launch(pack == 1 ? voxel_pull_forward_kernel<S, T, 1> : voxel_pull_forward_kernel<S, T, kPack<S>>,
                blocks_for(p.C ? p.B * p.V << bits : 0), dim3(kThreads), 0, stream, p, bits);
}

template <class S, class T>
cudaError_t launch_voxel_pull_views(const VoxelPullCudaParams<S, T>& p, const PulledViews<T>& views,
                                    cudaStream_t stream) {
  const int pack = packs_fit(p) ? kPack<S> : 1, bits = lane_bits(p.C, pack);
  return launch(pack == 1 ? voxel_pull_views_kernel<S, T, 1> : voxel_pull_views_kernel<S, T, kPack<S>>,
                blocks_for(p.views() << bits), dim3(kThreads), 0, stream, p, views, bits);
}

template <class T>
cudaError_t launch_voxel_pull_starts(const PulledViews<T>& views, cudaStream_t stream) {
  return launch(voxel_pull_starts_kernel<T>, blocks_for(views.lists + 1), dim3(kThreads), 0, stream, views);
}

template <class S, class T>
cudaError_t launch_voxel_pull_gather(const VoxelPullCudaParams<S, T>& p, const PulledViews<T>& views, int l,
                                     cudaStream_t stream) {
  const dim3 blocks = blocks_for(p.B * p.N * p.level[l].H * p.level[l].W * 32);
  if (p.level[l].grad_features) {
    const cudaError_t status = packs_fit(p) ? launch_gather<S, T, kPack<S>>(p, views, l, blocks, stream)
                                            : launch_gather<S, T, 1>(p, views, l, blocks, stream);
    if (status != cudaSuccess) return status;
  }
  if (!p.level[l].grad_depth) return cudaSuccess;
  return launch(voxel_pull_gather_depth_kernel<S, T>, blocks, dim3(kThreads), 0, stream, p, views, l);
}

#define MIM4D_INSTANTIATE(S, T)                                                                                        \
  template cudaError_t launch_voxel_pull_forward(const VoxelPullCudaParams<S, T>&, cudaStream_t);                      \
  template cudaError_t launch_voxel_pull_views(const VoxelPullCudaParams<S, T>&, const PulledViews<T>&, cudaStream_t); \
  template cudaError_t launch_voxel_pull_gather(const VoxelPullCudaParams<S, T>&, const PulledViews<T>&, int,          \
                                                cudaStream_t);
MIM4D_INSTANTIATE(float, float)
MIM4D_INSTANTIATE(double, double)
MIM4D_INSTANTIATE(__half, float)
MIM4D_INSTANTIATE(__nv_bfloat16, float)
#undef MIM4D_INSTANTIATE
template cudaError_t launch_voxel_pull_starts(const PulledViews<float>&, cudaStream_t);
template cudaError_t launch_voxel_pull_starts(const PulledViews<double>&, cudaStream_t);

#define MIM4D_KERNEL(name, ...) \
  KernelEntry { name, reinterpret_cast<const void*>(&__VA_ARGS__), kThreads }
#define MIM4D_ROWS(name, S, T, V)                                                            \
  MIM4D_KERNEL("voxel_pull_" #name "<" #S ", " #V ">", voxel_pull_##name##_kernel<S, T, V>), \
      MIM4D_KERNEL("voxel_pull_" #name "<" #S ", 1>", voxel_pull_##name##_kernel<S, T, 1>)
#define MIM4D_KERNELS(S, T, V)                                                           \
  MIM4D_ROWS(forward, S, T, V), MIM4D_ROWS(views, S, T, V), MIM4D_ROWS(gather, S, T, V), \
      MIM4D_KERNEL("voxel_pull_gather_depth<" #S ">", voxel_pull_gather_depth_kernel<S, T>)

std::span<const KernelEntry> voxel_pull_kernels() {
  static const KernelEntry kernels[] = {
      MIM4D_KERNELS(float, float, 4),
      MIM4D_KERNELS(double, double, 2),
      MIM4D_KERNELS(__half, float, 4),
      MIM4D_KERNELS(__nv_bfloat16, float, 4),
      MIM4D_KERNEL("voxel_pull_starts<float>", voxel_pull_starts_kernel<float>),
      MIM4D_KERNEL("voxel_pull_starts<double>", voxel_pull_starts_kernel<double>),
  };
  return kernels;
}

}  // namespace mim4d

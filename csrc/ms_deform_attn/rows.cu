// Deformable attention on a GPU by rows, a head of a query each: the result, the gradients of locations and weights,
// and that of value by atomics. A block takes a tile of queries of one head, so that its rows meet in the L1 cache.

#include <vector>

#include "ms_deform_attn/deform.cuh"

namespace mim4d {
namespace {

// f(row of the item's heads, row or -1) for the rows of this group
template <class P, class F>
__device__ __forceinline__ void for_rows(const P& p, const Level* levels, const Group& group, F&& f) {
  for_tiles(p, levels, group.rows, [&](int64_t item, int64_t head, const Tile& tile) {
    for (int i = group.row; i < tile.size || (tile.H == 0 && i < group.rows); i += group.rows) {
      const int64_t query = tile.query(i);
      f(item, head, query < 0 ? -1 : (item * p.Q + query) * p.M + head);
    }
  });
}

template <class S, class T, int V>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 || V == 8 ? 2 : 3)
    ms_deform_attn_forward_kernel(MsDeformAttnCudaParams<S, T> p, int lane_bits) {
  MIM4D_DYN_SHARED(Level, levels);
  load_levels(p, levels);
  const Group group(lane_bits);
  for_rows(p, levels, group, [&](int64_t item, int64_t head, int64_t row) {
    const S* const value = p.value + (item * p.S * p.M + head) * p.D;
    for (int64_t from = 0; from < p.D; from += group.lanes * V) {
      const int64_t c = from + group.lane * V;
      const bool mine = row >= 0 && c < p.D;
      T sum[V];
#pragma unroll
      for (int i = 0; i < V; ++i) sum[i] = T(0);
      for_points<T>(
          p, levels, group, row,
          [&](int, const Point<T>& at, const Level& level) {
            const Cells<T> cells(at, level);
            T v[4][V];
#pragma unroll
            for (int k = 0; k < 4; ++k) load_if<V>(mine && cells.has(k), value + cells.cell(k) * p.M * p.D + c, v[k]);
#pragma unroll
            for (int k = 0; k < 4; ++k) {
              const T w = at.a * cells.w[k];
#pragma unroll
              for (int i = 0; i < V; ++i) sum[i] += w * v[k][i];
            }
          },
          [](const Point<T>&, const Level&, int64_t) {});
      if (mine) store_pack(p.out + row * p.D + c, sum);
    }
  });
}

template <class S, class T, int V>
__global__ void __launch_bounds__(kThreads, 2)
    ms_deform_attn_points_kernel(MsDeformAttnCudaParams<S, T> p, int lane_bits) {
  MIM4D_DYN_SHARED(Level, levels);
  load_levels(p, levels);
  const Group group(lane_bits);
  for_rows(p, levels, group, [&](int64_t item, int64_t head, int64_t row) {
    const S* const value = p.value + (item * p.S * p.M + head) * p.D;
    T found[3] = {T(0), T(0), T(0)};  // of the lane's own point: what it reads . grad, and its slopes
    for_points<T>(
        p, levels, group, row,
        [&](int which, const Point<T>& at, const Level& level) {
          const Cells<T> cells(at, level);
          T product[4] = {T(0), T(0), T(0), T(0)};
          for (int64_t c = group.lane * V; row >= 0 && c < p.D; c += group.lanes * V) {
            T g[V];
            load_pack(p.grad + row * p.D + c, g);
#pragma unroll
            for (int k = 0; k < 4; ++k) {
              T v[V];
              load_if<V>(cells.has(k), value + cells.cell(k) * p.M * p.D + c, v);
#pragma unroll
              for (int i = 0; i < V; ++i) product[k] += g[i] * v[i];
            }
          }
          T slope[3];
          math::deform_slopes(product, at.tx, at.ty, slope[0], slope[1], slope[2]);
#pragma unroll
          for (int i = 0; i < 3; ++i) {
            const T total = group_sum(slope[i], group.lanes);
            if (which == group.lane) found[i] = total;
          }
        },
        [&](const Point<T>& own, const Level& level, int64_t point) {
          if (p.grad_weights) p.grad_weights[point] = found[0];
          if (!p.grad_locations) return;
          const bool inside = own.x != math::kNoCell;  // outside: 0, not 0 times what may be infinite
          p.grad_locations[2 * point] = inside ? own.a * found[1] * static_cast<T>(level.W) : T(0);
          p.grad_locations[2 * point + 1] = inside ? own.a * found[2] * static_cast<T>(level.H) : T(0);
        });
  });
}

template <class S, class T, int V>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 2 : 3)
    ms_deform_attn_scatter_kernel(MsDeformAttnCudaParams<S, T> p, int lane_bits) {
  MIM4D_DYN_SHARED(Level, levels);
  load_levels(p, levels);
  const Group group(lane_bits);
  for_rows(p, levels, group, [&](int64_t item, int64_t head, int64_t row) {
    T* const to = p.grad_value + (item * p.S * p.M + head) * p.D;
    for (int64_t from = 0; from < p.D; from += group.lanes * V) {
      const int64_t c = from + group.lane * V;
      const bool mine = row >= 0 && c < p.D;
      T g[V];
      load_if<V>(mine, p.grad + row * p.D + c, g);
      for_points<T>(
          p, levels, group, row,
          [&](int, const Point<T>& at, const Level& level) {
            const Cells<T> cells(at, level);
#pragma unroll
            for (int k = 0; k < 4; ++k) {
              if (!mine || !cells.has(k)) continue;
              T add[V];
#pragma unroll
              for (int i = 0; i < V; ++i) add[i] = at.a * cells.w[k] * g[i];
              atomic_add_pack(to + cells.cell(k) * p.M * p.D + c, add);
            }
          },
          [](const Point<T>&, const Level&, int64_t) {});
    }
  });
}

// 16 bytes a load; half as many channels of a half where D is no multiple of 8, and one by one where nothing fits
template <class S>
constexpr int kLoadPack = 16 / sizeof(S);
// Sums are kept in T: 16 bytes of that an atomic
template <class T>
constexpr int kSumPack = 16 / sizeof(T);

#define MIM4D_LAUNCH_ROWS(kernel, S, T, V, p, stream)                                                              \
  (packs_fit<V>(p)                                ? launch_rows(kernel<S, T, V>, p, V, stream)                     \
   : packs_fit<kSumPack<T>>(p) && V > kSumPack<T> ? launch_rows(kernel<S, T, kSumPack<T>>, p, kSumPack<T>, stream) \
                                                  : launch_rows(kernel<S, T, 1>, p, 1, stream))

}  // namespace

template <class S, class T>
cudaError_t launch_ms_deform_attn_forward(const MsDeformAttnCudaParams<S, T>& p, cudaStream_t stream) {
  return MIM4D_LAUNCH_ROWS(ms_deform_attn_forward_kernel, S, T, kLoadPack<S>, p, stream);
}
template <class S, class T>
cudaError_t launch_ms_deform_attn_points(const MsDeformAttnCudaParams<S, T>& p, cudaStream_t stream) {
  return MIM4D_LAUNCH_ROWS(ms_deform_attn_points_kernel, S, T, kLoadPack<S>, p, stream);
}
template <class S, class T>
cudaError_t launch_ms_deform_attn_scatter(const MsDeformAttnCudaParams<S, T>& p, cudaStream_t stream) {
  return MIM4D_LAUNCH_ROWS(ms_deform_attn_scatter_kernel, S, T, kSumPack<T>, p, stream);
}

#define MIM4D_INSTANTIATE(S, T)                                                                          \
  template cudaError_t launch_ms_deform_attn_forward(const MsDeformAttnCudaParams<S, T>&, cudaStream_t); \
  template cudaError_t launch_ms_deform_attn_points(const MsDeformAttnCudaParams<S, T>&, cudaStream_t);  \
  template cudaError_t launch_ms_deform_attn_scatter(const MsDeformAttnCudaParams<S, T>&, cudaStream_t);
MIM4D_INSTANTIATE(float, float)
MIM4D_INSTANTIATE(double, double)
MIM4D_INSTANTIATE(__half, float)
MIM4D_INSTANTIATE(__nv_bfloat16, float)
#undef MIM4D_INSTANTIATE

#define MIM4D_ENTRY(name, S, T, V)                                                        \
  KernelEntry {                                                                           \
    "ms_deform_attn_" #name "<" #S ", " #V ">",                                           \
        reinterpret_cast<const void*>(&ms_deform_attn_##name##_kernel<S, T, V>), kThreads \
  }
#define MIM4D_ENTRIES(name)                                                                                           \
  MIM4D_ENTRY(name, float, float, 4), MIM4D_ENTRY(name, float, float, 1), MIM4D_ENTRY(name, double, double, 2),       \
      MIM4D_ENTRY(name, double, double, 1), MIM4D_ENTRY(name, __half, float, 4), MIM4D_ENTRY(name, __half, float, 1), \
      MIM4D_ENTRY(name, __nv_bfloat16, float, 4), MIM4D_ENTRY(name, __nv_bfloat16, float, 1)

std::span<const KernelEntry> ms_deform_attn_rows_kernels() {
  static const KernelEntry kernels[] = {MIM4D_ENTRIES(forward),
                                        MIM4D_ENTRIES(points),
                                        MIM4D_ENTRIES(scatter),
                                        MIM4D_ENTRY(forward, __half, float, 8),
                                        MIM4D_ENTRY(forward, __nv_bfloat16, float, 8),
                                        MIM4D_ENTRY(points, __half, float, 8),
                                        MIM4D_ENTRY(points, __nv_bfloat16, float, 8)};
  return kernels;
}

std::span<const KernelEntry> ms_deform_attn_kernels() {
  static const std::vector<KernelEntry> kernels = [] {
    std::vector<KernelEntry> all;
    for (const auto& list : {ms_deform_attn_rows_kernels(), ms_deform_attn_value_kernels()})
      all.insert(all.end(), list.begin(), list.end());
    return all;
  }();
  return kernels;
}

}  // namespace mim4d

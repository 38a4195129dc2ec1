// The gradient of the volume on a GPU without atomics: the same bits every time. With cubic axes a point touches 64
// voxels, and neighbouring points the same ones: atomics would queue up at them. Here points are sorted by the voxel of
// their first tap; then one warp makes one voxel, from the points that touch it: they stand together in the list for
// each row of taps.

#include <vector>

#include "cuda/search.cuh"
#include "voxel_sample/stencil.cuh"

namespace mim4d {
namespace {

template <class T, int K>
__global__ void __launch_bounds__(kThreads)
    voxel_sample_keys_kernel(VoxelSampleParams<T> p, VoxelLists<T> lists, int64_t* key) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= lists.listed) return;
  const int64_t item = i / p.N;
  const Stencil<T, K> s = locate<K>(p, item, i);
  // lists - voxels: how far below the volume a first tap may lie
  const int64_t z = static_cast<int64_t>(s.z.first) + lists.Z - p.Z,
                y = static_cast<int64_t>(s.y.first) + lists.Y - p.Y,
                x = static_cast<int64_t>(s.x.first) + lists.X - p.X;
  key[i] = s.touches() ? ((item * lists.Z + z) * lists.Y + y) * lists.X + x : lists.count();
}

template <class T, int K>
__global__ void __launch_bounds__(kThreads) voxel_sample_list_kernel(VoxelSampleParams<T> p, VoxelLists<T> lists) {
  const int64_t j = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (j >= lists.listed || lists.key[j] == lists.count()) return;
  const int64_t i = lists.order[j];
  const Stencil<T, K> s = locate<K>(p, i / p.N, i);
  ListedPoint<T> point{};
#pragma unroll
  for (int k = 0; k < K; ++k) {
    point.w[0][k] = s.x.w[k], point.w[1][k] = s.y.w[k], point.w[2][k] = s.z.w[k];
    point.d[0][k] = s.x.d[k], point.d[1][k] = s.y.d[k], point.d[2][k] = s.z.d[k];
  }
  point.index = i, point.first = static_cast<int64_t>(s.x.first);
  lists.points[j] = point;
}

// start[l] = the first place with a key >= l
template <class T>
__global__ void __launch_bounds__(kThreads) voxel_sample_starts_kernel(VoxelLists<T> lists) {
  const int64_t list = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (list > lists.count()) return;
  lists.start[list] = first_not_below(lists.key, lists.listed, list);
}

constexpr int kWarps = kThreads / 32;

__host__ __device__ constexpr unsigned blocks_across(unsigned X) { return (X + kWarps - 1) / kWarps; }

// `columns`: derivatives of the weights too, times grad_jacobian or q grad; else the weights times grad alone.
template <class S, class T, int V, bool columns>
__global__ void __launch_bounds__(kThreads, columns ? 4 : 5)
    voxel_sample_gather_kernel(VoxelSampleParams<S, T> p, VoxelLists<T> lists, S* gathered, int lane_bits) {
  // A block makes neighbours along x; the grid's x counts blocks of rows, then rows, for divisions of 32 bits.
  const unsigned across = blocks_across(static_cast<unsigned>(p.X));
  const int64_t x = blockIdx.x % across * kWarps + threadIdx.x / 32;
  if (x >= p.X) return;  // a whole warp
  const unsigned Y = static_cast<unsigned>(p.Y), Z = static_cast<unsigned>(p.Z), row_number = blockIdx.x / across;
  const int64_t y = row_number % Y, z = row_number / Y % Z, item = row_number / Y / Z;
  const int64_t voxel = row_number * p.X + x;
  const int taps_z = static_cast<int>(lists.Z - p.Z) + 1, taps = static_cast<int>(lists.X - p.X) + 1;
  const int lane = static_cast<int>(threadIdx.x) % 32, lanes = 1 << lane_bits;
  const int64_t chunk = lanes * V, channels = (p.C + chunk - 1) & ~(chunk - 1);  // all lanes stay, for their sums
  for (int64_t c = (lane & (lanes - 1)) * V; c < channels; c += chunk) {
    T sum[V];
#pragma unroll
    for (int i = 0; i < V; ++i) sum[i] = T(0);
    for (int iz = 0; iz < taps_z; ++iz) {
      for (int iy = 0; iy < taps; ++iy) {
        // The first tap lies taps - 1 voxels before this one or less: so many lists side by side.
        const int64_t list = ((item * lists.Z + z - iz + taps_z - 1) * lists.Y + y - iy + taps - 1) * lists.X + x;
        const int64_t end = lists.start[list + taps];
        for (int64_t j = lists.start[list] + (lane >> lane_bits); j < end && c < p.C; j += 32 >> lane_bits) {
          const ListedPoint<T>& point = lists.points[j];
          const int ix = static_cast<int>(x - point.first);
          const T wx = point.w[0][ix], wy = point.w[1][iy], wz = point.w[2][iz];
          const int64_t row = point.index * p.C + c;
          T g[V];
          if constexpr (columns) {
            const T dx = point.d[0][ix] * wy * wz, dy = wx * point.d[1][iy] * wz, dz = wx * wy * point.d[2][iz];
            if (p.grad_jacobian) {
              T j3[V][3];
              load_triples<V>(p.grad_jacobian + 3 * row, j3);
              load_if<V>(p.grad != nullptr, p.grad + row, g);
#pragma unroll
              for (int i = 0; i < V; ++i) sum[i] += wx * wy * wz * g[i] + dx * j3[i][0] + dy * j3[i][1] + dz * j3[i][2];
            } else {
              const T* q = p.grad_grad_points + 3 * point.index;
              load_pack(p.grad + row, g);
#pragma unroll
              for (int i = 0; i < V; ++i) sum[i] += (dx * q[0] + dy * q[1] + dz * q[2]) * g[i];
            }
          } else {
            load_pack(p.grad + row, g);
#pragma unroll
            for (int i = 0; i < V; ++i) sum[i] += wx * wy * wz * g[i];
          }
        }
      }
    }
#pragma unroll
    for (int i = 0; i < V; ++i)
      for (int step = lanes; step < 32; step *= 2) sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], step);
    if (lane < lanes && c < p.C) store_pack(gathered + voxel * p.C + c, sum);
  }
}

unsigned blocks_for(int64_t threads) { return static_cast<unsigned>((threads + kThreads - 1) / kThreads); }

template <bool columns, class S, class T>
cudaError_t launch_gather(const VoxelSampleParams<S, T>& p, const VoxelLists<T>& lists, S* gathered,
                          cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(p.B * p.Z * p.Y * blocks_across(static_cast<unsigned>(p.X)));
  return packs_fit(p, gathered) ? launch(voxel_sample_gather_kernel<S, T, kPack<S>, columns>, dim3(blocks),
                                         dim3(kThreads), 0, stream, p, lists, gathered, lane_bits(p.C, kPack<S>))
                                : launch(voxel_sample_gather_kernel<S, T, 1, columns>, dim3(blocks), dim3(kThreads), 0,
                                         stream, p, lists, gathered, lane_bits(p.C, 1));
}

}  // namespace

template <class T>
cudaError_t launch_voxel_sample_keys(const VoxelSampleParams<T>& p, const VoxelLists<T>& lists, int64_t* key,
                                     cudaStream_t stream) {
  return launch(p.cubic() ? voxel_sample_keys_kernel<T, 4> : voxel_sample_keys_kernel<T, 2>,
                dim3(blocks_for(lists.listed)), dim3(kThreads), 0, stream, p, lists, key);
}

template <class T>
cudaError_t launch_voxel_sample_lists(const VoxelSampleParams<T>& p, const VoxelLists<T>& lists, cudaStream_t stream) {
  const cudaError_t status =
      launch(voxel_sample_starts_kernel<T>, dim3(blocks_for(lists.count() + 1)), dim3(kThreads), 0, stream, lists);
  if (status != cudaSuccess) return status;
  return launch(p.cubic() ? voxel_sample_list_kernel<T, 4> : voxel_sample_list_kernel<T, 2>,
                dim3(blocks_for(lists.listed)), dim3(kThreads), 0, stream, p, lists);
}

template <class S, class T>
cudaError_t launch_voxel_sample_gather(const VoxelSampleParams<S, T>& p, const VoxelLists<T>& lists, S* gathered,
                                       cudaStream_t stream) {
  return launch_gather<false>(p, lists, gathered, stream);
}

template <class T>
cudaError_t launch_voxel_sample_second_gather(const VoxelSampleParams<T>& p, const VoxelLists<T>& lists, T* gathered,
                                              cudaStream_t stream) {
  return launch_gather<true>(p, lists, gathered, stream);
}

#define MIM4D_INSTANTIATE(S, T)                                                                             \
  template cudaError_t launch_voxel_sample_gather(const VoxelSampleParams<S, T>&, const VoxelLists<T>&, S*, \
                                                  cudaStream_t);
MIM4D_INSTANTIATE(float, float)
MIM4D_INSTANTIATE(double, double)
MIM4D_INSTANTIATE(__half, float)
MIM4D_INSTANTIATE(__nv_bfloat16, float)
#undef MIM4D_INSTANTIATE
#define MIM4D_INSTANTIATE(T)                                                                                       \
  template cudaError_t launch_voxel_sample_keys(const VoxelSampleParams<T>&, const VoxelLists<T>&, int64_t*,       \
                                                cudaStream_t);                                                     \
  template cudaError_t launch_voxel_sample_lists(const VoxelSampleParams<T>&, const VoxelLists<T>&, cudaStream_t); \
  template cudaError_t launch_voxel_sample_second_gather(const VoxelSampleParams<T>&, const VoxelLists<T>&, T*,    \
                                                         cudaStream_t);
MIM4D_INSTANTIATE(float)
MIM4D_INSTANTIATE(double)
#undef MIM4D_INSTANTIATE

#define MIM4D_KERNEL(name, ...) \
  KernelEntry { name, reinterpret_cast<const void*>(&__VA_ARGS__), kThreads }
#define MIM4D_LISTS(T)                                                              \
  MIM4D_KERNEL("voxel_sample_keys<" #T ", 2>", voxel_sample_keys_kernel<T, 2>),     \
      MIM4D_KERNEL("voxel_sample_keys<" #T ", 4>", voxel_sample_keys_kernel<T, 4>), \
      MIM4D_KERNEL("voxel_sample_list<" #T ", 2>", voxel_sample_list_kernel<T, 2>), \
      MIM4D_KERNEL("voxel_sample_list<" #T ", 4>", voxel_sample_list_kernel<T, 4>), \
      MIM4D_KERNEL("voxel_sample_starts<" #T ">", voxel_sample_starts_kernel<T>)
#define MIM4D_GATHER(S, T, V, columns) \
  MIM4D_KERNEL("voxel_sample_gather<" #S ", " #V ", " #columns ">", voxel_sample_gather_kernel<S, T, V, columns>)

std::span<const KernelEntry> voxel_sample_kernels() {
  static const std::vector<KernelEntry> all = [] {
    std::vector<KernelEntry> kernels = {
        MIM4D_LISTS(float),
        MIM4D_LISTS(double),
        MIM4D_GATHER(float, float, 4, false),
        MIM4D_GATHER(float, float, 1, false),
        MIM4D_GATHER(double, double, 2, false),
        MIM4D_GATHER(double, double, 1, false),
        MIM4D_GATHER(__half, float, 4, false),
        MIM4D_GATHER(__half, float, 1, false),
        MIM4D_GATHER(__nv_bfloat16, float, 4, false),
        MIM4D_GATHER(__nv_bfloat16, float, 1, false),
        MIM4D_GATHER(float, float, 4, true),
        MIM4D_GATHER(float, float, 1, true),
        MIM4D_GATHER(double, double, 2, true),
        MIM4D_GATHER(double, double, 1, true),
    };
    for (const auto& more :
         {voxel_sample_forward_kernels(), voxel_sample_backward_kernels(), voxel_sample_second_kernels()})
      kernels.insert(kernels.end(), more.begin(), more.end());
    return kernels;
  }();
  return all;
}

}  // namespace mim4d

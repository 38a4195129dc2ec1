// First derivatives on a GPU: what a point gets back, and with linear axes the volume, by atomics (with cubic ones it
// gathers, in gather.cu). Threads share points and channels as in forward.cu.

#include "voxel_sample/stencil.cuh"

namespace mim4d {
namespace {

// grad_volume += weights of the taps x g, for V channels
template <int V, class S, class T>
__device__ __forceinline__ void add_to_taps(const VoxelSampleParams<S, T>& p, const Stencil<T, 2>& s, int64_t channel,
                                            const T (&g)[V]) {
  for_slices(p, s, [&](const math::Taps<T, 1>& z, unsigned rows, int64_t offset) {
    for_rows(p, s, rows, offset, [&](int iy, int64_t row, unsigned in) {
#pragma unroll
      for (int ix = 0; ix < 2; ++ix) {
        if (!(in >> ix & 1u)) continue;
        T add[V];
#pragma unroll
        for (int i = 0; i < V; ++i) add[i] = z.w[0] * s.y.w[iy] * s.x.w[ix] * g[i];
        atomic_add_pack(p.grad_volume + row + ix * p.C + channel, add);
      }
    });
  });
}

template <class S, class T, int K, int V>
__global__ void __launch_bounds__(kThreads, sizeof(T) * K == 8    ? 3
                                            : sizeof(T) * K == 32 ? 1
                                                                  : 2)
    voxel_sample_backward_kernel(VoxelSampleParams<S, T> p, int lane_bits) {
  const Place at = place(lane_bits);
  for (int64_t item = blockIdx.y; item < p.B; item += gridDim.y) {
    const int64_t point = item * p.N + at.point;
    T slope[3] = {T(0), T(0), T(0)};
    Stencil<T, K> s{};
    if (at.point < p.N) s = locate<K>(p, item, point);  // no early exit: all threads of a warp join its sums
    for (int64_t c = at.lane * V; s.touches() && c < p.C; c += at.lanes * V) {
      T g[V];
      load_pack(p.grad + point * p.C + c, g);
      if constexpr (K == 2)
        if (p.grad_volume) add_to_taps(p, s, c, g);
      if (!p.grad_points) continue;
      for_slices(p, s, [&](const math::Taps<T, 1>& z, unsigned rows, int64_t offset) {
        const S* corner = p.volume + offset + c;
        const auto product = [&](int k) {
          T v[V], sum = T(0);
          load_if<V>(rows >> k / K & s.in(0) >> k % K & 1u, corner + (k / K * p.X + k % K) * p.C, v);
#pragma unroll
          for (int i = 0; i < V; ++i) sum += g[i] * v[i];
          return sum;
        };
        math::add_gradient(s.x, s.y, z, product, slope);
      });
    }
    if (p.grad_points) store_slope(p, at, s, point, slope);
  }
}

}  // namespace

template <class S, class T>
cudaError_t launch_voxel_sample_backward(const VoxelSampleParams<S, T>& p, cudaStream_t stream) {
  return MIM4D_LAUNCH_POINTS(voxel_sample_backward_kernel, S, T, p, stream);
}

#define MIM4D_INSTANTIATE(S, T) \
  template cudaError_t launch_voxel_sample_backward(const VoxelSampleParams<S, T>&, cudaStream_t);
MIM4D_INSTANTIATE(float, float)
MIM4D_INSTANTIATE(double, double)
MIM4D_INSTANTIATE(__half, float)
MIM4D_INSTANTIATE(__nv_bfloat16, float)
#undef MIM4D_INSTANTIATE

std::span<const KernelEntry> voxel_sample_backward_kernels() {
  static const KernelEntry kernels[] = {
      MIM4D_ENTRIES(backward, float, float, 4), MIM4D_ENTRIES(backward, double, double, 2),
      MIM4D_ENTRIES(backward, __half, float, 4), MIM4D_ENTRIES(backward, __nv_bfloat16, float, 4)};
  return kernels;
}

}  // namespace mim4d

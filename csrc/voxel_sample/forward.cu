// Reading a volume on a GPU, and its derivative by the point. A group of 1 to 32 threads takes one point; each thread
// takes V neighbouring channels at a time, so that a group reads whole rows of channels by wide loads.

#include "voxel_sample/stencil.cuh"

namespace mim4d {
namespace {

template <class S, class T, int K, int V>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 2 : 3)
    voxel_sample_forward_kernel(VoxelSampleParams<S, T> p, int lane_bits) {
  const Place at = place(lane_bits);
  if (at.point >= p.N) return;
  for (int64_t item = blockIdx.y; item < p.B; item += gridDim.y) {
    const int64_t point = item * p.N + at.point;
    const Stencil<T, K> s = locate<K>(p, item, point);
    for (int64_t c = at.lane * V; c < p.C; c += at.lanes * V) {
      T sum[V];
#pragma unroll
      for (int i = 0; i < V; ++i) sum[i] = s.nothing();
      for_slices(p, s, [&](const math::Taps<T, 1>& z, unsigned rows, int64_t offset) {
        for_rows(p, s, rows, offset, [&](int iy, int64_t row, unsigned in) {
          T w[V], d[V];
          along_x(s, p.volume + row + c, p.C, in, w, d);
#pragma unroll
          for (int i = 0; i < V; ++i) sum[i] += z.w[0] * s.y.w[iy] * w[i];
        });
      });
      store_pack(p.out + point * p.C + c, sum);
    }
  }
}

// Features and Jacobian from one gather.
template <class S, class T, int K, int V>
__global__ void __launch_bounds__(kThreads, sizeof(T) * K == 32 ? 1 : 2)
    voxel_sample_with_grad_kernel(VoxelSampleParams<S, T> p, int lane_bits) {
  const Place at = place(lane_bits);
  if (at.point >= p.N) return;
  for (int64_t item = blockIdx.y; item < p.B; item += gridDim.y) {
    const int64_t point = item * p.N + at.point;
    const Stencil<T, K> s = locate<K>(p, item, point);
    const T nothing = s.nothing();
    for (int64_t c = at.lane * V; c < p.C; c += at.lanes * V) {
      T sum[V], jacobian[V][3];
#pragma unroll
      for (int i = 0; i < V; ++i) {
        sum[i] = nothing;
#pragma unroll
        for (int d = 0; d < 3; ++d) jacobian[i][d] = nothing;
      }
      for_slices(p, s, [&](const math::Taps<T, 1>& z, unsigned rows, int64_t offset) {
        for_rows(p, s, rows, offset, [&](int iy, int64_t row, unsigned in) {
          T w[V], d[V];
          along_x(s, p.volume + row + c, p.C, in, w, d);
#pragma unroll
          for (int i = 0; i < V; ++i) {
            sum[i] += z.w[0] * s.y.w[iy] * w[i];
            jacobian[i][0] += z.w[0] * s.y.w[iy] * d[i];
            jacobian[i][1] += z.w[0] * s.y.d[iy] * w[i];
            jacobian[i][2] += z.d[0] * s.y.w[iy] * w[i];
          }
        });
      });
      store_pack(p.out + point * p.C + c, sum);
      store_triples<V>(p.jacobian + 3 * (point * p.C + c), jacobian);
    }
  }
}

}  // namespace

template <class S, class T>
cudaError_t launch_voxel_sample_forward(const VoxelSampleParams<S, T>& p, cudaStream_t stream) {
  return MIM4D_LAUNCH_POINTS(voxel_sample_forward_kernel, S, T, p, stream);
}

template <class S, class T>
cudaError_t launch_voxel_sample_with_grad(const VoxelSampleParams<S, T>& p, cudaStream_t stream) {
  return MIM4D_LAUNCH_POINTS(voxel_sample_with_grad_kernel, S, T, p, stream);
}

#define MIM4D_INSTANTIATE(S, T)                                                                   \
  template cudaError_t launch_voxel_sample_forward(const VoxelSampleParams<S, T>&, cudaStream_t); \
  template cudaError_t launch_voxel_sample_with_grad(const VoxelSampleParams<S, T>&, cudaStream_t);
MIM4D_INSTANTIATE(float, float)
MIM4D_INSTANTIATE(double, double)
MIM4D_INSTANTIATE(__half, float)
MIM4D_INSTANTIATE(__nv_bfloat16, float)
#undef MIM4D_INSTANTIATE

std::span<const KernelEntry> voxel_sample_forward_kernels() {
  static const KernelEntry kernels[] = {
      MIM4D_ENTRIES(forward, float, float, 4),    MIM4D_ENTRIES(forward, double, double, 2),
      MIM4D_ENTRIES(forward, __half, float, 4),   MIM4D_ENTRIES(forward, __nv_bfloat16, float, 4),
      MIM4D_ENTRIES(with_grad, float, float, 4),  MIM4D_ENTRIES(with_grad, double, double, 2),
      MIM4D_ENTRIES(with_grad, __half, float, 4), MIM4D_ENTRIES(with_grad, __nv_bfloat16, float, 4)};
  return kernels;
}

}  // namespace mim4d

// What stands before and after the field on a GPU: the points of the samples, and sums along a ray; a warp has a ray.

#include "cuda/reduce.cuh"
#include "sdf_march/field.cuh"

namespace mim4d {
namespace {

constexpr int kRayWarps = 8;  // of a block
constexpr int kRayBlock = 32 * kRayWarps;

template <class T>
__global__ void __launch_bounds__(kRayBlock) sdf_march_points_kernel(SdfMarchParams<T> p, T* points) {
  const int64_t step = gridDim.x * int64_t{kRayBlock};
  for (int64_t i = blockIdx.x * int64_t{kRayBlock} + threadIdx.x; i < p.rays() * p.S; i += step) {
    const Sample<T> s = sample_of(p, i / p.S, i % p.S);
    for (int d = 0; d < 3; ++d) points[3 * i + d] = (s.position[d] - p.aabb[d]) * box_scale(p, d) - T(1);
  }
}

// B_i = a_i + b_i B_(i+1) from the last sample to the first, as math::composite_adjoint walks it: here by composing
// such steps, 32 at a time.
template <class T>
__global__ void __launch_bounds__(kRayBlock)
    sdf_march_composite_adjoint_kernel(SdfMarchParams<T> p, SdfMarchLight<T> m, SdfMarchAdjoint<T> a) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  for (int64_t ray = blockIdx.x * int64_t{kRayWarps} + warp; ray < p.rays(); ray += gridDim.x * int64_t{kRayWarps}) {
    const T total = p.opacity[ray] + T(1e-10), depth = p.depth[ray];
    const T opacity_bar = a.opacity ? a.opacity[ray] : T(0), moment_bar = a.depth ? a.depth[ray] / total : T(0);
    T rgb_bar[3];
    for (int k = 0; k < 3; ++k) rgb_bar[k] = a.rgb ? a.rgb[3 * ray + k] : T(0);
    T behind = T(0);  // what the samples behind these 32 would weigh
    for (int64_t start = (p.S - 1) / 32 * 32; start >= 0 && p.S > 0; start -= 32) {
      const bool exists = start + lane < p.S;
      const int64_t own = exists ? start + lane : 0, i = ray * p.S + own;
      const T alpha = m.alpha[i], light = m.transmittance[i];
      const bool lit = exists && light != T(0);
      T bar = (p.edges[ray * (p.S + 1) + own] - depth) * moment_bar + opacity_bar;
      for (int k = 0; k < 3; ++k) bar += rgb_bar[k] * m.colour[3 * i + k];
      if (a.weights) bar += a.weights[i];
      T sum = lit ? bar * alpha : T(0), factor = lit ? math::passed(alpha) : exists ? T(0) : T(1);
#pragma unroll
      for (int step = 1; step < 32; step *= 2) {
        const T next_sum = __shfl_down_sync(kAll, sum, step), next_factor = __shfl_down_sync(kAll, factor, step);
        if (lane + step < 32) sum += factor * next_sum, factor *= next_factor;
      }
      const T all = sum + factor * behind;  // what this sample and those behind it would weigh
      T rest = __shfl_down_sync(kAll, all, 1);
      if (lane == 31) rest = behind;
      behind = __shfl_sync(kAll, all, 0);
      if (exists) m.alpha[i] = lit ? math::composite_adjoint(alpha, light, bar, rest) : T(0);
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kRayBlock) sdf_march_ray_sums_kernel(SdfMarchParams<T> p, SdfMarchCudaAdjoint<T> a) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  for (int64_t ray = blockIdx.x * int64_t{kRayWarps} + warp; ray < p.rays(); ray += gridDim.x * int64_t{kRayWarps}) {
    for (int d = 0; d < 3; ++d) {
      T origin = T(0), direction = T(0);
      for (int64_t i = lane; i < p.S; i += 32) {
        const int64_t at = 3 * (ray * p.S + i) + d;
        const T bar = a.position[at] + (a.slopes ? box_scale(p, d) * a.slopes[at] : T(0));
        origin += bar;
        direction += a.direction[at] + bar * p.edges[ray * (p.S + 1) + i];
      }
      origin = group_sum(origin, 32), direction = group_sum(direction, 32);
      if (lane == 0 && a.grad_origins) a.grad_origins[3 * ray + d] = origin;
      if (lane == 0 && a.grad_directions) a.grad_directions[3 * ray + d] = direction;
    }
  }
}

dim3 ray_grid(int64_t rays) {
  return dim3(static_cast<unsigned>(resident_blocks((rays + kRayWarps - 1) / kRayWarps, 8)));
}

}  // namespace

template <class T>
cudaError_t launch_sdf_march_points(const SdfMarchParams<T>& p, T* points, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(resident_blocks((p.rays() * p.S + kRayBlock - 1) / kRayBlock, 8)));
  return launch(sdf_march_points_kernel<T>, grid, dim3(kRayBlock), 0, stream, p, points);
}

template <class T>
cudaError_t launch_sdf_march_composite_adjoint(const SdfMarchParams<T>& p, const SdfMarchLight<T>& light,
                                               const SdfMarchAdjoint<T>& a, cudaStream_t stream) {
  return launch(sdf_march_composite_adjoint_kernel<T>, ray_grid(p.rays()), dim3(kRayBlock), 0, stream, p, light, a);
}

template <class T>
cudaError_t launch_sdf_march_ray_sums(const SdfMarchParams<T>& p, const SdfMarchCudaAdjoint<T>& a,
                                      cudaStream_t stream) {
  return launch(sdf_march_ray_sums_kernel<T>, ray_grid(p.rays()), dim3(kRayBlock), 0, stream, p, a);
}

#define MIM4D_INSTANTIATE(T)                                                                                 \
  template cudaError_t launch_sdf_march_points(const SdfMarchParams<T>&, T*, cudaStream_t);                  \
  template cudaError_t launch_sdf_march_composite_adjoint(const SdfMarchParams<T>&, const SdfMarchLight<T>&, \
                                                          const SdfMarchAdjoint<T>&, cudaStream_t);          \
  template cudaError_t launch_sdf_march_ray_sums(const SdfMarchParams<T>&, const SdfMarchCudaAdjoint<T>&, cudaStream_t);
MIM4D_INSTANTIATE(float)
MIM4D_INSTANTIATE(double)
#undef MIM4D_INSTANTIATE

#define MIM4D_ENTRY(name, T) \
  KernelEntry { "sdf_march_" #name "<" #T ">", reinterpret_cast<const void*>(&sdf_march_##name##_kernel<T>), kRayBlock }
std::span<const KernelEntry> sdf_march_ray_kernels() {
  static const KernelEntry kernels[] = {
      MIM4D_ENTRY(points, float),  MIM4D_ENTRY(composite_adjoint, float),  MIM4D_ENTRY(ray_sums, float),
      MIM4D_ENTRY(points, double), MIM4D_ENTRY(composite_adjoint, double), MIM4D_ENTRY(ray_sums, double)};
  return kernels;
}
#undef MIM4D_ENTRY

}  // namespace mim4d

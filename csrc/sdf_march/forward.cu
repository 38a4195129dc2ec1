// Rays on a GPU. A block takes two rays at a time, three warps each: 96 samples, or more in turns. Light that is left
// is a running product over the samples of a ray, found by a scan of its warps.

#include "sdf_march/reading.cuh"

namespace mim4d {
namespace {

template <class T>
struct ForwardMemory {
  SdfTape<T> tape{};
  Column<T> f, qf;
  Column<T> scratch;
  int count;

  // f and qf lie in shared memory where the widths are known.
  template <class N>
  MIM4D_HD ForwardMemory(const N& net, bool fixed, T* base) {
    Columns<T> columns{base};
    tape.slope = columns.take((net.L - 1) * net.H);
    f = columns.take(fixed ? 0 : net.C), qf = columns.take(fixed ? 0 : net.C);
    const int widest = math::max_(net.H, math::max_(net.G, net.R));
    scratch = columns.take(fixed ? 0 : kTaken * widest);
    count = columns.count;
  }
};

constexpr int kOfWarps = 32;  // values in shared memory that warps tell each other: at most five each
static_assert(5 * kWarps <= kOfWarps);

// What comes before each thread of a ray, by factors of its samples: the product of all factors before its own, times
// `carry`, which becomes the product of all. A barrier of the block.
template <class T>
__device__ __forceinline__ T product_before(T factor, T& carry, T* of_warps) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  constexpr int kWarpsOfRay = kRayThreads / 32;
  const int first = warp / kWarpsOfRay * kWarpsOfRay;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const T before = __shfl_up_sync(kAll, factor, step);
    if (lane >= step) factor *= before;
  }
  T product = __shfl_up_sync(kAll, factor, 1);
  if (lane == 0) product = T(1);
  if (lane == 31) of_warps[warp] = factor;
  __syncthreads();
#pragma unroll
  for (int k = 0; k < kWarpsOfRay; ++k) {
    if (first + k == warp) product *= carry;
    carry *= of_warps[first + k];
  }
  __syncthreads();
  return product;
}

template <class T, bool fixed>
__global__ void __launch_bounds__(kThreads, fixed ? 2 : 1) sdf_march_forward_kernel(SdfMarchCudaParams<T> p) {
  MIM4D_DYN_SHARED(T, shared);
  const auto net = net_of<fixed>(p.sizes);
  using N = decltype(net_of<fixed>(p.sizes));
  T *const of_warps = shared, *const tiles = shared + kOfWarps;
  const T* const w = block_net<fixed>(p.net, net.count(), tiles + kWarps * Reading<T, fixed>::kValues);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int place = static_cast<int>(threadIdx.x) % kRayThreads, own = static_cast<int>(threadIdx.x) / kRayThreads;
  const int64_t size = int64_t{kThreads} * ForwardMemory<T>(net, fixed, nullptr).count;
  const ForwardMemory<T> m(net, fixed, p.scratch + blockIdx.x * size + threadIdx.x);
  Reading<T, fixed> reading{p, tiles + warp * Reading<T, fixed>::kValues};
  const T inv_s = *p.sharpness;

  for (int64_t first_ray = blockIdx.x * int64_t{kRays}; first_ray < p.rays(); first_ray += gridDim.x * int64_t{kRays}) {
    const int64_t ray = first_ray + own;
    const bool exists = ray < p.rays();
    T through = T(1), sum[5] = {T(0), T(0), T(0), T(0), T(0)};  // rgb, weights, weights x t
    for (int64_t start = 0; start < p.S; start += kRayThreads) {
      const bool alive = exists && start + place < p.S;
      const Sample<T> s = sample_of(p, alive ? ray : 0, alive ? start + place : 0);
      Scratch<N::fixed, T> scratch{m.scratch};
      reading.locate(s, alive);
      const auto f = reading.features(m.f);
      auto g = scratch.take(net.G);
      const T sdf = sdf_forward<false>(net, w, f, s.position, m.tape, scratch, g);
      T n[3];
      sdf_reverse<false>(net, w, m.tape, scratch, reading.feature_slope(m.qf), n);
      reading.pull(n);
      const T alpha = section_of(p, s, sdf, n, inv_s).opacity.alpha;
      const T light = product_before(alive ? math::passed(alpha) : T(1), through, of_warps);
      const bool lit = alive && light != T(0);
      T colour[3] = {T(0), T(0), T(0)};
      if (__any_sync(kAll, lit)) {
        const T e[N::extra] = {s.direction[0], s.direction[1], s.direction[2], n[0], n[1], n[2], T(0), T(0)};
        colour_forward<false>(net, w, f, g, s.position, e, ColourTape<T>{}, scratch, colour);
      }
      if (!alive) continue;
      const T weight = light * alpha;
#pragma unroll
      for (int k = 0; k < 3; ++k) {
        colour[k] = lit ? colour[k] : T(0);  // where no light comes it has no part in any result
        sum[k] += weight * colour[k];
        if (p.gradient) p.gradient[3 * s.index + k] = n[k];
        if (p.light.colour) p.light.colour[3 * s.index + k] = colour[k];
      }
      sum[3] += weight;
      sum[4] += weight * s.t;
      if (p.sdf) p.sdf[s.index] = sdf;
      if (p.weights) p.weights[s.index] = weight;
      if (p.light.alpha) p.light.alpha[s.index] = alpha, p.light.transmittance[s.index] = light;
    }
#pragma unroll
    for (int k = 0; k < 5; ++k) {
      const T total = group_sum(sum[k], 32);
      if (lane == 0) of_warps[warp * 5 + k] = total;
    }
    __syncthreads();
    if (place == 0 && exists) {
      T total[5];
#pragma unroll
      for (int k = 0; k < 5; ++k)
        total[k] = of_warps[warp * 5 + k] + of_warps[warp * 5 + 5 + k] + of_warps[warp * 5 + 10 + k];
#pragma unroll
      for (int k = 0; k < 3; ++k)
        if (p.rgb) p.rgb[3 * ray + k] = total[k];
      p.opacity[ray] = total[3];
      p.depth[ray] = total[4] / (total[3] + T(1e-10));
    }
    __syncthreads();
  }
}

}  // namespace

template <class T>
SdfMarchGrid sdf_march_forward_grid(const SdfMarchCudaParams<T>& p) {
  return grid_of<T>((p.rays() + kRays - 1) / kRays, 2, ForwardMemory<T>(p.sizes, p.fused, nullptr).count);
}

template <class T, bool fixed>
static cudaError_t launch_forward(const SdfMarchCudaParams<T>& p, cudaStream_t stream) {
  const auto kernel = sdf_march_forward_kernel<T, fixed>;
  const size_t shared =
      sizeof(T) * (kOfWarps + size_t{kWarps} * Reading<T, fixed>::kValues + (fixed ? p.sizes.count() : 0));
  const cudaError_t status = allow_shared(kernel, shared);
  if (status != cudaSuccess) return status;
  return launch(kernel, dim3(static_cast<unsigned>(sdf_march_forward_grid(p).blocks)), dim3(kThreads), shared, stream,
                p);
}

template <class T>
cudaError_t launch_sdf_march_forward(const SdfMarchCudaParams<T>& p, cudaStream_t stream) {
  if constexpr (sizeof(T) == 4)
    if (p.fused) return launch_forward<T, true>(p, stream);
  return launch_forward<T, false>(p, stream);
}

#define MIM4D_INSTANTIATE(T)                                                  \
  template SdfMarchGrid sdf_march_forward_grid(const SdfMarchCudaParams<T>&); \
  template cudaError_t launch_sdf_march_forward(const SdfMarchCudaParams<T>&, cudaStream_t);
MIM4D_INSTANTIATE(float)
MIM4D_INSTANTIATE(double)
#undef MIM4D_INSTANTIATE

#define MIM4D_ENTRY(T, fixed)                                                                                    \
  KernelEntry {                                                                                                  \
    "sdf_march_forward<" #T ", " #fixed ">", reinterpret_cast<const void*>(&sdf_march_forward_kernel<T, fixed>), \
        kThreads                                                                                                 \
  }
std::span<const KernelEntry> sdf_march_forward_kernels() {
  static const KernelEntry kernels[] = {MIM4D_ENTRY(float, true), MIM4D_ENTRY(float, false),
                                        MIM4D_ENTRY(double, false)};
  return kernels;
}
#undef MIM4D_ENTRY

}  // namespace mim4d

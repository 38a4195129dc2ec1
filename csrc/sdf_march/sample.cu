// sdf_sample on a GPU: the SDF at equal sections, a thread has a sample; then a warp has a ray, finds where it loses
// its light, and merges what it adds there with the sections' starts.

#include "sdf_march/reading.cuh"

namespace mim4d {
namespace {

template <class T>
struct FieldMemory {
  Column<T> f;
  Column<T> scratch;
  int count;

  template <class N>
  MIM4D_HD FieldMemory(const N& net, bool fixed, T* base) {
    Columns<T> columns{base};
    f = columns.take(fixed ? 0 : net.C);
    scratch = columns.take(fixed ? 0 : kTaken * net.H);
    count = columns.count;
  }
};

template <class T, bool fixed>
__global__ void __launch_bounds__(kThreads, fixed ? 2 : 1) sdf_march_field_kernel(SdfMarchCudaParams<T> p) {
  MIM4D_DYN_SHARED(T, shared);
  const auto net = net_of<fixed>(p.sizes);
  using N = decltype(net_of<fixed>(p.sizes));
  const T* const w = block_net<fixed>(p.net, net.count(), shared);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t size = int64_t{kThreads} * FieldMemory<T>(net, fixed, nullptr).count;
  const FieldMemory<T> m(net, fixed, p.scratch + blockIdx.x * size + threadIdx.x);
  Reading<T, fixed> reading{p, shared + (fixed ? net.count() + warp * kTile : 0)};
  const int64_t samples = p.rays() * p.S, step = gridDim.x * int64_t{kThreads};
  for (int64_t first = blockIdx.x * int64_t{kThreads} + warp * 32; first < samples; first += step) {
    const bool exists = first + lane < samples;
    const int64_t index = exists ? first + lane : first;
    const Sample<T> s = sample_of<T>(p, index / p.S, index % p.S);
    Scratch<N::fixed, T> scratch{m.scratch};
    reading.locate(s, exists);
    const auto f = reading.features(m.f);
    auto x = scratch.take(net.H);
    sdf_layers(net, w, f, s.position, scratch, x, [](int, int, T) {}, [](int, int, T, T) {});
    const T sdf = sdf_of(net, w, x);
    if (exists) p.sdf[index] = sdf;
  }
}

constexpr int kSampleWarps = 8;
constexpr int kSampleBlock = 32 * kSampleWarps;

template <class T>
__global__ void __launch_bounds__(kSampleBlock) sdf_march_uniform_kernel(SdfSampleParams<T> p, T* coarse) {
  const int64_t edges = p.n_uniform + 1, step = gridDim.x * int64_t{kSampleBlock};
  for (int64_t k = blockIdx.x * int64_t{kSampleBlock} + threadIdx.x; k < p.rays() * edges; k += step) {
    const int64_t ray = k / edges, i = k % edges;
    const T near = p.near[ray], far = p.far[ray] < near ? near : p.far[ray], n = static_cast<T>(p.n_uniform);
    const T place = p.jitter ? math::section_boundary(static_cast<T>(i), n, p.jitter[2 * ray]) : static_cast<T>(i) / n;
    coarse[k] = near + (far - near) * place;
  }
}

// How many of n ascending values are less than x, or with `equal` not greater.
template <bool equal, class T>
__device__ __forceinline__ int64_t count_below(const T* values, int64_t n, T x) {
  int64_t low = 0, high = n;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (equal ? !(values[middle] > x) : values[middle] < x)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

template <class T>
__global__ void __launch_bounds__(kSampleBlock, 2)
    sdf_march_sample_kernel(SdfSampleParams<T> p, SdfSampleMemory<T> memory) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t U = p.n_uniform, I = p.n_importance;
  const int64_t step = gridDim.x * int64_t{kSampleWarps};
  for (int64_t ray = blockIdx.x * int64_t{kSampleWarps} + warp; ray < p.rays(); ray += step) {
    const T *const coarse = memory.coarse + ray * (U + 1), *const sdf = memory.sdf + ray * U;
    T *const mass = memory.mass + ray * (U + 1), *const fine = memory.fine + ray * (I + 1);

    // The sections' weights, which mass[i + 1] holds at first; the last one's end has no sdf, it weighs nothing.
    T through = T(1), total = T(0);
    for (int64_t start = 0; start < U; start += 32) {
      const int64_t i = start + lane;
      T alpha = T(0);
      if (i + 1 < U) {
        const auto quotient = [&](int64_t k) {
          return math::section_quotient(sdf[k], sdf[k + 1], coarse[k + 1] - coarse[k]);
        };
        const T before = i > 0 ? quotient(i - 1) : T(0);
        alpha = math::section_alpha(sdf[i], sdf[i + 1], coarse[i + 1] - coarse[i], quotient(i), before, p.sharpness);
      }
      T product = i + 1 < U ? math::passed(alpha) : T(1);
#pragma unroll
      for (int k = 1; k < 32; k *= 2) {
        const T before = __shfl_up_sync(kAll, product, k);
        if (lane >= k) product *= before;
      }
      T light = __shfl_up_sync(kAll, product, 1);
      if (lane == 0) light = T(1);
      const T weight = through * light * alpha;
      through *= __shfl_sync(kAll, product, 31);
      if (i < U) mass[i + 1] = weight, total += weight;
    }
    const T padding = math::section_padding(group_sum(total, 32), static_cast<T>(U));

    T sum = T(0);
    if (lane == 0) mass[0] = T(0);
    for (int64_t start = 0; start < U; start += 32) {
      const int64_t i = start + lane;
      T own = i < U ? mass[i + 1] + padding : T(0);
#pragma unroll
      for (int k = 1; k < 32; k *= 2) {
        const T before = __shfl_up_sync(kAll, own, k);
        if (lane >= k) own += before;
      }
      if (i < U) mass[i + 1] = sum + own;
      sum += __shfl_sync(kAll, own, 31);
    }
    __syncwarp();

    const T shift = p.jitter ? p.jitter[2 * ray + 1] : T(0.5);
    for (int64_t j = lane; j <= I; j += 32) {
      const T wanted = (static_cast<T>(j) + shift) / static_cast<T>(I + 1) * mass[U];
      const int k = math::section_of(wanted, static_cast<int>(U), [&](int i) { return mass[i]; });
      fine[j] = math::place_in_section(wanted, mass[k], mass[k + 1], coarse[k], coarse[k + 1]);
    }
    __syncwarp();

    // Both lists ascend: a value's place is its own number and how many of the other list come before it.
    T* const edges = p.edges + ray * (U + I + 1);
    for (int64_t i = lane; i < U; i += 32) edges[i + count_below<false>(fine, I, coarse[i])] = coarse[i];
    for (int64_t j = lane; j < I; j += 32) edges[j + count_below<true>(coarse, U, fine[j])] = fine[j];
    if (lane == 0) edges[U + I] = math::max_(coarse[U], fine[I]);
    __syncwarp();
  }
}

}  // namespace

template <class T>
cudaError_t launch_sdf_sample_uniform(const SdfSampleParams<T>& p, T* coarse, cudaStream_t stream) {
  const int blocks = resident_blocks((p.rays() * (p.n_uniform + 1) + kSampleBlock - 1) / kSampleBlock, 8);
  return launch(sdf_march_uniform_kernel<T>, dim3(static_cast<unsigned>(blocks)), dim3(kSampleBlock), 0, stream, p,
                coarse);
}

template <class T>
SdfMarchGrid sdf_march_field_grid(const SdfMarchCudaParams<T>& p) {
  return grid_of<T>((p.rays() * p.S + kThreads - 1) / kThreads, 2, FieldMemory<T>(p.sizes, p.fused, nullptr).count);
}

template <class T, bool fixed>
static cudaError_t launch_field(const SdfMarchCudaParams<T>& p, cudaStream_t stream) {
  const auto kernel = sdf_march_field_kernel<T, fixed>;
  const size_t shared = fixed ? sizeof(T) * (p.sizes.count() + size_t{kWarps} * kTile) : 0;
  const cudaError_t status = allow_shared(kernel, shared);
  if (status != cudaSuccess) return status;
  return launch(kernel, dim3(static_cast<unsigned>(sdf_march_field_grid(p).blocks)), dim3(kThreads), shared, stream, p);
}

template <class T>
cudaError_t launch_sdf_march_field(const SdfMarchCudaParams<T>& p, cudaStream_t stream) {
  if constexpr (sizeof(T) == 4)
    if (p.fused) return launch_field<T, true>(p, stream);
  return launch_field<T, false>(p, stream);
}

template <class T>
cudaError_t launch_sdf_sample(const SdfSampleParams<T>& p, const SdfSampleMemory<T>& memory, cudaStream_t stream) {
  const int blocks = resident_blocks((p.rays() + kSampleWarps - 1) / kSampleWarps, 8);
  return launch(sdf_march_sample_kernel<T>, dim3(static_cast<unsigned>(blocks)), dim3(kSampleBlock), 0, stream, p,
                memory);
}

#define MIM4D_INSTANTIATE_FIELD(T)                                          \
  template SdfMarchGrid sdf_march_field_grid(const SdfMarchCudaParams<T>&); \
  template cudaError_t launch_sdf_march_field(const SdfMarchCudaParams<T>&, cudaStream_t);
MIM4D_INSTANTIATE_FIELD(float)
MIM4D_INSTANTIATE_FIELD(double)
#undef MIM4D_INSTANTIATE_FIELD

#define MIM4D_INSTANTIATE(T)                                                                   \
  template cudaError_t launch_sdf_sample_uniform(const SdfSampleParams<T>&, T*, cudaStream_t); \
  template cudaError_t launch_sdf_sample(const SdfSampleParams<T>&, const SdfSampleMemory<T>&, cudaStream_t);
MIM4D_INSTANTIATE(float)
MIM4D_INSTANTIATE(double)
#undef MIM4D_INSTANTIATE

#define MIM4D_FIELD(T, fixed)                                                                                         \
  KernelEntry {                                                                                                       \
    "sdf_march_field<" #T ", " #fixed ">", reinterpret_cast<const void*>(&sdf_march_field_kernel<T, fixed>), kThreads \
  }
#define MIM4D_ENTRY(name, T)                                                                                  \
  KernelEntry {                                                                                               \
    "sdf_march_" #name "<" #T ">", reinterpret_cast<const void*>(&sdf_march_##name##_kernel<T>), kSampleBlock \
  }
std::span<const KernelEntry> sdf_march_sample_kernels() {
  static const KernelEntry kernels[] = {
      MIM4D_FIELD(float, true),     MIM4D_FIELD(float, false),  MIM4D_FIELD(double, false), MIM4D_ENTRY(uniform, float),
      MIM4D_ENTRY(uniform, double), MIM4D_ENTRY(sample, float), MIM4D_ENTRY(sample, double)};
  return kernels;
}
#undef MIM4D_FIELD
#undef MIM4D_ENTRY

}  // namespace mim4d

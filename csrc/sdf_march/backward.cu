// The backward pass at samples of rays on a GPU: they are independent of each other once the opacities' cotangents are
// known. A warp takes 32 samples at a time, runs them forward once more, and walks back.

#include "sdf_march/adjoint.cuh"
#include "sdf_march/reading.cuh"

namespace mim4d {
namespace {

template <class T>
struct BackwardMemory {
  SdfTape<T> tape;
  ColourTape<T> colour;
  TangentTape<T> dots;  // where the colour decoder's were
  Column<T> inv_s_bar;  // 1
  Column<T> f, qf, f_bar, f_dot, g, g_bar;
  Column<T> scratch;
  int count;

  template <class N>
  MIM4D_HD BackwardMemory(const N& net, bool fixed, T* base) {
    Columns<T> columns{base};
    const int C = net.C, H = net.H, G = net.G, R = net.R, L = net.L, M = net.M;
    // What is known to the compiler comes first: its offsets take no registers.
    inv_s_bar = columns.take(1), f = columns.take(C), qf = columns.take(C), f_bar = columns.take(C),
    f_dot = columns.take(C);
    g = columns.take(G), g_bar = columns.take(G);
    tape.x = columns.take(L * H), tape.q = columns.take(L * H);
    tape.slope = columns.take((L - 1) * H), tape.bend = columns.take((L - 1) * H);
    Columns<T> other = columns;
    colour.x = columns.take(M * R), colour.h = columns.take((M - 1) * R);
    dots.x = other.take(L * H), dots.y = other.take((L - 1) * H);
    if (other.count > columns.count) columns.count = other.count;
    scratch = columns.take(fixed ? 0 : kTaken * math::max_(H, math::max_(G, R)));
    count = columns.count;
  }
};

// Two blocks of a multiprocessor, where its shared memory holds both: what one waits for, the other hides. On an H200
// the kernel takes 2.5 ms instead of 4.2 (3072 rays of 96 samples), though up to ten values spill for it.
constexpr size_t kSharedOfTwo = size_t{160} << 10;
#if defined(__CUDA_ARCH__) && \
    (__CUDA_ARCH__ == 800 || __CUDA_ARCH__ == 870 || (__CUDA_ARCH__ >= 900 && __CUDA_ARCH__ < 1200))
constexpr int kFusedBlocks = 2;
#else
constexpr int kFusedBlocks = 1;
#endif

template <class T, bool fixed>
__global__ void __launch_bounds__(kThreads, fixed ? kFusedBlocks : 1)
    sdf_march_backward_kernel(SdfMarchCudaParams<T> p, SdfMarchCudaAdjoint<T> a) {
  MIM4D_DYN_SHARED(T, shared);
  const auto net = net_of<fixed>(p.sizes);
  using N = decltype(net_of<fixed>(p.sizes));
  const T* const w = block_net<fixed>(p.net, net.count(), shared);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t size = int64_t{kThreads} * BackwardMemory<T>(net, fixed, nullptr).count;
  const BackwardMemory<T> m(net, fixed, p.scratch + blockIdx.x * size + threadIdx.x);
  constexpr int kValues = Reading<T, fixed>::kValues > kStage ? Reading<T, fixed>::kValues : kStage;
  T* const stage = shared + (fixed ? net.count() : 0) + warp * kValues;
  const int64_t own = blockIdx.x * int64_t{kWarps} + warp;
  T* const sums = a.sums + own * net.gradients();
  Reading<T, fixed> reading{p, stage};
  m.inv_s_bar[0] = T(0);

  const int64_t samples = p.rays() * p.S;
  for (int64_t first = own * 32; first < samples; first += gridDim.x * int64_t{kWarps * 32}) {
    const bool exists = first + lane < samples;
    const int64_t index = exists ? first + lane : first;
    const T light = p.light.transmittance[index];
    // Samples that no light reaches matter through losses on the field itself alone.
    const bool lit = exists && light != T(0), alive = exists && (lit || a.sdf || a.gradient);
    if (!__any_sync(kAll, alive)) {
      if (exists) {
        if (a.to_tables) clear_tables(p, index);
        for (int d = 0; d < 3; ++d) {
          if (a.position) a.position[3 * index + d] = T(0);
          if (a.direction) a.direction[3 * index + d] = T(0);
        }
      }
      continue;
    }

    // Where the sample lies is made anew for each part: kept through all, it would cost the registers of another block.
    const auto locate = [&] {
      const Sample<T> s = sample_of(p, index / p.S, index % p.S);
      reading.locate(s, alive);
      return s;
    };
    Scratch<N::fixed, T> scratch{m.scratch};
    const Sample<T> first_part = locate();
    const auto read = reading.features(m.f);
    if constexpr (fixed)
      for (int c = 0; c < net.C; ++c) m.f[c] = read[c];
    const T sdf = sdf_forward<true>(net, w, m.f, first_part.position, m.tape, scratch, m.g);
    T n[3];
    const auto slope = reading.feature_slope(m.qf);
    sdf_reverse<true>(net, w, m.tape, scratch, slope, n);
    if constexpr (fixed)
      for (int c = 0; c < net.C; ++c) m.qf[c] = slope[c];
    const Sample<T> s = locate();
    reading.pull(n);

    const T inv_s = *p.sharpness;
    const Section<T> section = section_of(p, s, sdf, n, inv_s);
    const T alpha_bar = lit ? p.light.alpha[index] : T(0), weight = lit ? light * section.opacity.alpha : T(0);
    const auto by_alpha = math::opacity_adjoint(section.opacity, sdf, section.half, inv_s, alpha_bar);
    if (lit) m.inv_s_bar[0] += by_alpha.inv_s;
    const T cosine_bar = lit ? by_alpha.half * s.delta * T(0.5) * math::fall_slope(section.cosine, p.cos_anneal) : T(0);
    const T sdf_bar = (lit ? by_alpha.sdf : T(0)) + (alive && a.sdf ? a.sdf[index] : T(0));
    // Of direction and normal, in the order in which the colour decoder sees them.
    T e_bar[N::extra] = {}, position_bar[3] = {T(0), T(0), T(0)};
#pragma unroll
    for (int d = 0; d < 3; ++d) {
      e_bar[d] = lit ? cosine_bar * n[d] : T(0);
      e_bar[3 + d] = cosine_bar * s.direction[d] + (alive && a.gradient ? a.gradient[3 * index + d] : T(0));
    }
    if (__any_sync(kAll, lit)) {
      const T e[N::extra] = {s.direction[0], s.direction[1], s.direction[2], n[0], n[1], n[2], T(0), T(0)};
      T colour[3], colour_bar[3];
      colour_forward<true>(net, w, m.f, m.g, s.position, e, m.colour, scratch, colour);
#pragma unroll
      for (int k = 0; k < 3; ++k) {
        colour[k] = lit ? colour[k] : T(0);
        colour_bar[k] = lit && a.rgb ? a.rgb[3 * s.ray + k] * weight : T(0);
      }
      colour_backward(net, w, WarpSums<T>{a.rgb_net ? sums : nullptr, stage, lit}, m.f, m.g, s.position, e, colour,
                      colour_bar, m.colour, scratch, m.f_bar, m.g_bar, e_bar, position_bar);
    } else {
      for (int c = 0; c < net.C; ++c) m.f_bar[c] = T(0);
      for (int c = 0; c < net.G; ++c) m.g_bar[c] = T(0);
    }

    const T v[3] = {e_bar[3], e_bar[4], e_bar[5]};
    if (exists && a.direction)
      for (int d = 0; d < 3; ++d) a.direction[3 * index + d] = e_bar[d];
    const Sample<T> last_part = locate();
    const auto along = reading.along(v, m.f_dot);
    if constexpr (fixed)
      for (int c = 0; c < net.C; ++c) m.f_dot[c] = along[c];
    sdf_tangent(net, w, m.f_dot, v, m.tape, m.dots, scratch);
    sdf_backward(net, w, WarpSums<T>{a.sdf_net ? sums : nullptr, stage, alive}, m.f, m.f_dot, last_part.position, v,
                 sdf_bar, m.g_bar, m.tape, m.dots, scratch, m.f_bar, position_bar);
    if constexpr (fixed) reading.back(m.f_bar, m.qf, v, a.to_tables ? nullptr : a.grad_volume, position_bar);
    if (!exists) continue;
    if (a.to_tables) to_tables(p, index, alive, m.f_bar, m.qf, v);
#pragma unroll
    for (int d = 0; d < 3; ++d) {
      if (a.position) a.position[3 * index + d] = alive ? position_bar[d] : T(0);
    }
  }
  const T total = group_sum(m.inv_s_bar[0], 32);
  if (lane == 0) sums[net.inv_s()] = total;
}

}  // namespace

template <class T>
SdfMarchGrid sdf_march_backward_grid(const SdfMarchCudaParams<T>& p) {
  const int64_t each = p.fused && shared_of_multiprocessor() >= kSharedOfTwo ? 2 : 1;
  return grid_of<T>((p.rays() * p.S + kThreads - 1) / kThreads, each,
                    BackwardMemory<T>(p.sizes, p.fused, nullptr).count);
}

template <class T, bool fixed>
static cudaError_t launch_backward(const SdfMarchCudaParams<T>& p, const SdfMarchCudaAdjoint<T>& a,
                                   cudaStream_t stream) {
  const auto kernel = sdf_march_backward_kernel<T, fixed>;
  constexpr int values = Reading<T, fixed>::kValues > kStage ? Reading<T, fixed>::kValues : kStage;
  const size_t shared = sizeof(T) * ((fixed ? p.sizes.count() : 0) + size_t{kWarps} * values);
  const cudaError_t status = allow_shared(kernel, shared);
  if (status != cudaSuccess) return status;
  const auto blocks = static_cast<unsigned>(sdf_march_backward_grid(p).blocks);
  return launch(kernel, dim3(blocks), dim3(kThreads), shared, stream, p, a);
}

template <class T>
cudaError_t launch_sdf_march_backward(const SdfMarchCudaParams<T>& p, const SdfMarchCudaAdjoint<T>& a,
                                      cudaStream_t stream) {
  if constexpr (sizeof(T) == 4)
    if (p.fused) return launch_backward<T, true>(p, a, stream);
  return launch_backward<T, false>(p, a, stream);
}

#define MIM4D_INSTANTIATE(T)                                                                                  \
  template SdfMarchGrid sdf_march_backward_grid(const SdfMarchCudaParams<T>&);                                \
  template cudaError_t launch_sdf_march_backward(const SdfMarchCudaParams<T>&, const SdfMarchCudaAdjoint<T>&, \
                                                 cudaStream_t);
MIM4D_INSTANTIATE(float)
MIM4D_INSTANTIATE(double)
#undef MIM4D_INSTANTIATE

#define MIM4D_ENTRY(T, fixed)                                                                                      \
  KernelEntry {                                                                                                    \
    "sdf_march_backward<" #T ", " #fixed ">", reinterpret_cast<const void*>(&sdf_march_backward_kernel<T, fixed>), \
        kThreads                                                                                                   \
  }
std::span<const KernelEntry> sdf_march_backward_kernels() {
  static const KernelEntry kernels[] = {MIM4D_ENTRY(float, true), MIM4D_ENTRY(float, false),
                                        MIM4D_ENTRY(double, false)};
  return kernels;
}
#undef MIM4D_ENTRY

}  // namespace mim4d

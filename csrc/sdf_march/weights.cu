// The weights on a GPU, on their way from the op's tensors to the kernels' array, and their gradients on the way back.

#include <vector>

#include "cuda/launch.cuh"
#include "sdf_march/cuda.h"

namespace mim4d {
namespace {

constexpr int kPackThreads = 128;

template <class T>
struct PackedMatrices {
  PackedMatrix<T> matrix[kPackedMatrices];
};

// A block has a matrix.
template <class T, bool unpack>
__global__ void __launch_bounds__(kPackThreads) sdf_march_pack_kernel(PackedMatrices<T> list, T* net) {
  const PackedMatrix<T>& m = list.matrix[blockIdx.x];
  for (int i = static_cast<int>(threadIdx.x); i < m.rows * m.columns; i += kPackThreads) {
    const int o = i / m.columns, k = i % m.columns;
    T& own = m.tensor[static_cast<int64_t>(o) * m.stride + m.first + k];
    T& packed = net[m.place + k * m.packed_stride + o];
    if constexpr (unpack)
      own = packed;
    else
      packed = own;
  }
}

constexpr int kSlices = 8;  // of the warps: each is summed by a thread of its own

// In double, in an order that does not depend on anything but the number of warps.
template <class T>
__global__ void __launch_bounds__(32 * kSlices)
    sdf_march_sum_kernel(const T* sums, int64_t warps, int values, T* total) {
  MIM4D_DYN_SHARED(double, parts);  // [kSlices][32]
  const int lane = static_cast<int>(threadIdx.x) % 32, slice = static_cast<int>(threadIdx.x) / 32;
  const int64_t value = blockIdx.x * int64_t{32} + lane;
  double sum = 0;
  if (value < values)
    for (int64_t w = warps * slice / kSlices; w < warps * (slice + 1) / kSlices; ++w)
      sum += static_cast<double>(sums[w * values + value]);
  parts[slice * 32 + lane] = sum;
  __syncthreads();
  if (slice != 0 || value >= values) return;
  for (int s = 1; s < kSlices; ++s) sum += parts[s * 32 + lane];
  total[value] = static_cast<T>(sum);
}

}  // namespace

template <class T>
cudaError_t launch_sdf_march_pack(std::span<const PackedMatrix<T>> matrices, T* net, bool unpack, cudaStream_t stream) {
  for (size_t first = 0; first < matrices.size(); first += kPackedMatrices) {
    const size_t count = matrices.size() - first < kPackedMatrices ? matrices.size() - first : kPackedMatrices;
    PackedMatrices<T> list{};
    for (size_t i = 0; i < count; ++i) list.matrix[i] = matrices[first + i];
    const auto kernel = unpack ? sdf_march_pack_kernel<T, true> : sdf_march_pack_kernel<T, false>;
    const cudaError_t status =
        launch(kernel, dim3(static_cast<unsigned>(count)), dim3(kPackThreads), 0, stream, list, net);
    if (status != cudaSuccess) return status;
  }
  return cudaSuccess;
}

template <class T>
cudaError_t launch_sdf_march_sum(const T* sums, int64_t warps, int values, T* total, cudaStream_t stream) {
  return launch(sdf_march_sum_kernel<T>, dim3(static_cast<unsigned>((values + 31) / 32)), dim3(32 * kSlices),
                sizeof(double) * 32 * kSlices, stream, sums, warps, values, total);
}

#define MIM4D_INSTANTIATE(T)                                                                            \
  template cudaError_t launch_sdf_march_pack(std::span<const PackedMatrix<T>>, T*, bool, cudaStream_t); \
  template cudaError_t launch_sdf_march_sum(const T*, int64_t, int, T*, cudaStream_t);
MIM4D_INSTANTIATE(float)
MIM4D_INSTANTIATE(double)
#undef MIM4D_INSTANTIATE

#define MIM4D_PACK(T, unpack)                                                                                \
  KernelEntry {                                                                                              \
    "sdf_march_pack<" #T ", " #unpack ">", reinterpret_cast<const void*>(&sdf_march_pack_kernel<T, unpack>), \
        kPackThreads                                                                                         \
  }
#define MIM4D_SUM(T) \
  KernelEntry { "sdf_march_sum<" #T ">", reinterpret_cast<const void*>(&sdf_march_sum_kernel<T>), 32 * kSlices }
std::span<const KernelEntry> sdf_march_weight_kernels() {
  static const KernelEntry kernels[] = {MIM4D_PACK(float, false),  MIM4D_PACK(float, true),  MIM4D_SUM(float),
                                        MIM4D_PACK(double, false), MIM4D_PACK(double, true), MIM4D_SUM(double)};
  return kernels;
}
#undef MIM4D_PACK
#undef MIM4D_SUM

std::span<const KernelEntry> sdf_march_kernels() {
  static const std::vector<KernelEntry> kernels = [] {
    std::vector<KernelEntry> all;
    for (const auto& list : {sdf_march_forward_kernels(), sdf_march_backward_kernels(), sdf_march_ray_kernels(),
                             sdf_march_sample_kernels(), sdf_march_weight_kernels()})
      all.insert(all.end(), list.begin(), list.end());
    return all;
  }();
  return kernels;
}

}  // namespace mim4d

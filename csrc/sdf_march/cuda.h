#pragma once

#include <cuda_runtime_api.h>
#include <span>

#include "cuda/kernel_entry.h"
#include "sdf_march/cuda_net.h"
#include "sdf_march/params.h"

namespace mim4d {

// N = B R S samples, ray by ray. A field is read in one of two ways. Fused: by the kernel itself, trilinear, C = 32 and
// hidden widths of 16, in float. From tables: any sizes and modes; voxel_sample has read `features` and `jacobian`.
template <class T>
struct SdfTables {
  T* features;  // [N, C]
  T* jacobian;  // [N, C, 3] by the normalised coordinates
};

// What the forward pass leaves for the backward pass.
template <class T>
struct SdfMarchLight {
  T* alpha;          // [N], then its cotangent; null: not wanted
  T* transmittance;  // [N], likewise
  T* colour;         // [N, 3], likewise; 0 where no light comes
};

template <class T>
struct SdfMarchCudaParams : SdfMarchParams<T> {
  const T* sharpness;
  const T* net;  // the weights
  SdfMarchNet<AnyWidths> sizes;
  bool fused;
  SdfTables<T> tables;
  SdfMarchLight<T> light;
  T* scratch;  // of all blocks
};

template <class T>
struct SdfMarchCudaAdjoint : SdfMarchAdjoint<T> {
  T* sums;          // [warps, sizes.gradients()] of the weights' gradients, zeros at first
  T* position;      // [N, 3] cotangent, or null: not wanted
  T* direction;     // [N, 3] cotangent but for what comes by the position, or null
  const T* slopes;  // [N, 3] by the normalised coordinates: what voxel_sample found for the positions, or null
  bool to_tables;   // leave the features' cotangents in the tables: nothing is added to grad_volume
};

// Blocks of a launch, and values of scratch memory for all of them.
struct SdfMarchGrid {
  int blocks, warps;
  int64_t scratch;
};

constexpr int kMaxFusedNet = 12000;  // values of weights that leave room for all else in 99 KiB of shared memory

template <class T>
SdfMarchGrid sdf_march_forward_grid(const SdfMarchCudaParams<T>& p);
template <class T>
SdfMarchGrid sdf_march_backward_grid(const SdfMarchCudaParams<T>& p);

// -> depth, opacity; and rgb, sdf, gradient, weights, light: each unless it is null
template <class T>
cudaError_t launch_sdf_march_forward(const SdfMarchCudaParams<T>& p, cudaStream_t stream);

// light, with the cotangent of alpha -> sums, position, direction; grad_volume (which must hold zeros) or tables
template <class T>
cudaError_t launch_sdf_march_backward(const SdfMarchCudaParams<T>& p, const SdfMarchCudaAdjoint<T>& a,
                                      cudaStream_t stream);

// ---- per ray, and per sample

// rays -> points [B, R S, 3], normalised coordinates
template <class T>
cudaError_t launch_sdf_march_points(const SdfMarchParams<T>& p, T* points, cudaStream_t stream);

// light, depth, opacity and the cotangents of the results -> light.alpha: its cotangent
template <class T>
cudaError_t launch_sdf_march_composite_adjoint(const SdfMarchParams<T>& p, const SdfMarchLight<T>& light,
                                               const SdfMarchAdjoint<T>& a, cudaStream_t stream);

// position, direction, slopes -> grad_origins, grad_directions
template <class T>
cudaError_t launch_sdf_march_ray_sums(const SdfMarchParams<T>& p, const SdfMarchCudaAdjoint<T>& a, cudaStream_t stream);

// ---- sdf_sample

// What stands between its kernels, for each of the B R rays.
template <class T>
struct SdfSampleMemory {
  T* coarse;  // [n_uniform + 1] edges of equal sections
  T* sdf;     // [n_uniform] at their starts
  T* mass;    // [n_uniform + 1] weight of the sections before
  T* fine;    // [n_importance + 1]
};

// near, far, jitter -> coarse
template <class T>
cudaError_t launch_sdf_sample_uniform(const SdfSampleParams<T>& p, T* coarse, cudaStream_t stream);

// p.edges -> p.sdf
template <class T>
SdfMarchGrid sdf_march_field_grid(const SdfMarchCudaParams<T>& p);
template <class T>
cudaError_t launch_sdf_march_field(const SdfMarchCudaParams<T>& p, cudaStream_t stream);

// coarse, sdf -> edges
template <class T>
cudaError_t launch_sdf_sample(const SdfSampleParams<T>& p, const SdfSampleMemory<T>& memory, cudaStream_t stream);

// ---- weights

// A matrix, or a part of one: `tensor` [o][k] with this stride, from its element `first` on; packed [k][o] at `place`.
template <class T>
struct PackedMatrix {
  T* tensor;
  int rows, columns, stride, first, place, packed_stride;
};

// Matrices at once: they are arguments of the kernel, of which there may be 4 KB.
constexpr int kPackedMatrices = 80;

// tensors -> net, or the other way round
template <class T>
cudaError_t launch_sdf_march_pack(std::span<const PackedMatrix<T>> matrices, T* net, bool unpack, cudaStream_t stream);

// sums [warps, values] -> total [values], added in a fixed order
template <class T>
cudaError_t launch_sdf_march_sum(const T* sums, int64_t warps, int values, T* total, cudaStream_t stream);

// Of all files, and of each.
std::span<const KernelEntry> sdf_march_kernels();
std::span<const KernelEntry> sdf_march_forward_kernels();
std::span<const KernelEntry> sdf_march_backward_kernels();
std::span<const KernelEntry> sdf_march_ray_kernels();
std::span<const KernelEntry> sdf_march_sample_kernels();
std::span<const KernelEntry> sdf_march_weight_kernels();

}  // namespace mim4d

#pragma once

#include <cuda_runtime_api.h>
#include <span>

#include "cuda/kernel_entry.h"
#include "ms_deform_attn/params.h"

namespace mim4d {

constexpr int kKnownLevels = 16;  // as many as travel as arguments of a kernel

template <class V, class T = V>
struct MsDeformAttnCudaParams : MsDeformAttnParams<V, T> {
  const int64_t* shapes;  // [L, 2] and [L] in the memory of the device, or null: `known` has the levels
  const int64_t* starts;
  DeformLevel known[kKnownLevels];
  int grids;  // the queries are the cells of so many levels, row by row, and are taken tile by tile; 0: as they come
  int64_t tiles;  // of these, or about so many where the levels are known to the device alone

  // Queries that look at a common place: the cells of a map, in tiles.
  bool dense() const { return grids > 0; }
};

// V: float, double, __half or __nv_bfloat16. Levels that leave S are dropped, and so is each cell outside of its level.

// value -> out
template <class V, class T>
cudaError_t launch_ms_deform_attn_forward(const MsDeformAttnCudaParams<V, T>& p, cudaStream_t stream);

// value, grad -> grad_locations, grad_weights, each unless it is null
template <class V, class T>
cudaError_t launch_ms_deform_attn_points(const MsDeformAttnCudaParams<V, T>& p, cudaStream_t stream);

// The gradient of value: grad -> grad_value, which must hold zeros.

// each point adds to its cells, by atomics
template <class V, class T>
cudaError_t launch_ms_deform_attn_scatter(const MsDeformAttnCudaParams<V, T>& p, cudaStream_t stream);

// each tile of queries adds up a window of every level in shared memory, and that by atomics
template <class V, class T>
cudaError_t launch_ms_deform_attn_window(const MsDeformAttnCudaParams<V, T>& p, cudaStream_t stream);

// each cell looks for its points: no atomics, the same bits every time, and no zeros needed
template <class V, class T>
cudaError_t launch_ms_deform_attn_owner(const MsDeformAttnCudaParams<V, T>& p, cudaStream_t stream);

// Of all files, and of each.
std::span<const KernelEntry> ms_deform_attn_kernels();
std::span<const KernelEntry> ms_deform_attn_rows_kernels();
std::span<const KernelEntry> ms_deform_attn_value_kernels();

}  // namespace mim4d

// What a GPU gives at best: memory and L2 bandwidth, atomics, tensor cores, fused multiply-adds, launches. Every kernel
// leaves a result that only the whole of its work gives; ceilings.py compares it and then believes the time. No torch
// in here: pointers in, an error code out.

#include <cstdint>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "cuda/launch.cuh"
#include "cuda/reduce.cuh"

namespace mim4d {
namespace {

constexpr int kThreads = 256;  // in a block
constexpr int kUnroll = 4;     // loads of 16 bytes that a thread has under way
constexpr int kChains = 8;     // independent results of a thread or warp: enough to hide the latency of a unit

// --- memory --------------------------------------------------------------------------------------------------------

// Past the L1, which would answer in place of the L2; volatile, so that no pass over the same data is left out.
__device__ __forceinline__ uint4 load_l2(const uint4* p) {
#if defined(__CUDACC__)
  uint4 v;
  asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
  return v;
#else
  return *p;
#endif
}

__global__ void __launch_bounds__(kThreads) copy_kernel(const uint4* in, uint4* out, int64_t n) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < n; i += kUnroll * step) {
    uint4 v[kUnroll];
#pragma unroll
    for (int k = 0; k < kUnroll; ++k) v[k] = i + k * step < n ? load_l2(in + i + k * step) : uint4{};
#pragma unroll
    for (int k = 0; k < kUnroll; ++k)
      if (i + k * step < n) out[i + k * step] = v[k];
  }
}

// sums[warp] = all words that the warp read in all passes, modulo 2^32
__global__ void __launch_bounds__(kThreads) read_kernel(const uint4* in, int64_t n, int passes, uint32_t* sums) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  const uint32_t hop = 37 % gridDim.x;  // to another share in every pass; dividing in each could cost what a load does
  uint32_t sum = 0, share = blockIdx.x;
  for (int pass = 0; pass < passes; ++pass) {
    for (int64_t i = static_cast<int64_t>(share) * kThreads + threadIdx.x; i < n; i += kUnroll * step) {
      uint4 v[kUnroll];
#pragma unroll
      for (int k = 0; k < kUnroll; ++k) v[k] = i + k * step < n ? load_l2(in + i + k * step) : uint4{};
#pragma unroll
      for (int k = 0; k < kUnroll; ++k) sum += v[k].x + v[k].y + v[k].z + v[k].w;
    }
    share += hop;
    if (share >= gridDim.x) share -= gridDim.x;
  }
  sum = group_sum(sum, 32);
  if (threadIdx.x % 32 == 0) sums[(static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / 32] = sum;
}

// --- atomics -------------------------------------------------------------------------------------------------------

// p[0..V) += x by as few instructions as the GPU has for it.
template <int V>
__device__ __forceinline__ void add(float* p, float x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if constexpr (V == 4)
    atomicAdd(reinterpret_cast<float4*>(p), make_float4(x, x, x, x));
  else if constexpr (V == 2)
    atomicAdd(reinterpret_cast<float2*>(p), make_float2(x, x));
  else
    atomicAdd(p, x);
#else
#pragma unroll
  for (int i = 0; i < V; ++i) atomicAdd(p + i, x);
#endif
}

// atomicAdd() of pairs returns the old values and asks at run time whether p is in shared memory; a reduction does
// neither.
template <int V>
__device__ __forceinline__ void add(__half* p, float x) {
  static_assert(V == 2);
#if defined(__CUDACC__)
  const __half2 pair = __floats2half2_rn(x, x);
  asm volatile("red.global.add.noftz.f16x2 [%0], %1;" ::"l"(p), "r"(reinterpret_cast<const uint32_t&>(pair))
               : "memory");
#else
  atomicAdd(p, __half(x));
  atomicAdd(p + 1, __half(x));
#endif
}

template <int V>
__device__ __forceinline__ void add(__nv_bfloat16* p, float x) {
  static_assert(V == 2);
#if !defined(__CUDACC__)
  atomicAdd(p, __nv_bfloat16(x));
  atomicAdd(p + 1, __nv_bfloat16(x));
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  const __nv_bfloat162 pair = __floats2bfloat162_rn(x, x);
  asm volatile("red.global.add.noftz.bf16x2 [%0], %1;" ::"l"(p), "r"(reinterpret_cast<const uint32_t&>(pair))
               : "memory");
#else
  atomicAdd(reinterpret_cast<__nv_bfloat162*>(p), __floats2bfloat162_rn(x, x));  // a loop of compare and swap
#endif
}

// table[r] += 1 for every r >= 0 of rows, table[~r] -= 1 for every r < 0. A row is V << lane_bits values, V of them to
// a thread: the threads of a row are neighbours, as in the backward kernels of the ops. A thread takes kUnroll rows,
// far apart, and has all their codes under way at once: it is to wait for the additions, not for what they add to.
template <class S, int V>
__global__ void __launch_bounds__(kThreads) atomic_kernel(S* table, const int32_t* rows, int64_t count, int lane_bits) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t first = thread >> lane_bits, step = static_cast<int64_t>(gridDim.x) * (kThreads >> lane_bits);
  const int64_t lane = thread & ((1 << lane_bits) - 1);
  int32_t codes[kUnroll];
#pragma unroll
  for (int k = 0; k < kUnroll; ++k) codes[k] = first + k * step < count ? rows[first + k * step] : 0;
#pragma unroll
  for (int k = 0; k < kUnroll; ++k) {
    if (first + k * step >= count) return;
    const int64_t row = codes[k] < 0 ? ~codes[k] : codes[k];
    add<V>(table + ((row << lane_bits) + lane) * V, codes[k] < 0 ? -1.0f : 1.0f);
  }
}

// --- arithmetic ----------------------------------------------------------------------------------------------------

// c += a b of one warp: a is 16 x 16, b 16 x 8, c 16 x 8, each thread holding the pieces that mma.sync wants of it.
__device__ __forceinline__ void multiply(const uint32_t (&a)[4], const uint32_t (&b)[2], float (&c)[4]) {
#if defined(__CUDACC__)
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else  // the same from the pieces as PTX lays them out: in thread 4 r + p, the pairs p and p + 4 of rows r and r + 8 of
       // a
  const int row = threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
  for (int pair = 0; pair < 8; ++pair) {
    uint32_t x[2], y[2];
    for (int half = 0; half < 2; ++half) {
      x[half] = __shfl_sync(0xffffffffu, a[half + pair / 4 * 2], row * 4 + pair % 4);
      y[half] = __shfl_sync(0xffffffffu, b[pair / 4], (column + half) * 4 + pair % 4);
    }
    for (int i = 0; i < 4; ++i) {
      c[i] += __uint_as_float(x[i / 2] << 16) * __uint_as_float(y[i % 2] << 16);
      c[i] += __uint_as_float(x[i / 2] & 0xffff0000u) * __uint_as_float(y[i % 2] & 0xffff0000u);
    }
  }
#endif
}

// out[warp] = kChains x steps x (a b), 16 x 8
__global__ void __launch_bounds__(kThreads)
    mma_kernel(const __nv_bfloat16* a, const __nv_bfloat16* b, int steps, float* out) {
  const int lane = threadIdx.x % 32, row = lane / 4, pair = lane % 4 * 2;
  const auto two = [](const __nv_bfloat16* p) { return *reinterpret_cast<const uint32_t*>(p); };
  const uint32_t fa[4] = {two(a + row * 16 + pair), two(a + (row + 8) * 16 + pair), two(a + row * 16 + pair + 8),
                          two(a + (row + 8) * 16 + pair + 8)};
  const uint32_t fb[2] = {two(b + row * 16 + pair), two(b + row * 16 + pair + 8)};
  float c[kChains][4] = {};
  for (int step = 0; step < steps; ++step) {
#pragma unroll
    for (int j = 0; j < kChains; ++j) multiply(fa, fb, c[j]);
  }
  float* tile = out + (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / 32 * 128;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    float sum = 0;
#pragma unroll
    for (int j = 0; j < kChains; ++j) sum += c[j][i];
    tile[(row + i / 2 * 8) * 8 + pair + i % 2] = sum;
  }
}

// out[thread] = sum over j < kChains of (threadIdx.x + j + steps x increment), if factor is 1
__global__ void __launch_bounds__(kThreads) fma_kernel(float factor, float increment, int steps, float* out) {
  float x[kChains];
#pragma unroll
  for (int j = 0; j < kChains; ++j) x[j] = static_cast<float>(threadIdx.x + j);
#pragma unroll 16  // each instruction of the loop itself takes the place of an FMA
  for (int step = 0; step < steps; ++step) {
#pragma unroll
    for (int j = 0; j < kChains; ++j) x[j] = fmaf(x[j], factor, increment);
  }
  float sum = 0;
#pragma unroll
  for (int j = 0; j < kChains; ++j) sum += x[j];
  out[static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x] = sum;
}

// --- launches ------------------------------------------------------------------------------------------------------

// As good as empty, but it cannot be left out.
__global__ void tick_kernel(int32_t* counter) {
  if (threadIdx.x == 0) atomicAdd(counter, 1);
}

template <class S, int V>
cudaError_t atomics(void* table, const int32_t* rows, int64_t count, int channels, cudaStream_t stream) {
  int lane_bits = 0;
  while (V << lane_bits < channels) ++lane_bits;
  if (V << lane_bits != channels) return cudaErrorInvalidValue;
  if (1 << lane_bits > kThreads) return cudaErrorInvalidValue;
  const int64_t blocks = ((count << lane_bits) + kUnroll * kThreads - 1) / (kUnroll * kThreads);
  return launch(atomic_kernel<S, V>, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0, stream,
                static_cast<S*>(table), rows, count, lane_bits);
}

}  // namespace
}  // namespace mim4d

extern "C" {

const char* ceiling_error(int status) { return cudaGetErrorString(static_cast<cudaError_t>(status)); }
int ceiling_threads() { return mim4d::kThreads; }
int ceiling_chains() { return mim4d::kChains; }

int ceiling_copy(const void* in, void* out, int64_t packs, int blocks, cudaStream_t stream) {
  return mim4d::launch(mim4d::copy_kernel, dim3(blocks), dim3(mim4d::kThreads), 0, stream,
                       static_cast<const uint4*>(in), static_cast<uint4*>(out), packs);
}

int ceiling_read(const void* in, int64_t packs, int passes, uint32_t* sums, int blocks, cudaStream_t stream) {
  return mim4d::launch(mim4d::read_kernel, dim3(blocks), dim3(mim4d::kThreads), 0, stream,
                       static_cast<const uint4*>(in), packs, passes, sums);
}

// kind: 0, 1, 2: float by 1, 2, 4; 3: half by 2; 4: bfloat16 by 2
int ceiling_atomics(int kind, void* table, const int32_t* rows, int64_t count, int channels, cudaStream_t stream) {
  switch (kind) {
    case 0:
      return mim4d::atomics<float, 1>(table, rows, count, channels, stream);
    case 1:
      return mim4d::atomics<float, 2>(table, rows, count, channels, stream);
    case 2:
      return mim4d::atomics<float, 4>(table, rows, count, channels, stream);
    case 3:
      return mim4d::atomics<__half, 2>(table, rows, count, channels, stream);
    case 4:
      return mim4d::atomics<__nv_bfloat16, 2>(table, rows, count, channels, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

int ceiling_mma(const void* a, const void* b, int steps, float* out, int blocks, cudaStream_t stream) {
  return mim4d::launch(mim4d::mma_kernel, dim3(blocks), dim3(mim4d::kThreads), 0, stream,
                       static_cast<const __nv_bfloat16*>(a), static_cast<const __nv_bfloat16*>(b), steps, out);
}

int ceiling_fma(float factor, float increment, int steps, float* out, int blocks, cudaStream_t stream) {
  return mim4d::launch(mim4d::fma_kernel, dim3(blocks), dim3(mim4d::kThreads), 0, stream, factor, increment, steps,
                       out);
}

int ceiling_launches(int32_t* counter, int count, cudaStream_t stream) {
  int status = cudaSuccess;
  for (int i = 0; i < count && status == cudaSuccess; ++i)
    status = mim4d::launch(mim4d::tick_kernel, dim3(1), dim3(32), 0, stream, counter);
  return status;
}

}  // extern "C"

#pragma once
// V neighbouring values, moved by one instruction and computed with in T.

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

namespace mim4d {

// Channels of a pack: 16 bytes, but no more than 4, so that what a thread holds of them stays in registers.
template <class S>
constexpr int kPack = 16 / sizeof(S) < 4 ? 16 / sizeof(S) : 4;

// 2^lane_bits threads take a row of C channels: enough for all of its packs at once, at most a warp.
inline int lane_bits(int64_t C, int pack) {
  int bits = 0;
  while (bits < 5 && int64_t{pack} << bits < C) ++bits;
  return bits;
}

template <class S, int V>
struct alignas(sizeof(S) * V) Pack {
  S v[V];
};

template <class T, class S>
__device__ __forceinline__ T widen(S x) {
  return static_cast<T>(static_cast<float>(x));
}
template <>
__device__ __forceinline__ double widen<double, double>(double x) {
  return x;
}

template <int V, class S, class T>
__device__ __forceinline__ void load_pack(const S* p, T (&x)[V]) {
  const Pack<S, V> pack = *reinterpret_cast<const Pack<S, V>*>(p);
#pragma unroll
  for (int i = 0; i < V; ++i) x[i] = widen<T>(pack.v[i]);
}

// Zeros where the pack is not to be read.
template <int V, class S, class T>
__device__ __forceinline__ void load_if(bool in, const S* p, T (&x)[V]) {
  if (in) {
    load_pack(p, x);
  } else {
#pragma unroll
    for (int i = 0; i < V; ++i) x[i] = T(0);
  }
}

template <int V, class S, class T>
__device__ __forceinline__ void store_pack(S* p, const T (&x)[V]) {
  Pack<S, V> pack;
#pragma unroll
  for (int i = 0; i < V; ++i) pack.v[i] = static_cast<S>(x[i]);
  *reinterpret_cast<Pack<S, V>*>(p) = pack;
}

// p[i] += x[i], each atomically, in no fixed order.
template <int V, class T>
__device__ __forceinline__ void atomic_add_pack(T* p, const T (&x)[V]) {
#pragma unroll
  for (int i = 0; i < V; ++i) atomicAdd(p + i, x[i]);
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900 && CUDART_VERSION >= 12010
__device__ __forceinline__ void atomic_add_pack(float* p, const float (&x)[4]) {  // one reduction of 16 bytes
  atomicAdd(reinterpret_cast<float4*>(p), make_float4(x[0], x[1], x[2], x[3]));
}
#endif

}  // namespace mim4d

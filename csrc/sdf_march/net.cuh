#pragma once
// Small networks on a GPU: a thread has a sample. Vectors as wide as a hidden layer are in its registers where the
// widths are known, all longer ones in memory, value by value of all threads of a block: coalesced.

#include "cuda/launch.cuh"
#include "cuda/pack.cuh"
#include "math/scalar.h"
#include "sdf_march/cuda.h"

namespace mim4d {
namespace {

constexpr int kRayThreads = 96;  // that share a ray
constexpr int kRays = 2;         // of a block
constexpr int kThreads = kRayThreads * kRays;
constexpr int kWarps = kThreads / 32;
constexpr unsigned kAll = 0xffffffffu;

// A vector of one thread in memory. All of a thread begin at one base: an address is two registers, a place is one.
template <class T, int stride = kThreads>
struct Column {
  T* base;
  int first;
  __device__ T& operator[](int i) const { return base[first + i * stride]; }
  __device__ Column operator+(int i) const { return {base, first + i * stride}; }
};

// One in registers: indices must be known where it is used.
template <class T>
struct Registers {
  T v[FixedWidths::H];
  __device__ T& operator[](int i) { return v[i]; }
  __device__ const T& operator[](int i) const { return v[i]; }
};
static_assert(FixedWidths::H == FixedWidths::G && FixedWidths::H == FixedWidths::R);

// Hands out vectors as wide as a hidden layer. Copied into a function, what it takes is free again after it.
template <bool fixed, class T>
struct Scratch {
  Column<T> next;
  __device__ Registers<T> take(int) { return {}; }
};
template <class T>
struct Scratch<false, T> {
  Column<T> next;
  __device__ Column<T> take(int n) {
    const Column<T> own = next;
    next = next + n;
    return own;
  }
};
constexpr int kTaken = 6;  // vectors that are out at once, at most

// Hands out longer vectors from `base` on, which may be null: then it counts alone.
template <class T>
struct Columns {
  T* base;
  int count = 0;
  MIM4D_HD Column<T> take(int n) {
    const int first = count * kThreads;
    count += n;
    return {base, first};
  }
};

// How far loops over a layer's width are unrolled: wholly where it is known.
template <class N>
constexpr int kWidth = N::fixed ? FixedWidths::H : 1;

// And loops over inputs: wholly where those lie in registers.
template <class N, class X>
constexpr int kInputs = 16;
template <class N, class T, int stride>
constexpr int kInputs<N, Column<T, stride>> = N::fixed ? 4 : 1;

// y[o] = start(o) + (W x)[o] with w[k][o]; the number of outputs is a multiple of the tile
template <class N, int tile = N::tile, class T, class X, class Y, class Start>
__device__ __forceinline__ void multiply(int inputs, int outputs, const X& x, const T* w, Y&& y, Start&& start) {
  [[maybe_unused]] constexpr int tiles = kWidth<N>, unroll = kInputs<N, X>;
#pragma unroll tiles
  for (int o = 0; o < outputs; o += tile) {
    T sum[tile];
#pragma unroll
    for (int i = 0; i < tile; ++i) sum[i] = start(o + i);
#pragma unroll unroll
    for (int k = 0; k < inputs; ++k) {
      const T value = x[k];
#pragma unroll
      for (int i = 0; i < tile; i += 4) {
        T row[4];
        load_pack(w + k * outputs + o + i, row);
#pragma unroll
        for (int j = 0; j < 4; ++j) sum[i + j] += row[j] * value;
      }
    }
#pragma unroll
    for (int i = 0; i < tile; ++i) y[o + i] = sum[i];
  }
}

// emit(k, (W^T z)[k]) with w[k][o], for `rows` of them, a multiple of J; to_registers: by indices that are known
template <class N, int J, bool to_registers, class T, class Z, class Emit>
__device__ __forceinline__ void multiply_back(int rows, int width, const Z& z, const T* w, Emit&& emit) {
  [[maybe_unused]] constexpr int whole = kWidth<N>, unroll = to_registers ? 16 : 1;
#pragma unroll unroll
  for (int k = 0; k < rows; k += J) {
    T sum[J];
#pragma unroll
    for (int j = 0; j < J; ++j) sum[j] = T(0);
#pragma unroll whole
    for (int o = 0; o < width; o += 4) {
#pragma unroll
      for (int j = 0; j < J; ++j) {
        T row[4];
        load_pack(w + (k + j) * width + o, row);
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[j] += row[i] * z[o + i];
      }
    }
#pragma unroll
    for (int j = 0; j < J; ++j) emit(k + j, sum[j]);
  }
}

template <bool fixed>
__device__ __forceinline__ auto net_of(const SdfMarchNet<AnyWidths>& sizes) {
  if constexpr (fixed)
    return SdfMarchNet<FixedWidths>{{}, sizes.L, sizes.M};
  else
    return sizes;
}

// The weights where a block reads them: in its shared memory where they fit. A barrier of the block.
template <bool fixed, class T>
__device__ __forceinline__ const T* block_net(const T* net, int count, T* shared) {
  if constexpr (fixed) {
    for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) shared[i] = net[i];
    __syncthreads();
    return shared;
  }
  return net;
}

}  // namespace
}  // namespace mim4d

// Kernels with a planted fault, each with its healthy twin: test_faults.py shows that the one is caught and that the
// other is clean. Plain CUDA, compiled by nvcc too.

#include <cstdint>
#include <cuda_runtime.h>
#include <exception>
#include <iterator>
#include <string>

#include "cuda/launch.cuh"
#include "cuda/pack.cuh"

namespace {

constexpr int kThreads = 64;

// data[i] becomes the sum of the data before and at i, in each block. The fault: nobody waits between reading the
// neighbour's sum and writing the own one.
template <bool kHealthy>
__global__ void missing_syncthreads(int* data, int) {
  __shared__ int sums[kThreads];
  const int t = threadIdx.x;
  sums[t] = data[t];
  __syncthreads();
  for (int step = 1; step < kThreads; step *= 2) {
    const int before = t >= step ? sums[t - step] : 0;
    if constexpr (kHealthy) __syncthreads();
    sums[t] += before;
    __syncthreads();
  }
  data[t] = sums[t];
}

// Each warp reverses its data in shared memory. The fault: its lanes do not wait for each other.
template <bool kHealthy>
__global__ void missing_syncwarp(int* data, int) {
  __shared__ int values[kThreads];
  const int t = threadIdx.x;
  values[t] = data[t];
  if constexpr (kHealthy) __syncwarp();
  data[t] = values[t ^ 31];
}

// The fault: two blocks count in one word without an atomic.
template <bool kHealthy>
__global__ void race_between_blocks(int* data, int) {
  if (threadIdx.x != 0) return;
  if constexpr (kHealthy)
    atomicAdd(data, 1);
  else
    data[0] += 1;
}

// The fault: the last thread writes one beyond the end.
template <bool kHealthy>
__global__ void out_of_bounds(int* data, int n) {
  const int i = threadIdx.x;
  if (i < n) data[kHealthy ? i : i + 1] = 1;
}

// The same in shared memory, in an array of a fixed size and in a dynamic one.
template <bool kHealthy>
__global__ void out_of_static_shared(int* data, int n) {
  __shared__ int values[kThreads];
  const int i = threadIdx.x;
  values[i] = i;
  __syncthreads();
  const int* neighbour = values + (kHealthy ? i ^ 1 : i + 1);
  if (i < n) data[i] = *neighbour;
}
template <bool kHealthy>
__global__ void out_of_dynamic_shared(int* data, int n) {
  MIM4D_DYN_SHARED(int, values);
  const int i = threadIdx.x;
  values[i] = i;
  __syncthreads();
  const int* neighbour = values + (kHealthy ? i ^ 1 : i + 1);
  if (i < n) data[i] = *neighbour;
}

// The fault: half of the block waits in a barrier, the other half in a shuffle that needs the first.
template <bool kHealthy>
__global__ void diverging_barrier(int* data, int) {
  const int t = threadIdx.x;
  if (kHealthy || t % 32 < 16) __syncthreads();
  data[t] = __shfl_xor_sync(0xffffffffu, t, 16);
}

// The fault: the two halves wait in two barriers.
template <bool kHealthy>
__global__ void two_barriers(int* data, int) {
  const int t = threadIdx.x;
  if (kHealthy || t < 32)
    __syncthreads();
  else
    __syncthreads();
  data[t] = t;
}

// The fault: the offset of a row is computed in 32 bits.
template <bool kHealthy>
__global__ void offset_overflow(int* data, int n) {
  const int row = threadIdx.x;
  using Offset = std::conditional_t<kHealthy, int64_t, int>;
  const Offset offset = static_cast<Offset>(row) * 100'000'000;
  data[row] = static_cast<int>(offset / 100'000'000 % n);
}

// The fault: a vector is read where no vector may begin.
template <bool kHealthy>
__global__ void misaligned_vector(int* data, int n) {
  int pack[4];
  mim4d::load_pack(data + (kHealthy ? 0 : 1), pack);
  if (static_cast<int>(threadIdx.x) < n) data[8 + threadIdx.x % 4] = pack[threadIdx.x % 4];
}

// The fault: NaN is converted to an integer, which a GPU and a CPU do differently.
template <bool kHealthy>
__global__ void integer_of_nan(int* data, int) {
  const float x = kHealthy ? 1.0f : __int_as_float(0x7fc00000);
  data[threadIdx.x] = static_cast<int>(x);
}

// The fault: a thread waits for a flag that nobody raises.
template <bool kHealthy>
__global__ void endless_wait(int* data, int) {
  if (kHealthy && threadIdx.x == 1) atomicExch(data, 1);
  if (threadIdx.x == 0)
    while (atomicAdd(data, 0) != 1) __nanosleep(20);
}

struct Fault {
  const char* name;
  void (*faulty)(int*, int);
  void (*healthy)(int*, int);
  int blocks = 1;
};
#define FAULT(name, ...) {#name, name<false>, name<true>, ##__VA_ARGS__}
const Fault kFaults[] = {
    FAULT(missing_syncthreads),  FAULT(missing_syncwarp),      FAULT(race_between_blocks, 64), FAULT(out_of_bounds),
    FAULT(out_of_static_shared), FAULT(out_of_dynamic_shared), FAULT(diverging_barrier),       FAULT(two_barriers),
    FAULT(offset_overflow),      FAULT(misaligned_vector),     FAULT(integer_of_nan),          FAULT(endless_wait),
};

}  // namespace

// Runs one of them on n integers, with one thread for each of 64; what went wrong in words, or null.
extern "C" __attribute__((visibility("default"))) const char* run_fault(const char* name, int healthy, int* data,
                                                                        int n) {
  static std::string message;
  for (const Fault& fault : kFaults) {
    if (std::string(name) != fault.name) continue;
    try {
      const auto kernel = healthy ? fault.healthy : fault.faulty;
      const cudaError_t error = mim4d::launch(kernel, fault.blocks, kThreads, kThreads * sizeof(int), nullptr, data, n);
      if (error == cudaSuccess) return nullptr;
      message = cudaGetErrorString(error);
    } catch (const std::exception& error) {
      message = error.what();
    }
    return message.c_str();
  }
  return "there is no fault of this name";
}

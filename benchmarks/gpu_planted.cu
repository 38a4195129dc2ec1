// One fault for each tool of compute-sanitizer. A tool must find it, and be silent about the healthy twin, before its
// silence about our kernels means anything: gpu_planted memcheck|racecheck|initcheck|synccheck faulty|healthy

#include <cstdio>
#include <cstring>
#include <cuda_runtime.h>

#include "cuda/launch.cuh"

namespace {

constexpr int kThreads = 64;

__global__ void store_kernel(float* out, int n) {  // memcheck: one element too many
  if (static_cast<int>(threadIdx.x) < n) out[threadIdx.x] = 1.0f;
}

template <bool Faulty>
__global__ void exchange_kernel(float* out) {  // racecheck: no barrier between the warps
  __shared__ float shared[kThreads];
  shared[threadIdx.x] = static_cast<float>(threadIdx.x);
  if constexpr (!Faulty) __syncthreads();
  out[threadIdx.x] = shared[(threadIdx.x + 32) % kThreads];
}

__global__ void read_kernel(const float* in, float* out) { out[threadIdx.x] = 2.0f * in[threadIdx.x]; }  // initcheck

template <bool Faulty>
__global__ void barrier_kernel(float* out) {  // synccheck: half of each warp does not come
  if (!Faulty || threadIdx.x % 2 == 0) __syncthreads();
  out[threadIdx.x] = 1.0f;
}

cudaError_t run(const char* tool, bool faulty) {
  const dim3 one(1), block(kThreads);
  const size_t bytes = (kThreads - 1) * sizeof(float);
  float *small = nullptr, *in = nullptr, *out = nullptr;
  cudaError_t status = cudaMalloc(&small, bytes);
  if (status == cudaSuccess) status = cudaMalloc(&in, bytes + sizeof(float));
  if (status == cudaSuccess) status = cudaMalloc(&out, bytes + sizeof(float));
  if (status != cudaSuccess) return status;
  if (!strcmp(tool, "memcheck")) {
    status = mim4d::launch(store_kernel, one, block, 0, nullptr, small, faulty ? kThreads : kThreads - 1);
  } else if (!strcmp(tool, "racecheck")) {
    status = mim4d::launch(faulty ? exchange_kernel<true> : exchange_kernel<false>, one, block, 0, nullptr, out);
  } else if (!strcmp(tool, "initcheck")) {
    if (!faulty) status = cudaMemset(in, 0, bytes + sizeof(float));
    if (status == cudaSuccess) status = mim4d::launch(read_kernel, one, block, 0, nullptr, in, out);
  } else if (!strcmp(tool, "synccheck")) {
    status = mim4d::launch(faulty ? barrier_kernel<true> : barrier_kernel<false>, one, block, 0, nullptr, out);
  } else {
    status = cudaErrorInvalidValue;
  }
  if (status == cudaSuccess) status = cudaDeviceSynchronize();
  cudaFree(small);
  cudaFree(in);
  cudaFree(out);
  return status;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const cudaError_t status = run(argv[1], !strcmp(argv[2], "faulty"));
  if (status != cudaSuccess) fprintf(stderr, "%s %s: %s\n", argv[1], argv[2], cudaGetErrorString(status));
  return status == cudaSuccess ? 0 : 1;
}

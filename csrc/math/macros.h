#pragma once
// The formulas of this folder are compiled three ways: by nvcc for a CUDA thread (T = float, double), by the C++
// compiler for scalars, and by the C++ compiler for a SIMD value type, once per instruction set.

#if defined(__CUDACC__)
#define MIM4D_HD __host__ __device__ __forceinline__
#define MIM4D_UNROLL _Pragma("unroll")
#else
// Always inlined: a copy that was compiled for AVX-512 must never become the one that an older processor runs.
#define MIM4D_HD inline __attribute__((always_inline))
#define MIM4D_UNROLL _Pragma("GCC unroll 16")
#endif

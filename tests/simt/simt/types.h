#pragma once
// The vector types of CUDA C++, and dim3.

#ifndef SIMT_ARCH
#define SIMT_ARCH 900  // the __CUDA_ARCH__ that is emulated
#endif

#define SIMT_VECTOR(T, N)                                                         \
  struct N##1 { T x; };                                                           \
  struct alignas(2 * sizeof(T)) N##2 { T x, y; };                                 \
  struct N##3 { T x, y, z; };                                                     \
  struct alignas(4 * sizeof(T) > 16 ? 16 : 4 * sizeof(T)) N##4 { T x, y, z, w; }; \
  inline N##1 make_##N##1(T x) { return {x}; }                                    \
  inline N##2 make_##N##2(T x, T y) { return {x, y}; }                            \
  inline N##3 make_##N##3(T x, T y, T z) { return {x, y, z}; }                    \
  inline N##4 make_##N##4(T x, T y, T z, T w) { return {x, y, z, w}; }
SIMT_VECTOR(float, float)
SIMT_VECTOR(double, double)
SIMT_VECTOR(signed char, char)
SIMT_VECTOR(unsigned char, uchar)
SIMT_VECTOR(short, short)
SIMT_VECTOR(unsigned short, ushort)
SIMT_VECTOR(int, int)
SIMT_VECTOR(unsigned, uint)
SIMT_VECTOR(long long, longlong)
SIMT_VECTOR(unsigned long long, ulonglong)
#undef SIMT_VECTOR

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

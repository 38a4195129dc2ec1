#pragma once
// Atomics and fences: real ones, because blocks may run on several OS threads.

#include <concepts>
#include <type_traits>

#include "simt/block.h"
#include "simt/half.h"

namespace simt {

// *p = f(*p) in one step; the old value.
template <class T, class F>
T update(T* p, F f) {
  using Bits = std::conditional_t<sizeof(T) == 8, uint64_t, std::conditional_t<sizeof(T) == 4, uint32_t, uint16_t>>;
  static_assert(sizeof(T) == sizeof(Bits));
  Bits* const bits = reinterpret_cast<Bits*>(p);
  Bits before = __atomic_load_n(bits, __ATOMIC_RELAXED);
  for (;;) {
    const T old = std::bit_cast<T>(before);
    const Bits after = std::bit_cast<Bits>(static_cast<T>(f(old)));
    if (__atomic_compare_exchange_n(bits, &before, after, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) return old;
  }
}

// A vector access of a GPU wants its full alignment.
template <class T>
void check_aligned(const T* p) {
  if (reinterpret_cast<uintptr_t>(p) % alignof(T) != 0) current.block->fail("misaligned address of a vector");
}

}  // namespace simt

// The value's type comes from the pointer alone, so that atomicAdd(int64, 1) works.
template <std::integral T>
T atomicAdd(T* p, std::type_identity_t<T> x) {
  return __atomic_fetch_add(p, x, __ATOMIC_RELAXED);
}
template <std::floating_point T>
T atomicAdd(T* p, std::type_identity_t<T> x) {
  return simt::update(p, [x](T old) { return old + x; });
}
template <class F>
simt::halves::Half<F> atomicAdd(simt::halves::Half<F>* p, std::type_identity_t<simt::halves::Half<F>> x) {
  return simt::update(p, [x](simt::halves::Half<F> old) { return old + x; });
}
// Each element is atomic, the whole is not: so the CUDA guide has it.
template <class F>
simt::halves::HalfPair<F> atomicAdd(simt::halves::HalfPair<F>* p, std::type_identity_t<simt::halves::HalfPair<F>> x) {
  simt::check_aligned(p);
  return {atomicAdd(&p->x, x.x), atomicAdd(&p->y, x.y)};
}
#if SIMT_ARCH >= 900
inline float2 atomicAdd(float2* p, float2 x) {
  simt::check_aligned(p);
  return {atomicAdd(&p->x, x.x), atomicAdd(&p->y, x.y)};
}
inline float4 atomicAdd(float4* p, float4 x) {
  simt::check_aligned(p);
  return {atomicAdd(&p->x, x.x), atomicAdd(&p->y, x.y), atomicAdd(&p->z, x.z), atomicAdd(&p->w, x.w)};
}
#endif

template <std::integral T>
T atomicSub(T* p, std::type_identity_t<T> x) {
  return __atomic_fetch_sub(p, x, __ATOMIC_RELAXED);
}
template <std::integral T>
T atomicMax(T* p, std::type_identity_t<T> x) {
  return simt::update(p, [x](T old) { return old > x ? old : x; });
}
template <std::integral T>
T atomicMin(T* p, std::type_identity_t<T> x) {
  return simt::update(p, [x](T old) { return old < x ? old : x; });
}
template <std::integral T>
T atomicAnd(T* p, std::type_identity_t<T> x) {
  return __atomic_fetch_and(p, x, __ATOMIC_RELAXED);
}
template <std::integral T>
T atomicOr(T* p, std::type_identity_t<T> x) {
  return __atomic_fetch_or(p, x, __ATOMIC_RELAXED);
}
template <std::integral T>
T atomicXor(T* p, std::type_identity_t<T> x) {
  return __atomic_fetch_xor(p, x, __ATOMIC_RELAXED);
}
inline unsigned atomicInc(unsigned* p, unsigned last) {
  return simt::update(p, [last](unsigned old) { return old >= last ? 0u : old + 1; });
}
inline unsigned atomicDec(unsigned* p, unsigned last) {
  return simt::update(p, [last](unsigned old) { return old == 0 || old > last ? last : old - 1; });
}
template <class T>
T atomicExch(T* p, std::type_identity_t<T> x) {
  return simt::update(p, [x](T) { return x; });
}
// A compare that fails lets other threads run: a loop that waits for a lock ends here too.
template <std::integral T>
T atomicCAS(T* p, std::type_identity_t<T> compare, std::type_identity_t<T> x) {
  T found = compare;
  if (!__atomic_compare_exchange_n(p, &found, x, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
    simt::current.block->yield();
  return found;
}

inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_block() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

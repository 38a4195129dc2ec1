#pragma once
// Barriers, and what the lanes of a warp do together. Shuffles, votes and reductions do not order memory; __syncwarp
// and the barriers do, and ThreadSanitizer is told so.

#include <type_traits>

#include "simt/block.h"

namespace simt {

using Here = std::source_location;

SIMT_UNSEEN inline int lane() { return current.thread->lane; }

template <class T>
SIMT_UNSEEN uint64_t to_bits(T x) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>, "a lane gives at most 8 bytes");
  uint64_t bits = 0;
  __builtin_memcpy(&bits, &x, sizeof(T));
  return bits;
}
template <class T>
SIMT_UNSEEN T from_bits(uint64_t bits) {
  T x;
  __builtin_memcpy(&x, &bits, sizeof(T));
  return x;
}

// Gives `x`, takes what lane `source` gave.
template <class T>
SIMT_UNSEEN T exchange(const char* call, uint32_t mask, T x, int source, Site site) {
  Block& block = *current.block;
  Rendezvous& meeting = block.collective(call, mask, to_bits(x), false, site);
  const uint64_t bits = meeting.from(source);
  block.finish(meeting);
  return from_bits<T>(bits);
}

// The lanes of the mask for which hit(what the lane gave) holds.
template <class T, class Hit>
SIMT_UNSEEN uint32_t vote(const char* call, uint32_t mask, T x, Hit hit, Site site) {
  Block& block = *current.block;
  Rendezvous& meeting = block.collective(call, mask, to_bits(x), false, site);
  uint32_t found = 0;
  for (int i = 0; i < kWarp; ++i)
    if ((meeting.arrived >> i & 1) && hit(meeting.value[i])) found |= 1u << i;
  block.finish(meeting);
  return found;
}

template <class T, class Join>
SIMT_UNSEEN T reduce(const char* call, uint32_t mask, T x, Join join, Site site) {
  Block& block = *current.block;
  Rendezvous& meeting = block.collective(call, mask, to_bits(x), false, site);
  bool first = true;
  T all{};
  for (int i = 0; i < kWarp; ++i) {
    if (!(meeting.arrived >> i & 1)) continue;
    const T one = from_bits<T>(meeting.value[i]);
    all = first ? one : join(all, one);
    first = false;
  }
  block.finish(meeting);
  return all;
}

// The first lane of the segment of `width` lanes that holds the calling one.
SIMT_UNSEEN inline int segment(int width) { return lane() & ~(width - 1); }

}  // namespace simt

// ---- barriers of the block

SIMT_UNSEEN inline void __syncthreads(simt::Here at = simt::Here::current()) {
  simt::current.block->barrier("__syncthreads", 0, at);
}
SIMT_UNSEEN inline int __syncthreads_count(int predicate, simt::Here at = simt::Here::current()) {
  return simt::current.block->barrier("__syncthreads_count", predicate ? 1 : 0, at);
}
SIMT_UNSEEN inline int __syncthreads_or(int predicate, simt::Here at = simt::Here::current()) {
  return simt::current.block->barrier("__syncthreads_or", predicate ? 1 : 0, at) != 0;
}
SIMT_UNSEEN inline int __syncthreads_and(int predicate, simt::Here at = simt::Here::current()) {
  return simt::current.block->barrier("__syncthreads_and", predicate ? 0 : 1, at) == 0;
}

// ---- of the warp

SIMT_UNSEEN inline void __syncwarp(unsigned mask = simt::kFullMask, simt::Here at = simt::Here::current()) {
  simt::Block& block = *simt::current.block;
  block.finish(block.collective("__syncwarp", mask, 0, true, at));
}

template <class T>
SIMT_UNSEEN T __shfl_sync(unsigned mask, T x, int source, int width = 32, simt::Here at = simt::Here::current()) {
  return simt::exchange("__shfl_sync", mask, x, simt::segment(width) | (source & (width - 1)), at);
}
template <class T>
SIMT_UNSEEN T __shfl_up_sync(unsigned mask, T x, unsigned delta, int width = 32,
                             simt::Here at = simt::Here::current()) {
  const int source = simt::lane() - static_cast<int>(delta);
  return simt::exchange("__shfl_up_sync", mask, x, source < simt::segment(width) ? simt::lane() : source, at);
}
template <class T>
SIMT_UNSEEN T __shfl_down_sync(unsigned mask, T x, unsigned delta, int width = 32,
                               simt::Here at = simt::Here::current()) {
  const int source = simt::lane() + static_cast<int>(delta);
  return simt::exchange("__shfl_down_sync", mask, x, source >= simt::segment(width) + width ? simt::lane() : source,
                        at);
}
template <class T>
SIMT_UNSEEN T __shfl_xor_sync(unsigned mask, T x, int with, int width = 32, simt::Here at = simt::Here::current()) {
  const int source = simt::lane() ^ with;
  return simt::exchange("__shfl_xor_sync", mask, x, source >= simt::segment(width) + width ? simt::lane() : source, at);
}

SIMT_UNSEEN inline unsigned __ballot_sync(unsigned mask, int predicate, simt::Here at = simt::Here::current()) {
  return simt::vote("__ballot_sync", mask, predicate != 0, [](uint64_t given) { return given != 0; }, at);
}
SIMT_UNSEEN inline int __any_sync(unsigned mask, int predicate, simt::Here at = simt::Here::current()) {
  return simt::vote("__any_sync", mask, predicate != 0, [](uint64_t given) { return given != 0; }, at) != 0;
}
SIMT_UNSEEN inline int __all_sync(unsigned mask, int predicate, simt::Here at = simt::Here::current()) {
  return simt::vote("__all_sync", mask, predicate == 0, [](uint64_t given) { return given != 0; }, at) == 0;
}
template <class T>
SIMT_UNSEEN unsigned __match_any_sync(unsigned mask, T x, simt::Here at = simt::Here::current()) {
  const uint64_t own = simt::to_bits(x);
  return simt::vote("__match_any_sync", mask, x, [own](uint64_t given) { return given == own; }, at);
}
// The mask where all lanes that take part gave the same, else 0.
template <class T>
SIMT_UNSEEN unsigned __match_all_sync(unsigned mask, T x, int* all, simt::Here at = simt::Here::current()) {
  const uint64_t own = simt::to_bits(x);
  const bool odd = simt::vote("__match_all_sync", mask, x, [own](uint64_t given) { return given != own; }, at) != 0;
  *all = !odd;
  return odd ? 0 : mask;
}

#define SIMT_REDUCE(name, expression)                                                             \
  template <class T>                                                                              \
  SIMT_UNSEEN T name(unsigned mask, T x, simt::Here at = simt::Here::current()) {                 \
    return simt::reduce(#name, mask, x, [](T a, T b) { return static_cast<T>(expression); }, at); \
  }
SIMT_REDUCE(__reduce_add_sync, static_cast<std::make_unsigned_t<T>>(a) + static_cast<std::make_unsigned_t<T>>(b))
SIMT_REDUCE(__reduce_max_sync, a > b ? a : b)
SIMT_REDUCE(__reduce_min_sync, a < b ? a : b)
SIMT_REDUCE(__reduce_and_sync, a& b)
SIMT_REDUCE(__reduce_or_sync, a | b)
SIMT_REDUCE(__reduce_xor_sync, a ^ b)
#undef SIMT_REDUCE

// Nothing promises that lanes run together: here each is alone.
SIMT_UNSEEN inline unsigned __activemask() { return 1u << simt::lane(); }

#pragma once
// The part of cooperative groups that needs nothing new: the block, and tiles of a warp.

#include "simt/warp.h"

namespace cooperative_groups {

class thread_block {
 public:
  static void sync(simt::Here at = simt::Here::current()) { simt::current.block->barrier("thread_block::sync", 0, at); }
  static unsigned thread_rank() { return static_cast<unsigned>(simt::current.thread->linear); }
  static unsigned size() {
    const dim3 dim = simt::current.block->block_dim;
    return dim.x * dim.y * dim.z;
  }
  static uint3 thread_index() { return simt::current.thread->index; }
  static uint3 group_index() { return simt::current.block->index; }
};
inline thread_block this_thread_block() { return {}; }

// N neighbouring threads of a block, a power of two up to a warp.
template <unsigned N>
class thread_block_tile {
  static_assert(N >= 1 && N <= 32 && (N & (N - 1)) == 0, "a tile has 1, 2, 4, 8, 16 or 32 threads");

 public:
  static unsigned thread_rank() { return static_cast<unsigned>(simt::lane()) % N; }
  static constexpr unsigned size() { return N; }
  static unsigned meta_group_rank() { return thread_block::thread_rank() / N; }
  static unsigned meta_group_size() { return (thread_block::size() + N - 1) / N; }

  static void sync(simt::Here at = simt::Here::current()) { __syncwarp(mask(), at); }
  template <class T>
  static T shfl(T x, unsigned source, simt::Here at = simt::Here::current()) {
    return __shfl_sync(mask(), x, static_cast<int>(source), N, at);
  }
  template <class T>
  static T shfl_up(T x, unsigned delta, simt::Here at = simt::Here::current()) {
    return __shfl_up_sync(mask(), x, delta, N, at);
  }
  template <class T>
  static T shfl_down(T x, unsigned delta, simt::Here at = simt::Here::current()) {
    return __shfl_down_sync(mask(), x, delta, N, at);
  }
  template <class T>
  static T shfl_xor(T x, unsigned with, simt::Here at = simt::Here::current()) {
    return __shfl_xor_sync(mask(), x, static_cast<int>(with), N, at);
  }
  static unsigned ballot(int predicate, simt::Here at = simt::Here::current()) {
    return __ballot_sync(mask(), predicate, at) >> simt::segment(N) & (mask() >> simt::segment(N));
  }
  static int any(int predicate, simt::Here at = simt::Here::current()) { return __any_sync(mask(), predicate, at); }
  static int all(int predicate, simt::Here at = simt::Here::current()) { return __all_sync(mask(), predicate, at); }

 private:
  static unsigned mask() { return (N == 32 ? 0xffffffffu : (1u << N % 32) - 1) << simt::segment(N); }
};
template <unsigned N>
thread_block_tile<N> tiled_partition(const thread_block&) {
  return {};
}

}  // namespace cooperative_groups

#pragma once
// A launch: the blocks of a grid, on one OS thread or several (SIMT_THREADS=n).

#include <atomic>
#include <mutex>
#include <thread>
#include <vector>

#include "simt/block.h"
#include "simt/host.h"

namespace simt {

constexpr size_t kMaxShared = SIMT_ARCH >= 900 ? 227 * 1024 : 99 * 1024;  // bytes a kernel may ask for
constexpr size_t kDefaultShared = 48 * 1024;                              // bytes it may have without asking

// Blocks that wait for work. One serves one OS thread at a time; its stacks are kept for the next launch.
class BlockPool {
 public:
  Block* take() {
    const std::lock_guard lock(mutex_);
    if (free_.empty()) return new Block;
    Block* block = free_.back();
    free_.pop_back();
    return block;
  }
  void give_back(Block* block) {
    const std::lock_guard lock(mutex_);
    free_.push_back(block);
  }

 private:
  std::mutex mutex_;
  std::vector<Block*> free_;
};
inline BlockPool& block_pool() {
  static BlockPool* pool = new BlockPool;  // never destroyed: a kernel may run while the process ends
  return *pool;
}

inline size_t os_threads() {
#if SIMT_ASAN
  return 1;  // __shared__ variables are plain static ones there
#else
  const char* variable = getenv("SIMT_THREADS");
  const long asked = variable ? strtol(variable, nullptr, 10) : 1;
  return asked > 1 ? static_cast<size_t>(asked) : 1;
#endif
}

inline void run_grid(dim3 grid, dim3 block, size_t shared, Block::Body body, const void* argument) {
#if SIMT_ASAN
  static std::mutex one_launch_at_a_time;
  const std::lock_guard lock(one_launch_at_a_time);
#endif
  const size_t blocks = size_t{grid.x} * grid.y * grid.z;
  std::vector<uint32_t> sequence(blocks);
  Order(1).arrange(sequence.data(), blocks);

  // Each OS thread has its blocks from the beginning. Handing them out one by one, or taking the engines from the pool
  // over there, would order what one thread does after what another has done, and hide races from ThreadSanitizer.
  std::vector<Block*> engines(std::min(os_threads(), blocks));
  for (Block*& engine : engines) engine = block_pool().take();
  std::atomic<bool> failed = false;
  std::exception_ptr error;
  std::mutex error_mutex;
  const auto work = [&](size_t first) {
    Block* const engine = engines[first];
    const Current before = std::exchange(current, {nullptr, engine});
    try {
      engine->prepare(grid, block, shared, body, argument);
      for (size_t i = first; i < blocks && !failed; i += engines.size()) {
        const uint32_t b = sequence[i];
        engine->run({b % grid.x, b / grid.x % grid.y, b / grid.x / grid.y});
      }
    } catch (...) {
      const std::lock_guard lock(error_mutex);
      if (!error) error = std::current_exception();
      failed = true;
    }
    current = before;
  };
  std::vector<std::thread> others;
  for (size_t i = 1; i < engines.size(); ++i) others.emplace_back(work, i);
  work(0);
  for (std::thread& thread : others) thread.join();
  for (Block* engine : engines) block_pool().give_back(engine);
  if (error) std::rethrow_exception(error);
}

inline cudaError_t check_launch(const void* kernel, dim3 grid, dim3 block, size_t shared) {
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (threads == 0 || threads > kMaxThreads || block.z > 64) return cudaErrorInvalidConfiguration;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return cudaErrorInvalidConfiguration;
  if (grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) return cudaErrorInvalidConfiguration;
  if (shared <= kDefaultShared) return cudaSuccess;
  SharedLimits& limits = shared_limits();
  const std::lock_guard lock(limits.mutex);
  const auto asked = limits.of.find(kernel);
  const bool allowed = asked != limits.of.end() && shared <= static_cast<size_t>(asked->second) && shared <= kMaxShared;
  return allowed ? cudaSuccess : cudaErrorInvalidValue;
}

// kernel<<<grid, block, shared, stream>>>(args...). What goes wrong inside of the kernel is thrown.
template <class... Params>
cudaError_t launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared, cudaStream_t,
                   std::type_identity_t<Params>... args) {
  const cudaError_t error = check_launch(reinterpret_cast<const void*>(kernel), grid, block, shared);
  if (error != cudaSuccess) return report(error);
  const auto call = [&] { kernel(args...); };
  using Call = decltype(call);
  run_grid(grid, block, shared, [](const void* f) { (*static_cast<Call*>(f))(); }, &call);
  return cudaSuccess;
}

}  // namespace simt

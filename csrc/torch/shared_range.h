#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "torch/stable.h"

namespace mim4d {

// f(begin, end) for parts of [0, n) that the threads take as they become free, `part` long. torch's parallel_for cuts
// the range into as many parts as there are threads, and the slowest of them is waited for. f must give the same
// whatever the parts are and whoever takes them.
template <class F>
void for_shared_range(int64_t n, int64_t part, F&& f) {
  std::atomic<int64_t> next = 0;
  const int64_t threads = std::clamp<int64_t>(n / std::max<int64_t>(part, 1), 1, torch::stable::get_num_threads());
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    for (int64_t begin; (begin = next.fetch_add(part)) < n;) f(begin, std::min(begin + part, n));
  });
}

}  // namespace mim4d

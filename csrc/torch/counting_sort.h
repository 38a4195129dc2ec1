#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "torch/stable.h"

namespace mim4d {

// A stable parallel counting sort of `items` things with keys in [0, keys); things without a key may be left out. The
// caller walks ranges of items: first counting, then placing each thing at cursor[key]++. Equal keys keep their order,
// so the result does not depend on the number of threads.
class CountingSort {
 public:
  // count(begin, end, counts) does ++counts[key] for the things in [begin, end)
  template <class Count>
  CountingSort(int64_t items, int64_t keys, Count&& count)
      : items_(items),
        keys_(keys),
        // a chunk has a counter for every key: no more chunks than the items are worth
        chunks_(std::clamp<int64_t>(items / std::max<int64_t>(keys, 1024), 1, torch::stable::get_num_threads())),
        cursors_(chunks_ * keys, 0),
        start_(keys + 1) {
    for_chunks(count);
    int64_t total = 0;
    for (int64_t key = 0; key < keys; ++key) {
      start_[key] = total;
      for (int64_t chunk = 0; chunk < chunks_; ++chunk) total += std::exchange(cursors_[chunk * keys + key], total);
    }
    start_[keys] = total;
  }

  // place(begin, end, cursors) puts each thing in [begin, end) at cursors[key]++; to be called once
  template <class Place>
  void place(Place&& place) {
    for_chunks(place);
  }

  // The things with a key are at [start()[key], start()[key + 1]).
  const std::vector<int64_t>& start() const { return start_; }

 private:
  template <class F>
  void for_chunks(F&& f) {
    torch::stable::parallel_for(0, chunks_, 1, [&](int64_t first, int64_t last) {
      for (int64_t chunk = first; chunk < last; ++chunk)
        f(items_ * chunk / chunks_, items_ * (chunk + 1) / chunks_, cursors_.data() + chunk * keys_);
    });
  }

  int64_t items_, keys_, chunks_;
  std::vector<int64_t> cursors_;  // [chunks, keys]
  std::vector<int64_t> start_;    // [keys + 1]
};

}  // namespace mim4d

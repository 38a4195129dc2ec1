#pragma once
// The engine: one block at a time, each of its threads a fiber.
//
// A thread runs until it waits or ends; one that never waits costs no switch at all, because the next thread starts on
// the same stack. Threads that wait for each other meet in barrier() or in collective(). Threads that have ended do not
// count. When nobody can go on, the block is dead, and the error says who waits where.

#include <exception>
#include <source_location>
#include <stdexcept>
#include <stdint.h>
#include <stdlib.h>
#include <string>
#include <utility>

#include "simt/fiber.h"
#include "simt/types.h"

namespace simt {

struct Site {  // where a kernel called
  const char* file = nullptr;
  int line = 0;
  Site() = default;
  SIMT_UNSEEN Site(std::source_location at) : file(at.file_name()), line(static_cast<int>(at.line())) {}
  SIMT_UNSEEN bool is(const Site& other) const { return line == other.line && file == other.file; }
};

constexpr int kMaxThreads = 1024;
constexpr int kWarp = 32;
constexpr uint32_t kFullMask = 0xffffffffu;

enum class State : uint8_t { fresh, running, at_barrier, in_warp, done };

struct Thread {
  uint3 index;  // threadIdx
  int linear, lane, warp;
  State state;
  Fiber* fiber;
  void* tsan;        // ThreadSanitizer's name for it
  const char* call;  // what it waits in
  Site site;
  uint32_t mask;
};

// The meeting of the lanes of a warp in one call.
struct Rendezvous {
  uint32_t mask, arrived;
  int readers;  // lanes that have not taken their result yet
  const char* call;
  uint64_t value[kWarp];
  Rendezvous* next;   // in the list of free ones
  Rendezvous* older;  // in the list of all

  // What a lane gave; from one that takes no part, poison: all bits set, a NaN.
  SIMT_UNSEEN uint64_t from(int lane) const { return arrived >> lane & 1 ? value[lane] : ~uint64_t{0}; }
};

class Block;
struct Current {
  Thread* thread = nullptr;
  Block* block = nullptr;
};
// Of the OS thread. initial-exec: a library that is loaded late pays no call for it.
inline thread_local Current current __attribute__((tls_model("initial-exec")));

// The order of threads in a block, and of blocks in a grid: SIMT_ORDER=fwd, rev or rand:SEED.
class Order {
 public:
  explicit Order(uint64_t stream = 0) {
    const char* variable = getenv("SIMT_ORDER");
    const std::string order = variable ? variable : "fwd";
    if (order == "rev") {
      kind_ = Kind::reverse;
    } else if (order.starts_with("rand:")) {
      kind_ = Kind::random;
      state_ = (strtoull(order.c_str() + 5, nullptr, 10) + stream * 0x632be59bd9b4e019u) * 0x9e3779b97f4a7c15u + 1;
    } else if (order != "fwd") {
      throw std::runtime_error("simt: SIMT_ORDER is " + order + ", wanted fwd, rev or rand:SEED");
    }
  }
  template <class I>
  SIMT_UNSEEN void arrange(I* items, size_t n) {
    for (size_t i = 0; i < n; ++i) items[i] = static_cast<I>(kind_ == Kind::reverse ? n - 1 - i : i);
    if (kind_ != Kind::random) return;
    for (size_t i = n; i > 1; --i) {
      const size_t j = draw() % i;
      const I item = items[i - 1];
      items[i - 1] = items[j];
      items[j] = item;
    }
  }

 private:
  enum class Kind { forward, reverse, random };
  SIMT_UNSEEN uint64_t draw() {  // splitmix64
    uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
  }
  Kind kind_ = Kind::forward;
  uint64_t state_ = 0;
};

class Block {
 public:
  using Body = void (*)(const void* argument);

  dim3 grid_dim, block_dim;
  uint3 index{};  // blockIdx

  char* shared() { return shared_; }  // the dynamic shared memory

  // Before the blocks of a launch, on the OS thread that will run them.
  SIMT_UNSEEN void prepare(dim3 grid, dim3 block, size_t shared, Body body, const void* argument) {
    grid_dim = grid;
    block_dim = block;
    body_ = body;
    argument_ = argument;
    order_ = Order();
    if (shared > shared_capacity_) {
#if SIMT_ASAN
      if (shared_) __asan_unpoison_memory_region(shared_, shared_capacity_);
#endif
      free(shared_);
      shared_capacity_ = (shared + 127) / 128 * 128;
      shared_ = static_cast<char*>(aligned_alloc(128, shared_capacity_));
    }
    shared_bytes_ = shared;
#if SIMT_ASAN
    if (shared_) {
      __asan_unpoison_memory_region(shared_, shared_capacity_);
      __asan_poison_memory_region(shared_ + shared, shared_capacity_ - shared);
    }
#endif
    // What runs these stacks now may be another OS thread than before.
    for (Fiber* fiber = idle_; fiber; fiber = fiber->next) fiber->reset(&Block::live_on_fiber);
    if (kOwnStacks)
      for (Thread& thread : threads_)
        if (thread.fiber) thread.fiber->reset(&Block::live_on_fiber);
  }

  SIMT_UNSEEN void run(uint3 at) {
    index = at;
    if (shared_bytes_ != 0) memset(shared_, 0xff, shared_bytes_);  // poison: what nobody wrote is NaN
    begin();
#if SIMT_TSAN
    host_tsan_ = __tsan_get_current_fiber();
#endif
    tsan_release(&start_);
    while (live_ > 0 && !failed_) {
      Thread* thread = next();
      if (thread == nullptr) {
        failed_ = true;
        error_ = std::make_exception_ptr(std::runtime_error(deadlock()));
        break;
      }
      enter(*thread);
    }
    tsan_acquire(&end_);
    if (failed_) abandon();
  }

  // Waits for all threads of the block; the sum of what they brought.
  SIMT_UNSEEN int barrier(const char* call, int value, Site site) {
    Thread& thread = *current.thread;
    if (waiting_ > 0 && !site.is(barrier_site_))
      fail("a barrier is reached from two places, " + name(barrier_site_) + " and " + name(site));
    barrier_site_ = site;
    barrier_sum_ += value;
    ++waiting_;
    wait_at(thread, call, site, kFullMask);
    char* const meeting = &barrier_[barrier_generation_ & 1];
    tsan_release(meeting);
    if (waiting_ == live_) {
      release_barrier();  // the last one simply goes on
    } else {
      thread.state = State::at_barrier;
      leave(*thread.fiber);
    }
    tsan_acquire(meeting);
    return barrier_result_;
  }

  // Waits for the lanes of the mask. Each must call finish() when it has read its result.
  SIMT_UNSEEN Rendezvous& collective(const char* call, uint32_t mask, uint64_t value, bool orders_memory, Site site) {
    Thread& thread = *current.thread;
    const uint32_t bit = 1u << thread.lane;
    if (!(mask & bit)) fail(std::string(call) + " at " + name(site) + ": the calling lane is not in its own mask");
    Rendezvous*& slot = meetings_[thread.warp][__builtin_ctz(mask)];
    if (slot == nullptr) slot = open(call, mask);
    Rendezvous& meeting = *slot;
    if (meeting.mask != mask || meeting.call != call)
      fail("lanes of one warp meet in different calls or with different masks: " + std::string(meeting.call) + " and " +
           call + " at " + name(site));
    meeting.value[thread.lane] = value;
    meeting.arrived |= bit;
    wait_at(thread, call, site, mask);
    if (orders_memory) tsan_release(&meeting);
    if (meeting.arrived == (mask & alive_[thread.warp])) {
      complete(slot, &thread);
    } else {
      thread.state = State::in_warp;
      leave(*thread.fiber);
    }
    if (orders_memory) tsan_acquire(&meeting);
    return meeting;
  }
  SIMT_UNSEEN void finish(Rendezvous& meeting) {
    if (--meeting.readers > 0) return;
    meeting.next = free_meetings_;
    free_meetings_ = &meeting;
  }

  // Lets the others run: what a thread does that waits for a value in memory.
  SIMT_UNSEEN void yield() {
    constexpr uint64_t kPatience = 20'000'000;
    if (++yields_ > kPatience) fail("a thread waits in a loop for a value that does not come");
    prefer_fresh_ = true;
    wake(*current.thread);
    leave(*current.thread->fiber);
  }

  [[noreturn]] void fail(const std::string& what) const {
    const uint3 t = current.thread->index;
    throw std::runtime_error("simt: " + what + ", in block " + triple(index) + " thread " + triple(t));
  }

  static std::string name(Site site) { return std::string(site.file) + ":" + std::to_string(site.line); }

 private:
  static std::string triple(uint3 i) {
    return "(" + std::to_string(i.x) + "," + std::to_string(i.y) + "," + std::to_string(i.z) + ")";
  }

  SIMT_UNSEEN static void wait_at(Thread& thread, const char* call, Site site, uint32_t mask) {
    thread.call = call;
    thread.site = site;
    thread.mask = mask;
  }

  // ---- who runs

  // A stack goes from a thread that has ended to the next one; but ThreadSanitizer, which knows of no end, would see
  // two threads write to it, so there each keeps its own.
  static constexpr bool kOwnStacks = SIMT_TSAN;

  SIMT_UNSEEN void begin() {
    size_ = live_ = static_cast<int>(block_dim.x * block_dim.y * block_dim.z);
    waiting_ = barrier_sum_ = 0;
    queue_first_ = queue_size_ = next_fresh_ = 0;
    prefer_fresh_ = false;
    yields_ = 0;
    order_.arrange(sequence_, static_cast<size_t>(size_));
    order_.arrange(lanes_, kWarp);
    for (int i = 0; i < size_; ++i) {
      Thread& thread = threads_[i];
      const unsigned u = static_cast<unsigned>(i), x = block_dim.x, y = block_dim.y;
      thread.index = {u % x, u / x % y, u / x / y};
      thread.linear = i;
      thread.lane = i % kWarp;
      thread.warp = i / kWarp;
      thread.state = State::fresh;
      if (!kOwnStacks) thread.fiber = nullptr;
#if SIMT_TSAN
      if (!thread.tsan) thread.tsan = __tsan_create_fiber(0);
#endif
    }
    for (int warp = 0; warp * kWarp < size_; ++warp) {
      const int lanes = size_ - warp * kWarp;
      alive_[warp] = lanes >= kWarp ? kFullMask : (1u << lanes) - 1;
      for (Rendezvous*& slot : meetings_[warp]) slot = nullptr;
    }
  }

  SIMT_UNSEEN Thread* next() {
    const bool fresh = next_fresh_ < size_ && (queue_size_ == 0 || prefer_fresh_);
    prefer_fresh_ = false;
    if (fresh) {
      Thread* thread = &threads_[sequence_[next_fresh_++]];
      give_stack(*thread);
      return thread;
    }
    if (queue_size_ == 0) return nullptr;
    Thread* thread = &threads_[queue_[queue_first_]];
    queue_first_ = (queue_first_ + 1) % kMaxThreads;
    --queue_size_;
    return thread;
  }

  SIMT_UNSEEN void give_stack(Thread& thread) {
    if (!kOwnStacks && idle_) {
      thread.fiber = idle_;
      idle_ = idle_->next;
    } else if (thread.fiber == nullptr) {
      thread.fiber = Fiber::create();
      thread.fiber->reset(&Block::live_on_fiber);
    }
  }
  SIMT_UNSEEN void take_stack_back(Fiber& fiber) {
    if (kOwnStacks) return;
    fiber.next = idle_;
    idle_ = &fiber;
  }

  SIMT_UNSEEN void wake(Thread& thread) {
    thread.state = State::running;
    queue_[(queue_first_ + queue_size_++) % kMaxThreads] = thread.linear;
  }

  SIMT_UNSEEN void enter(Thread& thread) {  // from the scheduler to a thread
    current.thread = &thread;
#if SIMT_TSAN
    __tsan_switch_to_fiber(thread.tsan, 1);
#endif
#if SIMT_ASAN
    __sanitizer_start_switch_fiber(&host_.fake_stack, thread.fiber->stack, kStack);
#endif
    swap(host_, *thread.fiber);
#if SIMT_ASAN
    __sanitizer_finish_switch_fiber(host_.fake_stack, nullptr, nullptr);
#endif
#if SIMT_TSAN
    __tsan_switch_to_fiber(host_tsan_, 1);
#endif
  }

  SIMT_UNSEEN void leave(Fiber& fiber) {  // from a thread to the scheduler
#if SIMT_ASAN
    __sanitizer_start_switch_fiber(&fiber.fake_stack, host_bottom_, host_size_);
#endif
    swap(fiber, host_);
#if SIMT_ASAN
    __sanitizer_finish_switch_fiber(fiber.fake_stack, &host_bottom_, &host_size_);
#endif
  }

  SIMT_UNSEEN static void live_on_fiber() {
    Block& block = *current.block;
    Fiber* const fiber = current.thread->fiber;
#if SIMT_ASAN
    __sanitizer_finish_switch_fiber(nullptr, &block.host_bottom_, &block.host_size_);
#endif
    for (;;) {
      block.live(*current.thread);
      if (!kOwnStacks && block.queue_size_ == 0 && block.next_fresh_ < block.size_ && !block.failed_) {
        Thread& thread = block.threads_[block.sequence_[block.next_fresh_++]];  // nobody waits: go on with this stack
        thread.fiber = fiber;
        current.thread = &thread;
        continue;
      }
      block.take_stack_back(*fiber);
      block.leave(*fiber);
    }
  }

  SIMT_UNSEEN void live(Thread& thread) {
    tsan_acquire(&start_);
    thread.state = State::running;
    run_body();
    tsan_release(&end_);
    thread.state = State::done;
    --live_;
    alive_[thread.warp] &= ~(1u << thread.lane);
    for (Rendezvous*& slot : meetings_[thread.warp])
      if (slot && (slot->mask >> thread.lane & 1) && slot->arrived == (slot->mask & alive_[thread.warp]))
        complete(slot, nullptr);
    if (live_ > 0 && waiting_ == live_) release_barrier();
  }

  void run_body() {
    try {
      body_(argument_);
    } catch (...) {
      if (!failed_) error_ = std::current_exception();
      failed_ = true;
    }
  }

  // ---- meetings

  SIMT_UNSEEN void release_barrier() {
    barrier_result_ = barrier_sum_;
    barrier_sum_ = waiting_ = 0;
    ++barrier_generation_;
    for (int i = 0; i < size_; ++i) {
      Thread& thread = threads_[sequence_[i]];
      if (thread.state == State::at_barrier) wake(thread);
    }
  }

  SIMT_UNSEEN Rendezvous* open(const char* call, uint32_t mask) {
    Rendezvous* meeting = free_meetings_;
    if (meeting) {
      free_meetings_ = meeting->next;
    } else {
      meeting = new Rendezvous;
      meeting->older = all_meetings_;
      all_meetings_ = meeting;
    }
    meeting->mask = mask;
    meeting->arrived = 0;
    meeting->call = call;
    return meeting;
  }

  SIMT_UNSEEN void complete(Rendezvous*& slot, const Thread* self) {
    Rendezvous& meeting = *slot;
    slot = nullptr;
    meeting.readers = __builtin_popcount(meeting.arrived);
    const int first = (self ? self->warp : current.thread->warp) * kWarp;
    for (const int lane : lanes_)
      if ((meeting.arrived >> lane & 1) && &threads_[first + lane] != self) wake(threads_[first + lane]);
  }

  // ---- errors

  std::string deadlock() const {
    std::string text = "simt: deadlock in block " + triple(index) + ":";
    for (int i = 0; i < size_;) {
      const Thread& thread = threads_[i];
      int last = i;
      while (last + 1 < size_ && same(threads_[last + 1], thread)) ++last;
      if (thread.state == State::at_barrier || thread.state == State::in_warp) {
        text += (last > i ? " threads " + std::to_string(i) + " to " + std::to_string(last) + " wait"
                          : " thread " + std::to_string(i) + " waits");
        text += std::string(" in ") + thread.call + " at " + name(thread.site) + ";";
      }
      i = last + 1;
    }
    text.back() = '.';
    return text;
  }
  static bool same(const Thread& a, const Thread& b) {
    const bool waits = a.state == State::at_barrier || a.state == State::in_warp;
    return a.state == b.state && (!waits || (a.call == b.call && a.site.is(b.site)));
  }

  // Gives up the threads that are suspended: their frames are forgotten, their stacks serve again.
  void abandon() {
    for (int i = 0; i < size_; ++i) {
      Thread& thread = threads_[i];
      if (thread.state == State::done || thread.state == State::fresh) continue;
      thread.fiber->reset(&Block::live_on_fiber);
      take_stack_back(*thread.fiber);
    }
    free_meetings_ = nullptr;
    for (Rendezvous* meeting = all_meetings_; meeting; meeting = meeting->older) {
      meeting->next = free_meetings_;
      free_meetings_ = meeting;
    }
    failed_ = false;
    std::rethrow_exception(std::exchange(error_, nullptr));
  }

  Body body_ = nullptr;
  const void* argument_ = nullptr;
  bool failed_ = false;
  std::exception_ptr error_;  // the first one

  Thread threads_[kMaxThreads] = {};
  int sequence_[kMaxThreads] = {};  // the order in which threads start, and wake from a barrier
  int lanes_[kWarp] = {};           // the order in which the lanes of a warp wake
  int queue_[kMaxThreads] = {};     // a ring of threads that can go on
  int queue_first_ = 0, queue_size_ = 0, next_fresh_ = 0, size_ = 0, live_ = 0;
  bool prefer_fresh_ = false;
  uint64_t yields_ = 0;
  Order order_;

  int waiting_ = 0, barrier_sum_ = 0, barrier_result_ = 0;
  unsigned barrier_generation_ = 0;
  Site barrier_site_;
  uint32_t alive_[kMaxThreads / kWarp] = {};               // lanes that have not ended
  Rendezvous* meetings_[kMaxThreads / kWarp][kWarp] = {};  // per warp, by the lowest lane of the mask
  Rendezvous* free_meetings_ = nullptr;
  Rendezvous* all_meetings_ = nullptr;

  Fiber host_;  // the scheduler, on the stack of the OS thread
  Fiber* idle_ = nullptr;
  const void* host_bottom_ = nullptr;
  size_t host_size_ = 0;
  void* host_tsan_ = nullptr;
  char start_ = 0, end_ = 0, barrier_[2] = {};  // addresses for ThreadSanitizer

  char* shared_ = nullptr;
  size_t shared_capacity_ = 0, shared_bytes_ = 0;
};

}  // namespace simt

#pragma once
// Fibers: stacks of their own that take turns on one OS thread, and what the sanitizers must be told about them.
// A switch is a dozen instructions on x86-64 and aarch64; elsewhere, or with SIMT_UCONTEXT, it is swapcontext(), which
// makes a system call.

#include <new>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define SIMT_ASAN 1
#else
#define SIMT_ASAN 0
#endif

#if defined(__SANITIZE_THREAD__)
extern "C" {
void* __tsan_get_current_fiber(void);
void* __tsan_create_fiber(unsigned flags);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
}
#define SIMT_TSAN 1
// The emulator's own bookkeeping is shared by all threads of a block: ThreadSanitizer must not look at it.
#define SIMT_UNSEEN __attribute__((no_sanitize("thread")))
#else
#define SIMT_TSAN 0
#define SIMT_UNSEEN
#endif

#if !defined(__x86_64__) && !defined(__aarch64__) && !defined(SIMT_UCONTEXT)
#define SIMT_UCONTEXT
#endif
#if defined(SIMT_UCONTEXT)
#include <ucontext.h>
#endif

namespace simt {

constexpr size_t kStack = SIMT_ASAN || SIMT_TSAN ? 256 * 1024 : 64 * 1024;  // bytes; sanitizers make frames larger

// Happens-before edges, for ThreadSanitizer alone.
SIMT_UNSEEN inline void tsan_release([[maybe_unused]] void* address) {
#if SIMT_TSAN
  __tsan_release(address);
#endif
}
SIMT_UNSEEN inline void tsan_acquire([[maybe_unused]] void* address) {
#if SIMT_TSAN
  __tsan_acquire(address);
#endif
}

#if !defined(SIMT_UCONTEXT)
// Saves what a callee must keep on this stack, stores the stack pointer in *from and continues at `to`.
__attribute__((naked, noinline, unused)) static void swap_stacks([[maybe_unused]] void** from,
                                                                 [[maybe_unused]] void* to) {
#if defined(__x86_64__)
  asm volatile(
      "pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
      "movq %rsp,(%rdi)\n movq %rsi,%rsp\n"
      "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n ret\n");
#else
  asm volatile(
      "sub sp,sp,#160\n stp x19,x20,[sp]\n stp x21,x22,[sp,#16]\n stp x23,x24,[sp,#32]\n"
      "stp x25,x26,[sp,#48]\n stp x27,x28,[sp,#64]\n stp x29,x30,[sp,#80]\n"
      "stp d8,d9,[sp,#96]\n stp d10,d11,[sp,#112]\n stp d12,d13,[sp,#128]\n stp d14,d15,[sp,#144]\n"
      "mov x9,sp\n str x9,[x0]\n mov sp,x1\n"
      "ldp x19,x20,[sp]\n ldp x21,x22,[sp,#16]\n ldp x23,x24,[sp,#32]\n ldp x25,x26,[sp,#48]\n"
      "ldp x27,x28,[sp,#64]\n ldp x29,x30,[sp,#80]\n ldp d8,d9,[sp,#96]\n ldp d10,d11,[sp,#112]\n"
      "ldp d12,d13,[sp,#128]\n ldp d14,d15,[sp,#144]\n add sp,sp,#160\n ret\n");
#endif
}
#endif

// A place where execution can stop and go on. The one of the OS thread itself has no stack of its own here.
struct Fiber {
#if defined(SIMT_UCONTEXT)
  ucontext_t context;
#else
  void* stack_pointer = nullptr;
#endif
  char* stack = nullptr;
  void* fake_stack = nullptr;  // AddressSanitizer's
  Fiber* next = nullptr;       // in a list of idle ones

  // A stack with a page below it that may not be touched. Fibers are never freed: they are used again.
  SIMT_UNSEEN static Fiber* create() {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    void* memory =
        mmap(nullptr, kStack + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    mprotect(memory, page, PROT_NONE);
    Fiber* fiber = new Fiber;
    fiber->stack = static_cast<char*>(memory) + page;
    return fiber;
  }

  // Forgets what ran here: the next switch to this fiber enters `entry`, which must never return.
  SIMT_UNSEEN void reset(void (*entry)()) {
    fake_stack = nullptr;
#if SIMT_ASAN
    __asan_unpoison_memory_region(stack, kStack);
#endif
#if defined(SIMT_UCONTEXT)
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = kStack;
    context.uc_link = nullptr;
    makecontext(&context, entry, 0);
#elif defined(__x86_64__)
    void** top = reinterpret_cast<void**>(stack + kStack);
    *--top = nullptr;  // the return address of `entry`: backtraces end here
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    stack_pointer = top;
#else
    void** top = reinterpret_cast<void**>(stack + kStack - 160);
    for (int i = 0; i < 20; ++i) top[i] = nullptr;
    top[11] = reinterpret_cast<void*>(entry);  // x30, where `ret` goes
    stack_pointer = top;
#endif
  }
};

SIMT_UNSEEN inline void swap(Fiber& from, Fiber& to) {
#if defined(SIMT_UCONTEXT)
  swapcontext(&from.context, &to.context);
#else
  swap_stacks(&from.stack_pointer, to.stack_pointer);
#endif
}

}  // namespace simt

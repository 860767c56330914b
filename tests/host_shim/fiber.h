// The fibers of the shim's runtime, and what the sanitizers are told about them. Part of host_shim.cpp.
//
// The sanitizers' hooks are weak symbols, so that one object file serves every kind of program. They tell
// ThreadSanitizer which fiber runs and what orders memory, and AddressSanitizer which stack is in use.
#pragma once

#include <sys/mman.h>
#include <ucontext.h>

#include <cstddef>
#include <new>
#include <vector>

extern "C" {
#define HOOK __attribute__((weak))
HOOK void* __tsan_get_current_fiber();
HOOK void* __tsan_create_fiber(unsigned flags);
HOOK void __tsan_destroy_fiber(void*);
HOOK void __tsan_switch_to_fiber(void*, unsigned flags);
HOOK void __tsan_acquire(void*);
HOOK void __tsan_release(void*);
HOOK void __sanitizer_start_switch_fiber(void** save, const void* to_stack, size_t to_bytes);
HOOK void __sanitizer_finish_switch_fiber(void* saved, const void** from_stack, size_t* from_bytes);
#undef HOOK
}

#if defined(__x86_64__)
// Switches stacks: pushes the registers that a function must preserve, stores the stack pointer, and continues on the
// other stack. swapcontext does the same with a system call, for the signal mask.
extern "C" void host_shim_switch_stack(void** from, void* to);
asm(R"(
.text
.globl host_shim_switch_stack
.hidden host_shim_switch_stack
.type host_shim_switch_stack, @function
host_shim_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size host_shim_switch_stack, .-host_shim_switch_stack
)");
#endif

namespace host_shim {
namespace {

#if defined(__x86_64__)
class Machine {
 public:
  void begin(void* stack, size_t bytes, void (*main)()) {
    auto** top = reinterpret_cast<void**>(static_cast<char*>(stack) + bytes) - 1;  // aligned as after a call
    *--top = reinterpret_cast<void*>(main);
    saved_ = top - 6;  // six registers of any value
  }

  static void go(Machine& from, Machine& to) { host_shim_switch_stack(&from.saved_, to.saved_); }

 private:
  void* saved_ = nullptr;
};
#else
class Machine {
 public:
  void begin(void* stack, size_t bytes, void (*main)()) {
    getcontext(&saved_);
    saved_.uc_stack.ss_sp = stack;
    saved_.uc_stack.ss_size = bytes;
    saved_.uc_link = nullptr;
    makecontext(&saved_, main, 0);
  }

  static void go(Machine& from, Machine& to) { swapcontext(&from.saved_, &to.saved_); }

 private:
  ucontext_t saved_{};
};
#endif

constexpr size_t stack_bytes = 128 << 10, guard_bytes = 64 << 10;
constexpr unsigned sync = 0, no_sync = 1;  // flags of __tsan_switch_to_fiber

// The point where a fiber, or the scheduler itself, goes on when it is resumed.
struct Context {
  Machine machine;
  const void* stack = nullptr;
  size_t bytes = 0;
  void* tsan_fiber = nullptr;
  void* asan_stack = nullptr;
  bool finished = false;
};

Context scheduler;

void acquire(void* order) {
  if (__tsan_acquire) __tsan_acquire(order);
}

void release(void* order) {
  if (__tsan_release) __tsan_release(order);
}

void switch_context(Context& from, Context& to) {
  if (__tsan_switch_to_fiber) __tsan_switch_to_fiber(to.tsan_fiber, no_sync);  // taking turns orders nothing
  if (__sanitizer_start_switch_fiber)
    __sanitizer_start_switch_fiber(from.finished ? nullptr : &from.asan_stack, to.stack, to.bytes);
  Machine::go(from.machine, to.machine);
  if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(from.asan_stack, nullptr, nullptr);
}

// What a fiber is made of, kept for the next one when it has come to its end and so left nothing on its stack.
struct Kept {
  void* stack;
  void* tsan_fiber;
};

// No more than these, or the libraries of a process would come to the system's limit of mappings, of which a stack with
// its guard takes two.
constexpr size_t most_kept = 1024;

std::vector<Kept> kept;

Kept make_fiber() {
  // The guard below the stack turns its overflow into a fault.
  void* memory =
      mmap(nullptr, guard_bytes + stack_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  void* const stack = static_cast<char*>(memory) + guard_bytes;
  if (mprotect(stack, stack_bytes, PROT_READ | PROT_WRITE)) throw std::bad_alloc();
  return {stack, __tsan_create_fiber ? __tsan_create_fiber(0) : nullptr};
}

// A fiber that begins with `main` when it is first resumed, ordered after all that was done so far.
void create_fiber(Context& context, void (*main)()) {
  if (kept.empty()) kept.push_back(make_fiber());
  context.stack = kept.back().stack;
  context.tsan_fiber = kept.back().tsan_fiber;
  kept.pop_back();
  context.bytes = stack_bytes;
  context.machine.begin(const_cast<void*>(context.stack), stack_bytes, main);
  if (!__tsan_switch_to_fiber) return;
  __tsan_switch_to_fiber(context.tsan_fiber, sync);
  __tsan_switch_to_fiber(scheduler.tsan_fiber, no_sync);
}

void destroy_fiber(Context& context) {
  if (__tsan_switch_to_fiber) {
    // What follows the launch comes after all that the fiber did, even if it did not come to its end.
    __tsan_switch_to_fiber(context.tsan_fiber, no_sync);
    __tsan_switch_to_fiber(scheduler.tsan_fiber, sync);
  }
  void* const stack = const_cast<void*>(context.stack);
  if (context.finished && kept.size() < most_kept) {
    kept.push_back({stack, context.tsan_fiber});
    return;
  }
  if (__tsan_switch_to_fiber) __tsan_destroy_fiber(context.tsan_fiber);
  munmap(static_cast<char*>(stack) - guard_bytes, guard_bytes + stack_bytes);
}

// Do f as if the fiber did it now; called by the scheduler.
template <typename F>
void run_as(const Context& fiber, const F& f) {
  if (__tsan_switch_to_fiber) __tsan_switch_to_fiber(fiber.tsan_fiber, no_sync);
  f();
  if (__tsan_switch_to_fiber) __tsan_switch_to_fiber(scheduler.tsan_fiber, no_sync);
}

// The carrier of a thread's stores to other blocks, which ThreadSanitizer takes for a thread of its own.
class Carrier {
 public:
  Carrier() = default;
  Carrier(const Carrier&) = delete;
  ~Carrier() {
    if (!fiber_) return;
    __tsan_switch_to_fiber(fiber_, no_sync);
    __tsan_switch_to_fiber(scheduler.tsan_fiber, sync);  // what it did is ordered before what follows the launch
    __tsan_destroy_fiber(fiber_);
  }

  // Do f as the carrier, ordered after what was released to `before`; called by the scheduler.
  template <typename F>
  void run(void* before, const F& f) {
    if (!fiber_ && __tsan_create_fiber) fiber_ = __tsan_create_fiber(0);
    if (fiber_) __tsan_switch_to_fiber(fiber_, no_sync);
    acquire(before);
    f();
    if (fiber_) __tsan_switch_to_fiber(scheduler.tsan_fiber, no_sync);
  }

 private:
  void* fiber_ = nullptr;
};

}  // namespace
}  // namespace host_shim

// The runtime of the shim: fibers, their scheduler, and the places where they wait for each other.
//
// To be compiled without sanitizers: what happens here is the machine's work, not the kernel's. The sanitizers' hooks
// are weak, so that one object serves every kind of program; they tell ThreadSanitizer which fiber runs and which of
// its waits order memory, and AddressSanitizer which stack is in use.

#include "host_shim.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdlib>
#include <deque>
#include <map>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
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

host_shim::Index threadIdx, blockIdx, blockDim, gridDim;

namespace host_shim {
namespace {

constexpr size_t stack_bytes = 128 << 10, guard_bytes = 64 << 10;
constexpr unsigned warp_size = 32;
constexpr unsigned sync = 0, no_sync = 1;  // flags of __tsan_switch_to_fiber

// The state of a launch ---------------------------------------------------------------------------------------------

// Where a fiber, or the scheduler itself, goes on when it is resumed.
struct Context {
  ucontext_t machine{};
  const void* stack = nullptr;
  size_t bytes = 0;
  void* tsan_fiber = nullptr;
  void* asan_stack = nullptr;
  bool finished = false;
};

// Threads meet here generation after generation. What one of them publishes for a generation lies in a place of its
// parity: when a thread arrives at the next but one, all have left the former.
struct Barrier {
  unsigned expected = 0, arrived = 0, generation = 0;
  const char* operation = nullptr;  // of those that have arrived
  Place place{};
  char order[2] = {};  // what ThreadSanitizer knows the two parities by
};

struct Warp {
  Barrier barrier;
  Slot slots[2][warp_size];
};

struct Block {
  Index index;
  std::unique_ptr<unsigned char, decltype(&free)> shared{nullptr, &free};
  Barrier barrier;
  unsigned votes[2] = {};
  std::vector<Warp> warps;
};

struct Thread {
  Context context;
  Index index;
  unsigned number;  // in the block
  Block* block;
  Warp* warp;
  const Barrier* barrier = nullptr;  // where it waits, and for the end of which generation
  unsigned generation = 0;
  const char* operation = nullptr;  // the last that gave others a turn
  Place place{};
  std::deque<std::pair<unsigned, Copy>> copies;  // with the number of their group
  unsigned groups = 0;

  bool can_run() const { return !barrier || barrier->generation != generation; }
};

Thread* current;
Context scheduler;
const std::function<void()>* body;
std::string failure;  // of the thread that ran last

// Fibers ------------------------------------------------------------------------------------------------------------

void acquire(void* order) {
  if (__tsan_acquire) __tsan_acquire(order);
}

void release(void* order) {
  if (__tsan_release) __tsan_release(order);
}

void switch_context(Context& from, Context& to) {
  if (__tsan_switch_to_fiber) __tsan_switch_to_fiber(to.tsan_fiber, no_sync);  // a turn orders nothing
  if (__sanitizer_start_switch_fiber)
    __sanitizer_start_switch_fiber(from.finished ? nullptr : &from.asan_stack, to.stack, to.bytes);
  swapcontext(&from.machine, &to.machine);
  if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(from.asan_stack, nullptr, nullptr);
}

void fiber_main() {
  if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(nullptr, &scheduler.stack, &scheduler.bytes);
  (*body)();
  current->context.finished = true;
  switch_context(current->context, scheduler);
}

void create_fiber(Context& context) {
  // The guard below the stack turns its overflow into a fault.
  void* memory =
      mmap(nullptr, guard_bytes + stack_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  void* stack = static_cast<char*>(memory) + guard_bytes;
  mprotect(stack, stack_bytes, PROT_READ | PROT_WRITE);
  context.stack = stack;
  context.bytes = stack_bytes;
  getcontext(&context.machine);
  context.machine.uc_stack.ss_sp = stack;
  context.machine.uc_stack.ss_size = stack_bytes;
  context.machine.uc_link = nullptr;
  makecontext(&context.machine, fiber_main, 0);
  if (__tsan_create_fiber) context.tsan_fiber = __tsan_create_fiber(0);  // comes after all that was done so far
}

void destroy_fiber(Context& context) {
  if (__tsan_switch_to_fiber) {
    // What follows the launch comes after all that the fiber did, even if it did not come to its end.
    __tsan_switch_to_fiber(context.tsan_fiber, no_sync);
    __tsan_switch_to_fiber(scheduler.tsan_fiber, sync);
    __tsan_destroy_fiber(context.tsan_fiber);
  }
  munmap(static_cast<char*>(const_cast<void*>(context.stack)) - guard_bytes, guard_bytes + stack_bytes);
}

// Messages ----------------------------------------------------------------------------------------------------------

std::string text(const Index& index) {
  return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " + std::to_string(index.z) + ")";
}

std::string text(const char* operation, const Place& place) {
  if (!operation) return "its beginning";
  return std::string(operation) + " (" + place.file + ":" + std::to_string(place.line) + ")";
}

// End the launch from within a thread, which is never resumed.
[[noreturn]] void fail(const std::string& reason, const char* operation, const Place& place) {
  failure = reason + " at " + text(operation, place) + ", block " + text(current->block->index) + ", thread " +
            text(current->index);
  release(&failure);
  switch_context(current->context, scheduler);
  abort();
}

// Which threads are where: a line for those of a block that are at the same place.
std::string whereabouts(const std::vector<Thread*>& threads) {
  std::map<std::string, std::vector<const Thread*>> groups;
  for (const Thread* thread : threads)
    groups["block " + text(thread->block->index) + " at " + text(thread->operation, thread->place)].push_back(thread);
  std::string lines;
  for (const auto& [where, there] : groups)
    lines += "\n  " + where + ": " + std::to_string(there.size()) + " of " +
             std::to_string(there[0]->block->barrier.expected) + " threads, one is " + text(there[0]->index);
  return lines;
}

// Waiting -----------------------------------------------------------------------------------------------------------

// Returns once all have arrived; orders their memory accesses if the barrier does so on a GPU.
void wait_at(Barrier& barrier, bool orders_memory, const char* operation, Place place) {
  if (barrier.arrived == 0) {
    barrier.operation = operation;
    barrier.place = place;
  } else if (barrier.place.line != place.line || strcmp(barrier.place.file, place.file) != 0) {
    fail("others wait at " + text(barrier.operation, barrier.place) + " for a thread that is", operation, place);
  }
  char* const order = &barrier.order[barrier.generation % 2];
  if (orders_memory) release(order);
  if (++barrier.arrived == barrier.expected) {
    barrier.arrived = 0;
    ++barrier.generation;
  } else {
    current->barrier = &barrier;
    current->generation = barrier.generation;
    let_others_run(operation, place);
    current->barrier = nullptr;
  }
  if (orders_memory) acquire(order);
}

// The grid and its scheduler ----------------------------------------------------------------------------------------

template <typename F>
void for_each_index(const Index& size, const F& f) {
  for (unsigned z = 0; z < size.z; ++z)
    for (unsigned y = 0; y < size.y; ++y)
      for (unsigned x = 0; x < size.x; ++x) f(Index{x, y, z});
}

class Grid {
 public:
  explicit Grid(const Launch& launch) : launch_(launch) {
    for_each_index(launch.grid, [&](const Index& index) { add_block(index); });
  }

  ~Grid() {
    for (Thread& thread : threads_) destroy_fiber(thread.context);
  }

  void run() {
    std::vector<Thread*> live;
    for (Thread& thread : threads_) live.push_back(&thread);
    std::mt19937 random(launch_.seed);
    for (uint64_t round = 0; !live.empty(); ++round) {
      if (launch_.seed) std::shuffle(live.begin(), live.end(), random);
      if (!run_round(live)) stop("deadlock, all threads wait:", live);
      if (round == launch_.round_limit) stop("no end in sight after so many rounds as allowed:", live);
      live.erase(std::remove_if(live.begin(), live.end(), [](const Thread* t) { return t->context.finished; }),
                 live.end());
    }
  }

 private:
  void add_block(const Index& index) {
    Block& block = blocks_.emplace_back();
    const unsigned threads = launch_.block.x * launch_.block.y * launch_.block.z;
    block.index = index;
    block.barrier.expected = threads;
    block.warps.resize((threads + warp_size - 1) / warp_size);
    for (unsigned w = 0; w < block.warps.size(); ++w) {
      block.warps[w].barrier.expected = std::min(warp_size, threads - w * warp_size);
      memset(block.warps[w].slots, 0xff, sizeof(Warp::slots));  // lanes that do not exist give NaN
    }
    // Of the exact size, for AddressSanitizer to see an overrun.
    void* shared = nullptr;
    if (posix_memalign(&shared, 128, launch_.shared_bytes)) throw std::bad_alloc();
    block.shared.reset(static_cast<unsigned char*>(shared));
    memset(shared, 0xff, launch_.shared_bytes);
    for_each_index(launch_.block, [&](const Index& thread) { add_thread(block, thread); });
  }

  void add_thread(Block& block, const Index& index) {
    Thread& thread = threads_.emplace_back();
    thread.index = index;
    thread.number = index.x + launch_.block.x * (index.y + launch_.block.y * index.z);
    thread.block = &block;
    thread.warp = &block.warps[thread.number / warp_size];
    create_fiber(thread.context);
  }

  // A turn for every thread that can run; false if none can.
  bool run_round(const std::vector<Thread*>& live) {
    bool any = false;
    for (Thread* thread : live) {
      if (!thread->can_run()) continue;
      any = true;
      current = thread;
      threadIdx = thread->index;
      blockIdx = thread->block->index;
      switch_context(scheduler, thread->context);
      if (failure.empty()) continue;
      acquire(&failure);
      throw std::runtime_error("host_shim: " + failure);
    }
    return any;
  }

  [[noreturn]] static void stop(const char* reason, const std::vector<Thread*>& live) {
    throw std::runtime_error(std::string("host_shim: ") + reason + whereabouts(live));
  }

  Launch launch_;
  std::deque<Block> blocks_;  // deques, because others point to the elements
  std::deque<Thread> threads_;
};

}  // namespace

void run(const Launch& launch, const std::function<void()>& kernel) {
  gridDim = launch.grid;
  blockDim = launch.block;
  body = &kernel;
  failure.clear();
  if (__tsan_get_current_fiber) scheduler.tsan_fiber = __tsan_get_current_fiber();
  Grid grid(launch);
  grid.run();
}

// What a running thread calls ---------------------------------------------------------------------------------------

unsigned char* dynamic_shared() { return current->block->shared.get(); }

unsigned lane() { return current->number % warp_size; }

void let_others_run(const char* operation, Place place) {
  current->operation = operation;
  current->place = place;
  switch_context(current->context, scheduler);
}

unsigned sync_block(bool vote, const char* operation, Place place) {
  Block& block = *current->block;
  const unsigned parity = block.barrier.generation % 2;
  if (block.barrier.arrived == 0) block.votes[parity] = 0;
  block.votes[parity] += vote;
  wait_at(block.barrier, true, operation, place);
  return block.votes[parity];
}

void sync_warp(Place place) { wait_at(current->warp->barrier, true, "__syncwarp", place); }

void exchange(unsigned mask, const Slot& value, const char* operation, Place place) {
  if (mask != ~0u) fail("not all lanes are in the mask", operation, place);
  Warp& warp = *current->warp;
  warp.slots[warp.barrier.generation % 2][lane()] = value;
  wait_at(warp.barrier, false, operation, place);
}

Slot given_by(unsigned lane) {
  const Warp& warp = *current->warp;
  return warp.slots[(warp.barrier.generation - 1) % 2][lane];
}

void start_copy(const Copy& copy) { current->copies.emplace_back(current->groups, copy); }

void close_copy_group() { ++current->groups; }

bool take_copy(unsigned pending, Copy* copy) {
  auto& copies = current->copies;
  if (copies.empty() || copies.front().first + pending >= current->groups) return false;
  *copy = copies.front().second;
  copies.pop_front();
  return true;
}

void require_aligned(const void* p, size_t bytes, const char* operation, Place place) {
  if (reinterpret_cast<uintptr_t>(p) % bytes != 0) fail("misaligned address", operation, place);
}

void multiply_matrices(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], float (*widen)(uint16_t),
                       Place place) {
  struct Registers {
    uint32_t a[4], b[2];
  };
  exchange(~0u, to_slot(Registers{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}}), "mma_m16n8k16", place);
  // Element `column` of a row of eight 16-bit elements, two to a register, the row's first pair in lane 4 * row.
  const auto element = [&](unsigned row, unsigned column, auto pick) {
    const uint32_t pair = pick(from_slot<Registers>(given_by(4 * row + column / 2)));
    return widen(static_cast<uint16_t>(pair >> (16 * (column % 2))));
  };
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned row = lane() / 4, column = 2 * (lane() % 4) + i % 2;
    for (unsigned k = 0; k < 16; ++k)
      sum[i] += element(row, k % 8, [&](const Registers& r) { return r.a[i / 2 + 2 * (k / 8)]; }) *
                element(column, k % 8, [&](const Registers& r) { return r.b[k / 8]; });
  }
}

}  // namespace host_shim

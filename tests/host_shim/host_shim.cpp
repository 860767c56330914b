// The runtime of the shim: the threads of a launch, their scheduler, and the barriers where they wait for each other.
// Its parts are fiber.h, what a thread is made of, and network.h, the stores between blocks.
//
// It is compiled without sanitizers, because what happens here is the machine's work, not the kernel's.

#include "host_shim.h"

#include <algorithm>
#include <bitset>
#include <cstdlib>
#include <deque>
#include <map>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "fiber.h"

host_shim::Index threadIdx, blockIdx, blockDim, gridDim;

namespace host_shim {
namespace {

constexpr unsigned warp_size = 32, most_threads = 1024, most_blocks = 16;  // in a block, in a cluster

// The state of a launch ---------------------------------------------------------------------------------------------

// A barrier, which threads pass in one generation after the other. What a thread publishes for a generation lies in a
// place of its parity: when a thread arrives at the generation after the next, all have left this one.
struct Barrier {
  unsigned expected = 0, arrived = 0, generation = 0;
  const char* operation = nullptr;  // where the arrived threads wait
  Place place{};
  char order[2] = {};  // addresses by which ThreadSanitizer knows the two parities
};

struct Warp {
  Barrier barrier;
  Slot slots[2][warp_size];
};

// A named barrier, and the threads that have arrived since it was last complete.
struct NamedBarrier {
  Barrier barrier;
  std::bitset<most_threads> arrived;
  BarrierMarks marks[2] = {};
};

// A barrier that counts arrivals and bytes.
struct Mbarrier {
  unsigned arrivals, pending;  // arrivals of a phase, and those that are missing
  int64_t bytes = 0;           // announced and not come; if negative, come and not announced
  unsigned phase = 0;
  char order[2] = {}, own_order[2] = {};  // by the phase's parity; for all blocks, for this one's threads
};

struct Cluster;

struct Block {
  Index index;
  Cluster* cluster;
  unsigned rank;          // in the cluster
  unsigned live;          // threads that have not ended
  unsigned incoming = 0;  // pushes in flight to it
  char end_order = 0;
  NamedBarrier named[16];
  std::map<uintptr_t, Mbarrier> mbarriers;
  std::unique_ptr<unsigned char, decltype(&free)> shared{nullptr, &free};
  Barrier barrier;
  unsigned votes[2] = {};
  std::vector<Warp> warps;
};

struct Cluster {
  Barrier barrier;
  std::vector<Block*> blocks;
};

struct Thread {
  Context context;
  Carrier carrier;
  Index index;
  unsigned number;  // in the block
  Block* block;
  Warp* warp;
  const Barrier* barrier = nullptr;  // where it waits, for the end of `generation`
  unsigned generation = 0;
  bool at_cluster_barrier = false;  // it has arrived there, in cluster_generation, and not waited
  unsigned cluster_generation = 0;
  const char* operation = nullptr;  // the last one that let others run
  Place place{};
  std::deque<std::pair<unsigned, Copy>> copies;  // with the number of their group
  unsigned groups = 0;

  bool can_run() const { return !barrier || barrier->generation != generation; }
};

Launch shape;
uint64_t round_number;
Thread* current;
const std::function<void()>* body;
std::string failure;  // the failure of the thread that ran last

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

// Where the threads are, with a line for those of a block that are at the same place.
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

// Count one more arrival, and return its generation. What the thread did before is released if it would be on a GPU.
unsigned arrive_at(Barrier& barrier, bool orders_memory) {
  const unsigned generation = barrier.generation;
  if (orders_memory) release(&barrier.order[generation % 2]);
  if (++barrier.arrived == barrier.expected) {
    barrier.arrived = 0;
    ++barrier.generation;
  }
  return generation;
}

void wait_for_end(Barrier& barrier, unsigned generation, bool orders_memory, const char* operation, Place place) {
  if (barrier.generation == generation) {
    current->barrier = &barrier;
    current->generation = generation;
    let_others_run(operation, place);
    current->barrier = nullptr;
  }
  if (orders_memory) acquire(&barrier.order[generation % 2]);
}

// Wait until all have arrived, which they must at the same place of the source.
void wait_at(Barrier& barrier, bool orders_memory, const char* operation, Place place) {
  if (barrier.arrived == 0) {
    barrier.operation = operation;
    barrier.place = place;
  } else if (barrier.place.line != place.line || strcmp(barrier.place.file, place.file) != 0) {
    fail("others wait at " + text(barrier.operation, barrier.place) + " for a thread that is", operation, place);
  }
  wait_for_end(barrier, arrive_at(barrier, orders_memory), orders_memory, operation, place);
}

// All lanes of the warp must be here.
void require_whole_warp(const char* operation, Place place) { exchange(~0u, Slot{}, operation, place); }

}  // namespace
}  // namespace host_shim

#include "network.h"

namespace host_shim {
namespace {

// The grid and its scheduler ----------------------------------------------------------------------------------------

void fiber_main() {
  if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(nullptr, &scheduler.stack, &scheduler.bytes);
  (*body)();
  current->context.finished = true;
  switch_context(current->context, scheduler);
}

template <typename F>
void for_each_index(const Index& size, const F& f) {
  for (unsigned z = 0; z < size.z; ++z)
    for (unsigned y = 0; y < size.y; ++y)
      for (unsigned x = 0; x < size.x; ++x) f(Index{x, y, z});
}

class Grid {
 public:
  explicit Grid(const Launch& launch) : launch_(launch) {
    if (launch.cluster < 1 || launch.cluster > most_blocks || launch.grid.x % launch.cluster)
      throw std::runtime_error("host_shim: a grid of " + text(launch.grid) + " blocks has no clusters of " +
                               std::to_string(launch.cluster));
    for_each_index(launch.grid, [&](const Index& index) { add_block(index); });
  }

  ~Grid() {
    for (Thread& thread : threads_) destroy_fiber(thread.context);
  }

  void run() {
    std::vector<Thread*> live;
    for (Thread& thread : threads_) live.push_back(&thread);
    std::mt19937 random(launch_.seed);
    for (round_number = 0; !live.empty(); ++round_number) {
      if (launch_.seed) std::shuffle(live.begin(), live.end(), random);
      if (!run_round(live) && !network.deliver_next()) stop("deadlock, all threads wait:", live);
      if (round_number == launch_.round_limit) stop("no end in sight after so many rounds as allowed:", live);
      live.erase(std::remove_if(live.begin(), live.end(), [](const Thread* t) { return t->context.finished; }),
                 live.end());
    }
    network.deliver_messages();
  }

 private:
  void add_block(const Index& index) {
    Block& block = blocks_.emplace_back();
    const unsigned threads = launch_.block.x * launch_.block.y * launch_.block.z;
    if (index.x % launch_.cluster == 0) clusters_.emplace_back();
    block.index = index;
    block.cluster = &clusters_.back();
    block.cluster->blocks.push_back(&block);
    block.cluster->barrier.expected += threads;
    block.rank = index.x % launch_.cluster;
    block.live = block.barrier.expected = threads;
    block.warps.resize((threads + warp_size - 1) / warp_size);
    for (unsigned w = 0; w < block.warps.size(); ++w) {
      block.warps[w].barrier.expected = std::min(warp_size, threads - w * warp_size);
      memset(block.warps[w].slots, 0xff, sizeof(Warp::slots));  // missing lanes give NaN
    }
    // The exact size lets AddressSanitizer see an overrun.
    void* shared = nullptr;
    if (posix_memalign(&shared, 128, launch_.shared_bytes)) throw std::bad_alloc();
    block.shared.reset(static_cast<unsigned char*>(shared));
    memset(shared, 0xff, launch_.shared_bytes);
    if (index.x + launch_.absent < launch_.grid.x)
      for_each_index(launch_.block, [&](const Index& thread) { add_thread(block, thread); });
  }

  void add_thread(Block& block, const Index& index) {
    Thread& thread = threads_.emplace_back();
    thread.index = index;
    thread.number = index.x + launch_.block.x * (index.y + launch_.block.y * index.z);
    thread.block = &block;
    thread.warp = &block.warps[thread.number / warp_size];
    create_fiber(thread.context, fiber_main);
  }

  // A turn for every thread that can run; false if none can.
  bool run_round(const std::vector<Thread*>& live) {
    bool any = false;
    for (Thread* thread : live) {
      network.pass_turn(live.size());
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
  std::deque<Cluster> clusters_;  // deques, because others point to the elements
  std::deque<Block> blocks_;
  std::deque<Thread> threads_;
};

}  // namespace

void run(const Launch& launch, const std::function<void()>& kernel) {
  gridDim = launch.grid;
  blockDim = launch.block;
  shape = launch;
  body = &kernel;
  failure.clear();
  network.clear(launch.seed);
  if (__tsan_get_current_fiber) scheduler.tsan_fiber = __tsan_get_current_fiber();
  Grid grid(launch);
  grid.run();
}

// What a running thread calls ---------------------------------------------------------------------------------------

unsigned char* dynamic_shared() { return current->block->shared.get(); }

size_t dynamic_shared_bytes() { return shape.shared_bytes; }

uint64_t rounds() { return round_number; }

unsigned lane() { return current->number % warp_size; }

unsigned warp() { return current->number / warp_size; }

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

BarrierMarks& barrier_marks(unsigned number, bool last) {
  NamedBarrier& named = current->block->named[number % 16];
  return named.marks[(named.barrier.generation + last) % 2];
}

void use_named_barrier(unsigned number, unsigned threads, bool waits, const char* operation, Place place) {
  Block& block = *current->block;
  if (number < 1 || number > 15)
    fail("named barriers are numbered 1 to 15, not " + std::to_string(number), operation, place);
  if (threads == 0 || threads % warp_size || threads > block.barrier.expected)
    fail(std::to_string(threads) + " threads cannot arrive at a named barrier", operation, place);
  require_whole_warp(operation, place);
  auto& [barrier, arrived, marks] = block.named[number];
  if (barrier.arrived == 0) {
    barrier.expected = threads;
    arrived.reset();
  }
  if (barrier.expected != threads)
    fail("others expect " + std::to_string(barrier.expected) + " threads at the named barrier, not " +
             std::to_string(threads),
         operation, place);
  if (arrived[current->number])
    fail("a thread arrives again at a named barrier that is not complete", operation, place);
  arrived.set(current->number);
  const unsigned generation = arrive_at(barrier, true);
  if (waits) wait_for_end(barrier, generation, true, operation, place);
}

void sync_warp(Place place) { wait_at(current->warp->barrier, true, "__syncwarp", place); }

void exchange(unsigned mask, const Slot& value, const char* operation, Place place) {
  if (mask != ~0u) fail("not all lanes are in the mask", operation, place);
  Warp& warp = *current->warp;
  warp.slots[warp.barrier.generation % 2][lane()] = value;
  wait_at(warp.barrier, false, operation, place);
}

const Slot& given_by(unsigned lane) {
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
  // Eight 16-bit elements of a row stand two to a register, the row's first pair in lane 4 * row.
  const auto row_of = [&](float (&values)[16], unsigned row, auto pick) {
    for (unsigned k = 0; k < 16; ++k) {
      const uint32_t pair = pick(from_slot<Registers>(given_by(4 * row + k % 8 / 2)), k / 8);
      values[k] = widen(static_cast<uint16_t>(pair >> (16 * (k % 2))));
    }
  };
  float of_a[2][16], of_b[2][16];
  for (unsigned i = 0; i < 2; ++i) {
    row_of(of_a[i], lane() / 4, [&](const Registers& r, unsigned half) { return r.a[i + 2 * half]; });
    row_of(of_b[i], 2 * (lane() % 4) + i, [&](const Registers& r, unsigned half) { return r.b[half]; });
  }
  for (unsigned i = 0; i < 4; ++i)
    for (unsigned k = 0; k < 16; ++k) sum[i] += of_a[i / 2][k] * of_b[i % 2][k];
}

}  // namespace host_shim

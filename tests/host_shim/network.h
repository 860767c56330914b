// Clusters in the shim's runtime: their barrier, barriers that count bytes, stores in flight between blocks, and
// messages in flight to global memory. Part of host_shim.cpp.
//
// A store arrives at a turn that is drawn when it begins; if all threads wait, the next one arrives at once. It is made
// by a carrier, ordered after all that the storing thread did before; only threads that wait for the phase of the
// barrier that counts its bytes are ordered after it. A message is made by the thread that stored it, as if it stored
// it at its arrival: it orders nothing.
#pragma once

namespace host_shim {
namespace {

constexpr int64_t most_bytes = (1 << 20) - 1;  // the most that a barrier can count

uintptr_t shared_address_of(const Block& block) { return reinterpret_cast<uintptr_t>(block.shared.get()); }

bool holds(const Block& block, uintptr_t address) {
  const uintptr_t begin = shared_address_of(block);
  return address >= begin && address < begin + shape.shared_bytes;
}

Block& block_with(uintptr_t address, const char* operation, Place place) {
  for (Block* block : current->block->cluster->blocks)
    if (holds(*block, address)) return *block;
  fail("no shared memory of the cluster has this address", operation, place);
}

// The barrier at an address of a block.
Mbarrier& mbarrier_at(Block& block, uintptr_t address, const char* operation, Place place) {
  const auto found = block.mbarriers.find(address);
  if (found == block.mbarriers.end()) fail("no mbarrier of the block is at this address", operation, place);
  return found->second;
}

Mbarrier& own_mbarrier(uintptr_t address, const char* operation, Place place) {
  return mbarrier_at(*current->block, address, operation, place);
}

// Count bytes that are announced or, if negative, come, and end the phase if nothing is missing. Returns what is wrong
// with that, or null.
const char* count(Mbarrier& barrier, int64_t bytes) {
  barrier.bytes += bytes;
  if (barrier.bytes > most_bytes || barrier.bytes < -most_bytes) return "an mbarrier cannot count so many bytes";
  if (barrier.pending > 0) return nullptr;
  if (barrier.bytes < 0) return "more bytes have come to an mbarrier than were announced";
  if (barrier.bytes > 0) return nullptr;
  ++barrier.phase;
  barrier.pending = barrier.arrivals;
  return nullptr;
}

class Network {
  static constexpr unsigned capacity = 1 << 14;

  struct Transit {
    Store store;
    Block* block;
    Mbarrier* mbarrier;
    Thread* thread;
    Place place;
    uint64_t due, number;
    // An address by which ThreadSanitizer knows all that the thread did before the store. The scheduler makes a new one
    // for each store, because ThreadSanitizer never forgets.
    std::unique_ptr<char> before;
  };

  // Orders a heap of places by the arrival of their stores, the next one first.
  auto later() const {
    return [this](unsigned a, unsigned b) {
      return std::tie(places_[a].due, places_[a].number) > std::tie(places_[b].due, places_[b].number);
    };
  }

 public:
  // Reset before a launch. The places are allocated here, because threads must not share what they allocate.
  void clear(unsigned seed) {
    places_.resize(capacity);
    for (Transit& place : places_) place.before = std::make_unique<char>();
    free_.clear();
    for (unsigned i = 0; i < capacity; ++i) free_.push_back(i);
    under_way_.clear();
    under_way_.reserve(capacity);
    last_due_.assign(capacity, 0);
    random_.seed(seed);
    seed_ = seed;
    turn_ = number_ = 0;
    live_ = 1;
  }

  bool full() const { return free_.empty(); }

  void start(const Store& store, Block& block, Mbarrier& mbarrier, Place place) {
    if (++number_ == shape.lost) return;
    const unsigned i = place_for(store);
    Transit& p = places_[i];
    p.block = &block;
    p.mbarrier = &mbarrier;
    p.place = place;
    p.due = turn_ + delay(current->block->rank, block.rank);
    release(p.before.get());
    ++block.incoming;
    send(i);
  }

  // Start a message, which arrives no earlier than what was stored to the same place before.
  void start(const Store& message) {
    ++number_;
    const unsigned i = place_for(message);
    Transit& p = places_[i];
    p.block = nullptr;
    p.mbarrier = nullptr;
    uint64_t& last = last_due_[reinterpret_cast<uintptr_t>(message.to) / 4 % capacity];
    p.due = last = std::max(last, turn_ + delay(current->block->index.x, static_cast<unsigned>(number_ / 32)));
    send(i);
  }

  // A thread's turn begins, while `live` threads are at work.
  void pass_turn(size_t live) {
    ++turn_;
    live_ = live;
    while (!under_way_.empty() && places_[under_way_.front()].due <= turn_) deliver_next();
  }

  // Deliver the next store; false if none is in flight.
  bool deliver_next() {
    if (under_way_.empty()) return false;
    std::pop_heap(under_way_.begin(), under_way_.end(), later());
    const unsigned i = under_way_.back();
    under_way_.pop_back();
    Transit& p = places_[i];
    free_.push_back(i);
    if (!p.mbarrier) {
      run_as(p.thread->context, [&] { p.store.copy(p.store); });
      return true;
    }
    --p.block->incoming;
    p.thread->carrier.run(p.before.get(), [&] {
      p.store.copy(p.store);
      release(&p.mbarrier->order[p.mbarrier->phase % 2]);
    });
    if (const char* wrong = count(*p.mbarrier, -static_cast<int64_t>(p.store.bytes)))
      throw std::runtime_error(std::string("host_shim: ") + wrong + " at " + text("push", p.place) + ", from block " +
                               text(p.thread->block->index) + " to " + text(p.block->index));
    p.before = std::make_unique<char>();
    return true;
  }

  // Called when all threads have ended: a kernel ends with all its stores made.
  void deliver_messages() {
    under_way_.erase(
        std::remove_if(under_way_.begin(), under_way_.end(), [&](unsigned i) { return places_[i].mbarrier; }),
        under_way_.end());
    std::make_heap(under_way_.begin(), under_way_.end(), later());
    while (deliver_next()) {
    }
  }

 private:
  // A place for a store of the running thread while it is in flight.
  unsigned place_for(const Store& store) {
    const unsigned i = free_.back();
    free_.pop_back();
    places_[i].store = store;
    places_[i].thread = current;
    places_[i].number = number_;
    return i;
  }

  void send(unsigned i) {
    under_way_.push_back(i);
    std::push_heap(under_way_.begin(), under_way_.end(), later());
  }

  // Without a seed a store takes one round. Otherwise most stores take up to one round, and those between some pairs of
  // blocks, as well as some words of messages, up to 64.
  uint64_t delay(unsigned from, unsigned to) {
    if (!seed_) return live_;
    const unsigned link = (seed_ * most_blocks + from) * most_blocks + to;
    const uint64_t most = (link * 2654435761u >> 16) % 8 == 0 ? 64 * live_ : live_;
    return random_() % (most + 1);
  }

  std::vector<Transit> places_;
  std::vector<unsigned> free_, under_way_;  // the latter a heap
  std::vector<uint64_t> last_due_;          // the last message's to a place; some places share one
  std::mt19937 random_;
  unsigned seed_ = 0;
  uint64_t turn_ = 0, live_ = 1, number_ = 0;
};

Network network;

// The rest of a cluster goes on without a thread that has ended.
void leave_cluster(Barrier& barrier) {
  --barrier.expected;
  if (barrier.arrived == 0 || barrier.arrived < barrier.expected) return;
  barrier.arrived = 0;
  ++barrier.generation;
}

// The end of a block must find no stores in flight to it and no phases half done.
void require_quiet(const Block& block) {
  const Place nowhere{"kernel", 0};
  if (block.incoming > 0)
    fail("the block ends with " + std::to_string(block.incoming) + " pushes under way to it", "its end", nowhere);
  if (shape.gives_up) return;
  for (const auto& [address, barrier] : block.mbarriers)
    if (barrier.bytes != 0 || barrier.pending != barrier.arrivals)
      fail("the block ends while an mbarrier misses " + std::to_string(barrier.bytes) + " bytes and " +
               std::to_string(barrier.pending) + " arrivals",
           "its end", nowhere);
  for (const NamedBarrier& named : block.named)
    if (named.barrier.arrived > 0) fail("the block ends while a named barrier is half complete", "its end", nowhere);
}

}  // namespace

// What a running thread calls ---------------------------------------------------------------------------------------

bool leave_block() {
  Block& block = *current->block;
  leave_cluster(block.cluster->barrier);
  release(&block.end_order);
  if (--block.live > 0) return false;
  acquire(&block.end_order);
  require_quiet(block);
  return !shape.gives_up;
}

unsigned cluster_rank() { return current->block->rank; }

unsigned cluster_size() { return shape.cluster; }

void arrive_in_cluster(bool orders_memory, Place place) {
  require_whole_warp("cluster_arrive", place);
  if (current->at_cluster_barrier) fail("a thread arrives twice at its cluster's barrier", "cluster_arrive", place);
  current->at_cluster_barrier = true;
  current->cluster_generation = arrive_at(current->block->cluster->barrier, orders_memory);
}

void wait_in_cluster(Place place) {
  require_whole_warp("cluster_wait", place);
  if (!current->at_cluster_barrier) fail("a thread waits that has not arrived", "cluster_wait", place);
  current->at_cluster_barrier = false;
  wait_for_end(current->block->cluster->barrier, current->cluster_generation, true, "cluster_wait", place);
}

uintptr_t address_in_block(uintptr_t address, unsigned rank, Place place) {
  const auto& blocks = current->block->cluster->blocks;
  if (rank >= blocks.size()) fail("the cluster has no block " + std::to_string(rank), "address_in_block", place);
  if (!holds(*current->block, address)) fail("not an address of this block", "address_in_block", place);
  return address - shared_address_of(*current->block) + shared_address_of(*blocks[rank]);
}

void require_live_block(uintptr_t address, const char* operation, Place place) {
  if (block_with(address, operation, place).live == 0) fail("the other block has ended", operation, place);
}

void require_mark(bool found, const char* operation, Place place) {
  if (!found) fail("the mbarrier has not been set up, or was written to", operation, place);
}

void init_mbarrier(uintptr_t address, unsigned arrivals, Place place) {
  require_aligned(reinterpret_cast<const void*>(address), 8, "mbarrier_init", place);
  if (!holds(*current->block, address)) fail("not an address of this block", "mbarrier_init", place);
  if (arrivals == 0) fail("a phase needs an arrival", "mbarrier_init", place);
  Mbarrier barrier{};
  barrier.arrivals = barrier.pending = arrivals;
  if (!current->block->mbarriers.emplace(address, barrier).second)
    fail("the mbarrier has been set up before", "mbarrier_init", place);
}

void expect_bytes(uintptr_t address, unsigned bytes, Place place) {
  Mbarrier& barrier = own_mbarrier(address, "mbarrier_expect", place);
  if (barrier.pending == 0) fail("one arrival too many in a phase of an mbarrier", "mbarrier_expect", place);
  release(&barrier.own_order[barrier.phase % 2]);
  --barrier.pending;
  if (const char* wrong = count(barrier, bytes)) fail(wrong, "mbarrier_expect", place);
}

bool phase_has_ended(uintptr_t address, unsigned parity, bool cluster_scope, Place place) {
  if (parity > 1) fail("a parity is 0 or 1", "mbarrier_ended", place);
  Mbarrier& barrier = own_mbarrier(address, "mbarrier_ended", place);
  let_others_run("mbarrier_ended", place);
  if (barrier.phase % 2 == parity) return false;
  acquire(&barrier.own_order[parity]);
  if (cluster_scope) acquire(&barrier.order[parity]);
  return true;
}

void start_store(const Store& store, Place place) {
  const auto to = reinterpret_cast<uintptr_t>(store.to);
  Block& block = block_with(to, "push", place);
  if (!holds(block, to + store.bytes - 1)) fail("the end of the store is not in the block", "push", place);
  Mbarrier& mbarrier = mbarrier_at(block, store.mbarrier, "push", place);
  while (network.full()) let_others_run("push", place);
  network.start(store, block, mbarrier, place);
}

void start_message(const Store& message, Place place) {
  const size_t bytes = shape.whole_messages ? message.bytes : 4;
  for (size_t begin = 0; begin < message.bytes; begin += bytes) {
    while (network.full()) let_others_run("store_message", place);
    Store part{message.to + begin, 0, bytes, {}, message.copy};
    memcpy(part.words, reinterpret_cast<const unsigned char*>(message.words) + begin, bytes);
    network.start(part);
  }
}

}  // namespace host_shim

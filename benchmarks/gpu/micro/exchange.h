// Kernels that measure how blocks wait for each other and exchange data through L2. They run on the host shim too
// (tests/host_shim/exchanges.cpp), where ThreadSanitizer checks their order.
//
// Every kernel counts wrong results in `wrong`, and gives up when a wait times out.
#pragma once

#include "../../../csrc/cells/math.h"
#include "../../../csrc/cuda/device.h"

namespace fused_rnn::cuda {

// Three words of data and the tag that identifies the message, in one access of 16 bytes.
struct alignas(16) Message {
  unsigned data[3];
  unsigned tag;
};

#ifndef FUSED_RNN_THREADS
#  define FUSED_RNN_THREADS 256
#endif
constexpr int threads = FUSED_RNN_THREADS;  // of a block, as in the recurrent kernels

// The barrier of the recurrent kernels' blocks, at a counter that only grows: afterwards all blocks see what any of
// them stored before. False after a timeout.
class CounterBarrier {
 public:
  FUSED_RNN_DEVICE CounterBarrier(unsigned* arrivals, unsigned* failed) : arrivals_(arrivals), failed_(failed) {}

  FUSED_RNN_DEVICE bool wait() {
    __syncthreads();
    bool arrived = true;
    target_ += gridDim.x;
    if (threadIdx.x == 0) {
      add_release(arrivals_, 1);
      arrived = wait_for(arrivals_, target_, failed_);
    }
    return __syncthreads_and(arrived);
  }

 private:
  unsigned* arrivals_;
  unsigned* failed_;
  unsigned target_ = 0;
};

// A block's slice of `total` things.
struct Slice {
  int first, count;
};

FUSED_RNN_DEVICE Slice slice_of(int total, int block, int blocks) {
  const int each = (total + blocks - 1) / blocks, first = block * each;
  return {first, first >= total ? 0 : total - first < each ? total - first : each};
}

// The operands of barrier measurements. In checked runs each block also passes a number on to the next one, in two
// places that take turns, and checks that it came; timed runs only wait.
struct Barriers {
  int rounds;
  unsigned* arrivals;  // [1] counter, or [blocks] flags; zeros
  unsigned* passed;    // [2, blocks], or null if nothing is checked
  unsigned* failed;    // zero
  unsigned* wrong;     // zero
};

// Wait in every round; wait() is false if a block did not come.
template <typename F>
FUSED_RNN_DEVICE void wait_often(const Barriers& q, const F& wait) {
  const unsigned blocks = gridDim.x, next = (blockIdx.x + 1) % blocks;
  for (int round = 1; round <= q.rounds; ++round) {
    unsigned* const passed = q.passed ? q.passed + round % 2 * blocks : nullptr;
    // the last thread, because the first is the one that arrives
    if (passed && threadIdx.x == blockDim.x - 1) store_l2(passed + blockIdx.x, round * 7919u + blockIdx.x);
    if (!wait(round)) return;
    if (passed && threadIdx.x == blockDim.x / 2 && load_l2(passed + next) != round * 7919u + next)
      atomicAdd(q.wrong, 1u);
  }
}

FUSED_RNN_KERNEL __launch_bounds__(threads, 1) wait_at_counter(const Barriers q) {
  CounterBarrier team(q.arrivals, q.failed);
  wait_often(q, [&](int) { return team.wait(); });
}

// Every block raises its own flag, and its threads wait for one flag each: nothing is added up, so arrivals do not
// queue at one address. There may be at most as many blocks as a block has threads.
FUSED_RNN_KERNEL __launch_bounds__(threads, 1) wait_at_flags(const Barriers q) {
  wait_often(q, [&](int round) {
    __syncthreads();
    if (threadIdx.x == 0) store_release(q.arrivals + blockIdx.x, round);
    const bool arrived = threadIdx.x >= gridDim.x || wait_for(q.arrivals + threadIdx.x, round, q.failed);
    return __syncthreads_and(arrived) != 0;
  });
}

// Two blocks of one thread send each other numbers, there and back once per round.
struct PingPong {
  int rounds;
  Message* boxes;         // [2] zeros, one that each block reads
  unsigned* flags;        // [2] zeros, likewise
  unsigned* failed;       // zero
  unsigned* wrong;        // zero
  unsigned distance = 1;  // between the blocks of the grid that play
};

FUSED_RNN_DEVICE Message message_of(unsigned tag) { return {{tag * 3u, tag * 5u, tag ^ 0xffffu}, tag}; }

FUSED_RNN_DEVICE bool same(const Message& a, const Message& b) {
  return a.data[0] == b.data[0] && a.data[1] == b.data[1] && a.data[2] == b.data[2] && a.tag == b.tag;
}

// Poll a box until it holds the message of this tag, which is then complete or counted as wrong.
FUSED_RNN_DEVICE bool receive(const PingPong& q, const Message* box, unsigned tag) {
  for (unsigned polls = 0; polls < FUSED_RNN_WAIT_POLLS; ++polls) {
    const Message message = load_message(box);
    if (message.tag != tag) continue;
    if (!same(message, message_of(tag))) atomicAdd(q.wrong, 1u);
    return true;
  }
  store_relaxed(q.failed, 1);
  return false;
}

// Data and tag in one word of 16 bytes: a reader that sees the tag has the data.
FUSED_RNN_KERNEL exchange_tagged(const PingPong q) {
  if (blockIdx.x != 0 && blockIdx.x != q.distance) return;
  const unsigned self = blockIdx.x != 0;
  for (int round = 1; round <= q.rounds; ++round) {
    if (self == 0) store_message(q.boxes + 1, message_of(round));
    if (!receive(q, q.boxes + self, round)) return;
    if (self == 1) store_message(q.boxes, message_of(round));
  }
}

// Data, then a flag that is released after it: the flag is waited for, then the data is loaded.
FUSED_RNN_KERNEL exchange_flagged(const PingPong q) {
  if (blockIdx.x != 0 && blockIdx.x != q.distance) return;
  const unsigned self = blockIdx.x != 0;
  const auto send = [&](unsigned to, unsigned round) {
    store_l2(q.boxes + to, message_of(round));
    store_release(q.flags + to, round);
  };
  for (int round = 1; round <= q.rounds; ++round) {
    if (self == 0) send(1, round);
    if (!wait_for(q.flags + self, round, q.failed)) return;
    if (!same(load_l2(q.boxes + self), message_of(round))) atomicAdd(q.wrong, 1u);
    if (self == 1) send(0, round);
  }
}

// The exchange of a state, as the recurrent kernels do it in every phase: each block stores its share of a tile, all
// blocks of the team wait for each other, and each loads the whole tile. Two tiles take turns. The grid is one team.
struct TileExchange {
  using Word = Vector<unsigned, 4>;
  int rounds;
  int words;           // of a tile, 16 bytes each
  Word* tiles;         // [2, words]
  unsigned* arrivals;  // zero
  unsigned* failed;    // zero
  unsigned* sums;      // [blocks, threads] exclusive or of all words that a thread loaded
};

HOST_DEVICE unsigned tile_value(unsigned round, unsigned word) { return round * 2654435761u ^ word * 40503u; }

// The four parts of a word of the tile; their exclusive or is 4 * tile_value.
FUSED_RNN_DEVICE TileExchange::Word tile_word(unsigned round, unsigned word) {
  const unsigned v = tile_value(round, word);
  return {{v, v + 1, v + 2, 4 * v ^ v ^ (v + 1) ^ (v + 2)}};
}

FUSED_RNN_DEVICE unsigned joined(const TileExchange::Word& word) {
  return word.values[0] ^ word.values[1] ^ word.values[2] ^ word.values[3];
}

// The exclusive or of all `sums` of a block.
inline unsigned expected_sum(int rounds, int words) {
  unsigned sum = 0;
  for (int round = 1; round <= rounds; ++round)
    for (int word = 0; word < words; ++word) sum ^= 4 * tile_value(round, word);
  return sum;
}

FUSED_RNN_KERNEL __launch_bounds__(threads, 1) exchange_tile(const TileExchange q) {
  CounterBarrier team(q.arrivals, q.failed);
  const Slice own = slice_of(q.words, blockIdx.x, gridDim.x);
  unsigned sum = 0;
  for (int round = 1; round <= q.rounds; ++round) {
    TileExchange::Word* const tile = q.tiles + round % 2 * q.words;
    for (int i = own.first + threadIdx.x; i < own.first + own.count; i += blockDim.x)
      store_l2(tile + i, tile_word(round, i));
    if (!team.wait()) return;
    for (int i = threadIdx.x; i < q.words; i += blockDim.x) sum ^= joined(load_l2(tile + i));
  }
  q.sums[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

}  // namespace fused_rnn::cuda

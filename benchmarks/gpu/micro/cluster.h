// Kernels that measure what the blocks of a cluster have besides L2: a hardware barrier, and each other's shared
// memory. Before sm_90 the kernels are empty, and the program does not launch them. They run on the host shim too
// (tests/host_shim/exchanges.cpp).
//
// No block may end while another one can still reach into its shared memory, so every kernel ends with a barrier.
#pragma once

#include "exchange.h"

namespace fused_rnn::cuda {

// Like Barriers, with the numbers that are passed on in shared memory, [2] in each block.
struct ClusterBarriers {
  int rounds;
  bool checked;
  unsigned* wrong;
};

template <bool relaxed>
FUSED_RNN_KERNEL __launch_bounds__(threads, 1) wait_in_cluster(const ClusterBarriers q) {
#if FUSED_RNN_SM90
  FUSED_RNN_DYNAMIC_SHARED(shared);
  auto* const passed = reinterpret_cast<unsigned*>(shared);
  const unsigned next = (cluster_rank() + 1) % cluster_size();
  for (int round = 1; round <= q.rounds; ++round) {
    if (q.checked && threadIdx.x == blockDim.x - 1) passed[round % 2] = round * 7919u + cluster_rank();
    if constexpr (relaxed)
      cluster_barrier_relaxed();
    else
      cluster_barrier();
    if (q.checked && threadIdx.x == blockDim.x / 2 &&
        load_cluster(address_in_block(shared_address(passed + round % 2), next)) != round * 7919u + next)
      atomicAdd(q.wrong, 1u);
  }
  cluster_barrier();
#endif
}

// One thread follows a chain of indices through the shared memory of block `rank`; 0 is its own.
struct Chase {
  int loads, rank;
  long long* cycles;  // for all loads
  unsigned* wrong;
};

constexpr unsigned chain_words = 1024;

FUSED_RNN_KERNEL chase_in_cluster(const Chase q) {
#if FUSED_RNN_SM90
  FUSED_RNN_DYNAMIC_SHARED(shared);
  auto* const chain = reinterpret_cast<unsigned*>(shared);
  for (unsigned i = threadIdx.x; i < chain_words; i += blockDim.x) chain[i] = (i + 33) % chain_words;
  cluster_barrier();
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    const SharedAddress base = address_in_block(shared_address(chain), q.rank);
    unsigned index = 0;
    const long long begin = cycles();
    for (int i = 0; i < q.loads; ++i) index = load_cluster(base + 4 * index);
    *q.cycles = cycles() - begin;
    if (index != 33u * static_cast<unsigned>(q.loads) % chain_words) atomicAdd(q.wrong, 1u);
  }
  cluster_barrier();
#endif
}

// Two blocks push messages into each other's shared memory, there and back once per round.
struct Push {
  int rounds;
  unsigned* failed;
  unsigned* wrong;
};

template <bool cluster_scope>
FUSED_RNN_KERNEL push_in_cluster(const Push q) {
#if FUSED_RNN_SM90
  FUSED_RNN_DYNAMIC_SHARED(shared);  // a message, and the barrier that counts its bytes
  auto* const box = reinterpret_cast<Message*>(shared);
  const SharedAddress address = shared_address(box), barrier = address + sizeof(Message);
  const unsigned self = cluster_rank(), other = self ^ 1;
  if (threadIdx.x == 0) mbarrier_init(barrier);
  cluster_barrier();
  if (threadIdx.x == 0) {
    const SharedAddress to = address_in_block(address, other), its_barrier = address_in_block(barrier, other);
    for (int round = 1; round <= q.rounds; ++round) {
      mbarrier_expect(barrier, sizeof(Message));
      if (self == 0) push(to, its_barrier, message_of(round));
      if (!wait_for_phase<cluster_scope>(barrier, (round - 1) % 2, q.failed)) break;
      if (!same(*box, message_of(round))) atomicAdd(q.wrong, 1u);
      if (self == 1) push(to, its_barrier, message_of(round));
    }
  }
  cluster_barrier();
#endif
}

// The exchange of a state within a cluster without a barrier: each block pushes its share of a tile into the shared
// memory of all blocks, itself included, and waits until its own tile is whole. Two tiles take turns. A block pushes
// into a tile again only after it has received the round in between from all others, who push that one after they have
// read this one.
struct ClusterExchange {
  int rounds;
  int words;  // of a tile; a multiple of the cluster's size, because a block's push tells that it has read
  unsigned* failed;
  unsigned* sums;  // [blocks, threads] as in TileExchange
};

FUSED_RNN_KERNEL __launch_bounds__(threads, 1) exchange_in_cluster(const ClusterExchange q) {
#if FUSED_RNN_SM90
  FUSED_RNN_DYNAMIC_SHARED(shared);  // [2, words], then the barriers of both tiles
  auto* const tiles = reinterpret_cast<TileExchange::Word*>(shared);
  const SharedAddress address = shared_address(tiles), barriers = address + 2 * sizeof(*tiles) * q.words;
  const Slice own = slice_of(q.words, cluster_rank(), cluster_size());
  if (threadIdx.x < 2) mbarrier_init(barriers + 8 * threadIdx.x);
  cluster_barrier();
  unsigned sum = 0;
  bool arrived = true;
  for (int round = 1; round <= q.rounds && arrived; ++round) {
    const unsigned first = round % 2 * q.words;
    const SharedAddress barrier = barriers + 8 * (round % 2);
    if (threadIdx.x == 0) mbarrier_expect(barrier, sizeof(*tiles) * q.words);
    for (int i = threadIdx.x; i < own.count * static_cast<int>(cluster_size()); i += blockDim.x) {
      const unsigned rank = i / own.count, word = own.first + i % own.count;
      push(address_in_block(address + sizeof(*tiles) * (first + word), rank), address_in_block(barrier, rank),
           tile_word(round, word));
    }
    arrived = wait_for_phase(barrier, (round - 1) / 2 % 2, q.failed);
    for (int i = threadIdx.x; i < q.words; i += blockDim.x) sum ^= joined(tiles[first + i]);
    arrived = __syncthreads_and(arrived);  // all have read before one pushes, which lets others write here again
  }
  q.sums[blockIdx.x * blockDim.x + threadIdx.x] = sum;
  cluster_barrier();
#endif
}

}  // namespace fused_rnn::cuda

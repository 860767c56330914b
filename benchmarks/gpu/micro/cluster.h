// What blocks of a cluster have beside the second-level cache: a barrier in hardware, and each other's shared memory.
// For sm_90 and nvcc alone; on other architectures the kernels are empty, and the program does not launch them.
//
// No block may end while another can still reach into its shared memory, so every kernel ends with a meeting.
#pragma once

#include "exchange.h"

namespace fused_rnn::cuda {

// As Meetings, with the numbers that are passed on in shared memory: [2] in each block.
struct ClusterMeetings {
  int rounds;
  bool checked;
  unsigned* wrong;
};

template <bool relaxed>
__global__ void __launch_bounds__(threads, 1) meet_in_cluster(const ClusterMeetings q) {
#if __CUDA_ARCH__ >= 900
  FUSED_RNN_DYNAMIC_SHARED(shared);
  auto* const passed = reinterpret_cast<unsigned*>(shared);
  const unsigned next = (cluster_rank() + 1) % cluster_size();
  for (int round = 1; round <= q.rounds; ++round) {
    if (q.checked && threadIdx.x == blockDim.x - 1) passed[round % 2] = round * 7919u + cluster_rank();
    if constexpr (relaxed)
      cluster_meet_relaxed();
    else
      cluster_meet();
    if (q.checked && threadIdx.x == blockDim.x / 2 &&
        load_cluster(address_in_block(shared_address(passed + round % 2), next)) != round * 7919u + next)
      atomicAdd(q.wrong, 1u);
  }
  cluster_meet();
#endif
}

// One thread follows a chain of indices through the shared memory of block `rank`; 0 is its own.
struct Chase {
  int loads, rank;
  long long* cycles;  // for all loads
  unsigned* wrong;
};

constexpr unsigned chain_words = 1024;

__global__ void chase_in_cluster(const Chase q) {
#if __CUDA_ARCH__ >= 900
  FUSED_RNN_DYNAMIC_SHARED(shared);
  auto* const chain = reinterpret_cast<unsigned*>(shared);
  for (unsigned i = threadIdx.x; i < chain_words; i += blockDim.x) chain[i] = (i + 33) % chain_words;
  cluster_meet();
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    const unsigned base = address_in_block(shared_address(chain), q.rank);
    unsigned index = 0;
    const long long begin = cycles();
    for (int i = 0; i < q.loads; ++i) index = load_cluster(base + 4 * index);
    *q.cycles = cycles() - begin;
    if (index != 33u * static_cast<unsigned>(q.loads) % chain_words) atomicAdd(q.wrong, 1u);
  }
  cluster_meet();
#endif
}

// Two blocks push messages into each other's shared memory, there and back once a round.
struct Push {
  int rounds;
  unsigned* failed;
  unsigned* wrong;
};

// Wait for the end of a phase, at most about as long as wait_for.
template <bool cluster_scope>
FUSED_RNN_DEVICE bool wait_for_phase(unsigned barrier, unsigned parity, unsigned* failed) {
#if __CUDA_ARCH__ >= 900
  for (unsigned polls = 0; polls < FUSED_RNN_WAIT_POLLS; ++polls)
    if (mbarrier_ended<cluster_scope>(barrier, parity)) return true;
  store_relaxed(failed, 1);
#endif
  return false;
}

template <bool cluster_scope>
__global__ void push_in_cluster(const Push q) {
#if __CUDA_ARCH__ >= 900
  FUSED_RNN_DYNAMIC_SHARED(shared);  // a message, and the barrier that counts its bytes
  auto* const box = reinterpret_cast<Message*>(shared);
  const unsigned address = shared_address(box), barrier = address + sizeof(Message);
  const unsigned self = cluster_rank(), other = self ^ 1;
  if (threadIdx.x == 0) mbarrier_init(barrier);
  cluster_meet();
  if (threadIdx.x == 0) {
    const unsigned to = address_in_block(address, other), its_barrier = address_in_block(barrier, other);
    for (int round = 1; round <= q.rounds; ++round) {
      mbarrier_expect(barrier, sizeof(Message));
      if (self == 0) push_message(to, its_barrier, message_of(round));
      if (!wait_for_phase<cluster_scope>(barrier, (round - 1) % 2, q.failed)) break;
      if (!same(*box, message_of(round))) atomicAdd(q.wrong, 1u);
      if (self == 1) push_message(to, its_barrier, message_of(round));
    }
  }
  cluster_meet();
#endif
}

}  // namespace fused_rnn::cuda

// Small kernels that use all of csrc/cuda/sm90.h, as kernels.h does with device.h, and the words of messages. Each
// fault() leaves something out or puts something wrong, which the shim must report.
#pragma once

#include "../../csrc/cuda/exchange/messages.h"
#include "faults.h"

namespace fused_rnn::cuda {

// Numbers as the words of messages.
FUSED_RNN_KERNEL make_sendable(const Vector<uint32_t, 4>* in, Vector<uint32_t, 4>* out) {
#if FUSED_RNN_SM90
  out[threadIdx.x] = sendable(in[threadIdx.x]);
#endif
}

// The registers in which a warp holds matrices, two elements each.
template <int matrices>
FUSED_RNN_DEVICE void write_out(uint32_t* out, const uint32_t (&registers)[matrices]) {
  for (int m = 0; m < matrices; ++m) out[32 * m + threadIdx.x] = registers[m];
}

template <int matrices, bool transposed>
FUSED_RNN_DEVICE void store_and_read(uint32_t* shared, uint32_t* out, const uint32_t (&registers)[4]) {
#if FUSED_RNN_SM90
  uint32_t stored[matrices];
  for (int m = 0; m < matrices; ++m) stored[m] = registers[m];
  __syncwarp();
  if constexpr (transposed)
    store_matrices_transposed(shared + 4 * threadIdx.x, stored);
  else
    store_matrices(shared + 4 * threadIdx.x, stored);
  if (!fault("NO_SYNC_AFTER_STORE")) __syncwarp();
  for (int m = 0; m < matrices; ++m) out[32 * m + threadIdx.x] = shared[32 * m + threadIdx.x];
#endif
}

// Four matrices of [8, 8] 16-bit elements, stored from registers to shared memory in every way. in: [4, 32]; out: [6,
// 4, 32], of which each way fills the matrices that it takes.
FUSED_RNN_KERNEL store_matrices_on_all_ways(const uint32_t* in, uint32_t* out) {
#if FUSED_RNN_SM90
  FUSED_RNN_DYNAMIC_SHARED(shared);
  auto* const words = reinterpret_cast<uint32_t*>(shared);
  uint32_t registers[4];
  for (int m = 0; m < 4; ++m) registers[m] = in[32 * m + threadIdx.x];
  store_and_read<1, false>(words, out, registers);
  store_and_read<2, false>(words, out + 128, registers);
  store_and_read<4, false>(words, out + 256, registers);
  store_and_read<1, true>(words, out + 384, registers);
  store_and_read<2, true>(words, out + 512, registers);
  store_and_read<4, true>(words, out + 640, registers);
#endif
}

// Every thread leaves a number in its block's shared memory and adds up what all blocks of the cluster left.
FUSED_RNN_KERNEL add_over_cluster(const unsigned* in, unsigned* sums) {
#if FUSED_RNN_SM90
  FUSED_RNN_DYNAMIC_SHARED(shared);
  auto* const own = reinterpret_cast<unsigned*>(shared) + threadIdx.x;
  const unsigned place = blockIdx.x * blockDim.x + threadIdx.x;
  *own = in[place];
  if (fault("RELAXED_CLUSTER_BARRIER"))
    cluster_barrier_relaxed();
  else
    cluster_barrier();
  unsigned sum = cluster_rank();
  for (unsigned rank = 0; rank < cluster_size(); ++rank)
    sum += load_cluster(address_in_block(shared_address(own), rank));
  sums[place] = sum;
  if (!fault("NO_LAST_CLUSTER_BARRIER")) cluster_barrier();
#endif
}

// Every thread of a cluster makes a number in each step, out of all numbers of the step before, and pushes it to all
// blocks, in as many copies as fill a push. Two buffers take turns.
template <int words>
struct Gathering {
  using Numbers = Vector<uint32_t, words>;
  int steps;
  uint32_t* numbers;  // [steps, threads of the cluster]
  unsigned* failed;   // 0
};

HOST_DEVICE uint32_t next_number(uint32_t sum, uint32_t place, int step) {
  return (sum ^ place) * 2654435761u + static_cast<uint32_t>(step);
}

template <int words>
FUSED_RNN_KERNEL gather(Gathering<words> g) {
#if FUSED_RNN_SM90
  using Numbers = Vector<uint32_t, words>;
  FUSED_RNN_DYNAMIC_SHARED(shared);  // [2, threads of the cluster] numbers, then the barriers of both copies
  const unsigned all = cluster_size() * blockDim.x, place = cluster_rank() * blockDim.x + threadIdx.x;
  const auto* const numbers = reinterpret_cast<const Numbers*>(shared);
  const SharedAddress base = shared_address(shared), barriers = base + 2 * all * sizeof(Numbers);
  if (threadIdx.x < 2) mbarrier_init(barriers + 8 * threadIdx.x);
  if (!fault("NO_BARRIER_AFTER_INIT")) cluster_barrier();
  uint32_t sum = 0;
  for (int t = 0; t < g.steps; ++t) {
    const uint32_t number = next_number(sum, place, t);
    g.numbers[t * all + place] = number;
    if (t == 2 && blockIdx.x == 0 && fault("LEAVE_EARLY")) return;
    if (t == g.steps - 1 && !fault("PUSH_IN_LAST_STEP")) break;
    const unsigned copy = fault("ONE_COPY") ? 0 : t % 2;
    const SharedAddress barrier = barriers + 8 * (t % 2);
    Numbers message;
    for (int i = 0; i < words; ++i) message.values[i] = number + i;
    for (unsigned rank = 0; rank < cluster_size(); ++rank)
      push(address_in_block(base + (copy * all + place) * sizeof(Numbers), rank), address_in_block(barrier, rank),
           message);
    if (t == g.steps - 1) break;
    if (threadIdx.x == 0) mbarrier_expect(barrier, (fault("WRONG_BYTES") ? all - 1 : all) * sizeof(Numbers));
    if (fault("WAIT_IN_BLOCK_SCOPE")) {
      if (!wait_for_phase<false>(barrier, t / 2 % 2, g.failed)) break;
    } else if (!fault("NO_PHASE_WAIT")) {
      if (!wait_for_phase(barrier, t / 2 % 2, g.failed)) break;
    }
    sum = 0;
    for (unsigned i = 0; i < all; ++i) sum += numbers[copy * all + i].values[i % words];
    __syncthreads();  // all have read before one pushes, which lets others write here again
  }
  cluster_barrier();
#endif
}

// Waits for bytes that nobody pushes.
FUSED_RNN_KERNEL wait_for_nothing(unsigned* failed, unsigned* gave_up) {
#if FUSED_RNN_SM90
  FUSED_RNN_DYNAMIC_SHARED(shared);
  const SharedAddress barrier = shared_address(shared);
  if (threadIdx.x == 0) {
    mbarrier_init(barrier);
    mbarrier_expect(barrier, 16);
  }
  __syncthreads();
  gave_up[blockIdx.x * blockDim.x + threadIdx.x] = !wait_for_phase(barrier, 0, failed);
#endif
}

// Misuse that the shim must report ------------------------------------------------------------------------------------

FUSED_RNN_KERNEL arrive_twice_in_cluster() {
#if FUSED_RNN_SM90
  cluster_arrive();
  cluster_arrive();
#endif
}

FUSED_RNN_KERNEL leave_others_in_cluster() {
#if FUSED_RNN_SM90
  if (blockIdx.x == 0)
    cluster_barrier();
  else if (threadIdx.x > 0)
    __syncthreads();
#endif
}

FUSED_RNN_KERNEL push_nowhere() {
#if FUSED_RNN_SM90
  FUSED_RNN_DYNAMIC_SHARED(shared);
  cluster_barrier();
  if (cluster_rank() == 0) push(shared_address(shared), shared_address(shared) + 16, Vector<float, 4>{});
#endif
}

FUSED_RNN_KERNEL map_beyond_the_cluster() {
#if FUSED_RNN_SM90
  FUSED_RNN_DYNAMIC_SHARED(shared);
  address_in_block(shared_address(shared), cluster_size());
#endif
}

FUSED_RNN_KERNEL expect_twice() {
#if FUSED_RNN_SM90
  FUSED_RNN_DYNAMIC_SHARED(shared);
  mbarrier_init(shared_address(shared));
  mbarrier_expect(shared_address(shared), 16);
  mbarrier_expect(shared_address(shared), 16);
#endif
}

FUSED_RNN_KERNEL expect_too_much() {
#if FUSED_RNN_SM90
  FUSED_RNN_DYNAMIC_SHARED(shared);
  mbarrier_init(shared_address(shared));
  mbarrier_expect(shared_address(shared), 1 << 20);
#endif
}

FUSED_RNN_KERNEL expect_in_vain() {
#if FUSED_RNN_SM90
  FUSED_RNN_DYNAMIC_SHARED(shared);
  mbarrier_init(shared_address(shared));
  mbarrier_expect(shared_address(shared), 16);
#endif
}

}  // namespace fused_rnn::cuda

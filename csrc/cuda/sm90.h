// What sm_90 adds to device.h, which includes this file: clusters of blocks, barriers that count bytes (mbarriers),
// stores into the shared memory of another block, and matrices stored from registers.
//
// A kernel that uses any of it has its body in `#if FUSED_RNN_SM90`: compiled for an older architecture it is empty,
// and must not be launched there. The twins are in tests/host_shim/host_sm90.h.
//
// Blocks of a cluster hand each other data like this: each block sets up its barriers with mbarrier_init, then all sync
// at a cluster_barrier. For each phase, a thread of the receiving block calls mbarrier_expect with the number of bytes,
// other blocks push, before that or after, and readers call wait_for_phase. Pushes arrive in any order, and only their
// barrier tells when: a block must not end before it has waited for everything that is pushed to it.
#pragma once

#include <cstdint>

#ifdef __CUDACC__

#  if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#    define FUSED_RNN_SM90 1
#  else
#    define FUSED_RNN_SM90 0
#  endif

#  if FUSED_RNN_SM90

namespace fused_rnn::cuda {

// Clusters ----------------------------------------------------------------------------------------------------------

FUSED_RNN_DEVICE unsigned cluster_rank() {
  unsigned rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

FUSED_RNN_DEVICE unsigned cluster_size() {
  unsigned size;
  asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
}

// The barrier of all threads of the cluster, in two halves. What a thread wrote before it arrived is visible to all
// after they have waited, unless it arrived relaxed.
FUSED_RNN_DEVICE void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
FUSED_RNN_DEVICE void cluster_arrive_relaxed() { asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory"); }
FUSED_RNN_DEVICE void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

// The address in another block's shared memory that corresponds to one in this block's.
FUSED_RNN_DEVICE SharedAddress address_in_block(SharedAddress address, unsigned rank) {
  SharedAddress result;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(result) : "r"(address), "r"(rank));
  return result;
}

// Load from the shared memory of any block of the cluster.
FUSED_RNN_DEVICE uint32_t load_cluster(SharedAddress address) {
  uint32_t value;
  asm volatile("ld.shared::cluster.u32 %0, [%1];" : "=r"(value) : "r"(address) : "memory");
  return value;
}

// Barriers that count bytes -----------------------------------------------------------------------------------------

// Make 8 bytes of this block's shared memory a barrier. Its phase ends when `arrivals` arrivals, and all bytes that
// they announced, have come. Other blocks may use it after a cluster_barrier.
FUSED_RNN_DEVICE void mbarrier_init(SharedAddress barrier, unsigned arrivals = 1) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\nfence.mbarrier_init.release.cluster;" ::"r"(barrier),
               "r"(arrivals)
               : "memory");
}

// Arrive once, and announce `bytes` bytes; some or all of them may have come before.
FUSED_RNN_DEVICE void mbarrier_expect(SharedAddress barrier, unsigned bytes) {
  asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.expect_tx.shared::cta.b64 state, [%0], %1;\n}" ::"r"(barrier),
               "r"(bytes)
               : "memory");
}

// Whether the phase of this parity, the current one or the one before, has ended. Then the data that other blocks
// pushed in it may be read. Without cluster_scope this holds on today's chips, but not by the memory model. With it the
// compiler adds an invalidation of L1. A relaxed wait with fence.acquire.sync_restrict for shared memory is just as
// right by the model and avoids that, but made a step of an LSTM on an H200 a tenth slower forward, and a fifth slower
// backward.
template <bool cluster_scope = true>
FUSED_RNN_DEVICE bool mbarrier_ended(SharedAddress barrier, unsigned parity) {
  unsigned ended;
  if constexpr (cluster_scope)
    asm volatile(
        "{\n.reg .pred p;\nmbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}"
        : "=r"(ended)
        : "r"(barrier), "r"(parity)
        : "memory");
  else
    asm volatile(
        "{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}"
        : "=r"(ended)
        : "r"(barrier), "r"(parity)
        : "memory");
  return ended;
}

// Store 8 or 16 bytes asynchronously in the shared memory of a block of the cluster; on arrival they count for a
// barrier of the same block. Both addresses come from address_in_block.
template <typename T>
FUSED_RNN_DEVICE void push(SharedAddress to, SharedAddress barrier, const T& value) {
  static_assert(sizeof(T) == 8 || sizeof(T) == 16);
  if constexpr (sizeof(T) == 8) {
    const auto bits = __builtin_bit_cast(uint2, value);
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1, %2}, [%3];" ::"r"(to),
                 "r"(bits.x), "r"(bits.y), "r"(barrier)
                 : "memory");
  } else {
    const auto bits = __builtin_bit_cast(uint4, value);
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(to),
                 "r"(bits.x), "r"(bits.y), "r"(bits.z), "r"(bits.w), "r"(barrier)
                 : "memory");
  }
}

// Matrices ----------------------------------------------------------------------------------------------------------

// The inverses of load_matrices and load_matrices_transposed.
template <int matrices>
FUSED_RNN_DEVICE void store_matrices(SharedAddress to, const uint32_t (&registers)[matrices]) {
  static_assert(matrices == 1 || matrices == 2 || matrices == 4);
  if constexpr (matrices == 1)
    asm volatile("stmatrix.sync.aligned.m8n8.x1.shared.b16 [%0], {%1};" ::"r"(to), "r"(registers[0]) : "memory");
  else if constexpr (matrices == 2)
    asm volatile("stmatrix.sync.aligned.m8n8.x2.shared.b16 [%0], {%1, %2};" ::"r"(to), "r"(registers[0]),
                 "r"(registers[1])
                 : "memory");
  else
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(registers[0]),
                 "r"(registers[1]), "r"(registers[2]), "r"(registers[3])
                 : "memory");
}

template <int matrices>
FUSED_RNN_DEVICE void store_matrices_transposed(SharedAddress to, const uint32_t (&registers)[matrices]) {
  static_assert(matrices == 1 || matrices == 2 || matrices == 4);
  if constexpr (matrices == 1)
    asm volatile("stmatrix.sync.aligned.m8n8.x1.trans.shared.b16 [%0], {%1};" ::"r"(to), "r"(registers[0]) : "memory");
  else if constexpr (matrices == 2)
    asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(to), "r"(registers[0]),
                 "r"(registers[1])
                 : "memory");
  else
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(registers[0]),
                 "r"(registers[1]), "r"(registers[2]), "r"(registers[3])
                 : "memory");
}

template <int matrices>
FUSED_RNN_DEVICE void store_matrices(void* row, const uint32_t (&registers)[matrices]) {
  store_matrices(shared_address(row), registers);
}
template <int matrices>
FUSED_RNN_DEVICE void store_matrices_transposed(void* row, const uint32_t (&registers)[matrices]) {
  store_matrices_transposed(shared_address(row), registers);
}

}  // namespace fused_rnn::cuda

#  endif
#endif

// Cycles that wait_for_phase polls before it times out: about ten seconds.
#ifndef FUSED_RNN_WAIT_CYCLES
#  define FUSED_RNN_WAIT_CYCLES (1ll << 34)
#endif

#if FUSED_RNN_SM90

namespace fused_rnn::cuda {

FUSED_RNN_DEVICE void cluster_barrier() {
  cluster_arrive();
  cluster_wait();
}

FUSED_RNN_DEVICE void cluster_barrier_relaxed() {
  cluster_arrive_relaxed();
  cluster_wait();
}

// Wait until the phase of this parity has ended. False after a timeout, with *failed set to 1. The clock decides,
// because a poll may itself sleep.
template <bool cluster_scope = true>
FUSED_RNN_DEVICE bool wait_for_phase(SharedAddress barrier, unsigned parity, unsigned* failed) {
  if (mbarrier_ended<cluster_scope>(barrier, parity)) return true;
  const long long begin = cycles();
  while (!mbarrier_ended<cluster_scope>(barrier, parity)) {
    if (cycles() - begin > FUSED_RNN_WAIT_CYCLES) {
      store_relaxed(failed, 1);
      return false;
    }
  }
  return true;
}

}  // namespace fused_rnn::cuda

#endif

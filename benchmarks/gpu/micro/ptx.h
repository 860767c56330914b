// What the micro-measurements ask of the machine beyond csrc/cuda/device.h: all inline PTX of this folder is here.
//
// The first part has host twins, for kernels that run on the host shim too. The rest, clocks and what clusters of
// blocks have, is for nvcc alone; clusters need sm_90.
#pragma once

#include "../../../csrc/cuda/device.h"

namespace fused_rnn::cuda {

// Three words of data and the tag that says which message it is, in one access of 16 bytes.
struct alignas(16) Message {
  unsigned data[3];
  unsigned tag;
};

#ifndef __CUDACC__

inline void store_release(unsigned* p, unsigned value) { __atomic_store_n(p, value, __ATOMIC_RELEASE); }

// The tag goes last and is read first, so that the data belongs to it though the words are stored one by one.
inline void store_message(Message* p, const Message& message) {
  for (int i = 0; i < 3; ++i) __atomic_store_n(&p->data[i], message.data[i], __ATOMIC_RELAXED);
  __atomic_store_n(&p->tag, message.tag, __ATOMIC_RELEASE);
}

inline Message load_message(const Message* p, host_shim::Place place = host_shim::Place::here()) {
  host_shim::let_others_run("load_message", place);
  Message message;
  message.tag = __atomic_load_n(&p->tag, __ATOMIC_ACQUIRE);
  for (int i = 0; i < 3; ++i) message.data[i] = __atomic_load_n(&p->data[i], __ATOMIC_RELAXED);
  return message;
}

#else

// Whoever reads the value with load_acquire sees all that was written before.
FUSED_RNN_DEVICE void store_release(unsigned* p, unsigned value) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(value) : "memory");
}

// PTX promises no more than each word on its own; that 16 aligned bytes travel together is what the kernels that use
// these check.
FUSED_RNN_DEVICE void store_message(Message* p, const Message& message) {
  asm volatile("st.relaxed.gpu.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(message.data[0]),
               "r"(message.data[1]), "r"(message.data[2]), "r"(message.tag)
               : "memory");
}

FUSED_RNN_DEVICE Message load_message(const Message* p) {
  Message m;
  asm volatile("ld.relaxed.gpu.global.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(m.data[0]), "=r"(m.data[1]), "=r"(m.data[2]), "=r"(m.tag)
               : "l"(p)
               : "memory");
  return m;
}

// Cycles of this multiprocessor.
FUSED_RNN_DEVICE long long cycles() {
  long long value;
  asm volatile("mov.u64 %0, %%clock64;" : "=l"(value)::"memory");
  return value;
}

// What makes the value stays before this point.
FUSED_RNN_DEVICE void finish(unsigned& value) { asm volatile("" : "+r"(value)::"memory"); }

FUSED_RNN_DEVICE unsigned shared_address(const void* shared) {
  return static_cast<unsigned>(__cvta_generic_to_shared(shared));
}

// Loads that stay where they are written, however often they are repeated.
FUSED_RNN_DEVICE uint4 load_shared_words(unsigned address) {
  uint4 v;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(address));
  return v;
}

FUSED_RNN_DEVICE float load_shared_float(unsigned address) {
  float value;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(value) : "r"(address));
  return value;
}

#  if __CUDA_ARCH__ >= 900

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

// All threads of all blocks of the cluster meet; what they wrote before is visible to all afterwards.
FUSED_RNN_DEVICE void cluster_meet() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// They meet without publishing what they wrote.
FUSED_RNN_DEVICE void cluster_meet_relaxed() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
}

// Where an address of this block's shared memory stands in that of another block.
FUSED_RNN_DEVICE unsigned address_in_block(unsigned address, unsigned rank) {
  unsigned result;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(result) : "r"(address), "r"(rank));
  return result;
}

FUSED_RNN_DEVICE unsigned load_cluster(unsigned address) {
  unsigned value;
  asm volatile("ld.shared::cluster.u32 %0, [%1];" : "=r"(value) : "r"(address) : "memory");
  return value;
}

// Barriers in shared memory that count arrivals and bytes. One arrival per phase here.
FUSED_RNN_DEVICE void mbarrier_init(unsigned barrier) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;\nfence.mbarrier_init.release.cluster;" ::"r"(barrier)
               : "memory");
}

// The phase's arrival: it ends when this many bytes have come as well.
FUSED_RNN_DEVICE void mbarrier_expect(unsigned barrier, unsigned bytes) {
  asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.expect_tx.shared::cta.b64 state, [%0], %1;\n}" ::"r"(barrier),
               "r"(bytes)
               : "memory");
}

// Whether the phase of this parity has ended. What other blocks pushed in it is then there; what else they wrote before
// is visible only with cluster_scope, which empties the first-level cache.
template <bool cluster_scope>
FUSED_RNN_DEVICE bool mbarrier_ended(unsigned barrier, unsigned parity) {
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

// Store 16 bytes in another block's shared memory; they count towards the phase of its barrier when they are there.
FUSED_RNN_DEVICE void push_message(unsigned address, unsigned barrier, const Message& message) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(address),
      "r"(message.data[0]), "r"(message.data[1]), "r"(message.data[2]), "r"(message.tag), "r"(barrier)
      : "memory");
}

#  endif
#endif

}  // namespace fused_rnn::cuda

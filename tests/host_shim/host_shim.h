// Runs CUDA kernels on the CPU, so that their indexing, ordering and mathematics can be tested without a GPU: the host
// twin of csrc/cuda/device.h, which includes this file when nvcc does not compile it.
//
// Every CUDA thread of a launch is a fiber, a stack of its own on one and the same OS thread; a scheduler resumes them
// in turn and takes over where they wait. What it shows:
//  - races: under -fsanitize=thread each fiber counts as a thread, and nothing but the kernel's own synchronisation
//    orders their accesses. Shuffles and matrix instructions order nothing, as on a GPU.
//  - overruns: under -fsanitize=address, of dynamic shared memory too.
//  - uninitialised values: dynamic shared memory and the targets of unfinished copies hold NaN.
//  - hangs: threads that wait for each other, return early or meet at different barriers end the launch with a message.
//  - misaligned operands of vector accesses, asynchronous copies and matrix loads.
// It cannot show speed, occupancy or whether all blocks are resident at once.
//
// The runtime is compiled without sanitizers, a program that launches kernels with any one of them or none:
//   g++ -std=c++17 -O2 -c tests/host_shim/host_shim.cpp
//   g++ -std=c++17 -O1 -g -fsanitize=thread -Itests/host_shim program.cpp host_shim.o
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>

#include "../../csrc/cells/types.h"

#define FUSED_RNN_KERNEL inline void
#define FUSED_RNN_DEVICE inline
#define FUSED_RNN_PARAMETER const
#define FUSED_RNN_UNROLL
#define FUSED_RNN_UNROLL_BY(n)
#define FUSED_RNN_DYNAMIC_SHARED(name) unsigned char* const name = host_shim::dynamic_shared()
#define __launch_bounds__(...)

namespace host_shim {

struct Index {
  unsigned x = 1, y = 1, z = 1;
};

struct Launch {
  Index grid, block;
  size_t shared_bytes = 0;
  unsigned seed = 0;               // 0: threads take turns in order; else in an order drawn anew for each round
  uint64_t round_limit = 1 << 18;  // a round gives every thread that can run one turn
};

// Run a kernel to its end. Throws std::runtime_error with a description if it cannot get there. One at a time.
void run(const Launch&, const std::function<void()>& kernel);

template <typename... Parameters, typename... Arguments>
void launch(const Launch& shape, void (*kernel)(Parameters...), Arguments&&... arguments) {
  run(shape, [&] { kernel(arguments...); });
}

// The runtime, in host_shim.cpp -------------------------------------------------------------------------------------

// A line of the kernel's source, taken as a default argument.
struct Place {
  const char* file;
  int line;
  static Place here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
};

// A value on its way between the lanes of a warp.
struct Slot {
  uint64_t words[4];
};

// A copy from global to shared memory that has not arrived.
struct Copy {
  void* to;
  const void* from;
  size_t bytes;
};

unsigned char* dynamic_shared();
unsigned lane();
void let_others_run(const char* operation, Place);
unsigned sync_block(bool vote, const char* operation, Place);  // the number of threads that vote true
void sync_warp(Place);
void exchange(unsigned mask, const Slot&, const char* operation, Place);  // every lane gives a value ...
Slot given_by(unsigned lane);                                             // ... which all can read until the next one
void start_copy(const Copy&);
void close_copy_group();
bool take_copy(unsigned pending, Copy*);  // the next copy of a group before the last `pending`, if there is one
void require_aligned(const void*, size_t bytes, const char* operation, Place);
void multiply_matrices(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], float (*widen)(uint16_t),
                       Place);

template <typename T>
Slot to_slot(const T& value) {
  static_assert(sizeof(T) <= sizeof(Slot));
  Slot slot{};
  memcpy(&slot, &value, sizeof(T));
  return slot;
}

template <typename T>
T from_slot(const Slot& slot) {
  T value;
  memcpy(&value, &slot, sizeof(T));
  return value;
}

template <typename T>
T shuffle(unsigned mask, const T& value, unsigned source, const char* operation, Place place) {
  exchange(mask, to_slot(value), operation, place);
  return from_slot<T>(given_by(source));
}

template <int matrices>
void load_matrices(uint32_t (&registers)[matrices], const void* row, Place place) {
  if (lane() < 8 * matrices) require_aligned(row, 16, "load_matrices", place);
  exchange(~0u, to_slot(row), "load_matrices", place);
  for (unsigned m = 0; m < matrices; ++m) {
    const auto* bytes = from_slot<const char*>(given_by(8 * m + lane() / 4));
    memcpy(&registers[m], bytes + 4 * (lane() % 4), 4);
  }
}

}  // namespace host_shim

// Names of CUDA -----------------------------------------------------------------------------------------------------

extern host_shim::Index threadIdx, blockIdx, blockDim, gridDim;

inline void __syncthreads(host_shim::Place place = host_shim::Place::here()) {
  host_shim::sync_block(true, "__syncthreads", place);
}

inline int __syncthreads_and(int predicate, host_shim::Place place = host_shim::Place::here()) {
  const unsigned votes = host_shim::sync_block(predicate, "__syncthreads_and", place);
  return votes == blockDim.x * blockDim.y * blockDim.z;
}

inline void __syncwarp(host_shim::Place place = host_shim::Place::here()) { host_shim::sync_warp(place); }

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, host_shim::Place place = host_shim::Place::here()) {
  return host_shim::shuffle(mask, value, source % 32u, "__shfl_sync", place);
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, host_shim::Place place = host_shim::Place::here()) {
  return host_shim::shuffle(mask, value, host_shim::lane() ^ lane_mask, "__shfl_xor_sync", place);
}

template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, host_shim::Place place = host_shim::Place::here()) {
  const unsigned lane = host_shim::lane();
  return host_shim::shuffle(mask, value, lane < delta ? lane : lane - delta, "__shfl_up_sync", place);
}

template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, host_shim::Place place = host_shim::Place::here()) {
  const unsigned lane = host_shim::lane();
  return host_shim::shuffle(mask, value, lane + delta > 31 ? lane : lane + delta, "__shfl_down_sync", place);
}

template <typename T>
T atomicAdd(T* p, std::common_type_t<T> value) {
  T old, sum;
  __atomic_load(p, &old, __ATOMIC_RELAXED);
  do {
    sum = old + value;
  } while (!__atomic_compare_exchange(p, &old, &sum, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return old;
}

// Twins of device.h, where they are described -----------------------------------------------------------------------

namespace fused_rnn::cuda {

using host_shim::Place;

template <typename T>
T load_l2(const T* p, Place place = Place::here()) {
  static_assert(alignof(T) == sizeof(T) && sizeof(T) <= 16);
  host_shim::require_aligned(p, sizeof(T), "load_l2", place);
  return *p;
}

template <typename T>
void store_l2(T* p, T value, Place place = Place::here()) {
  static_assert(alignof(T) == sizeof(T) && sizeof(T) <= 16);
  host_shim::require_aligned(p, sizeof(T), "store_l2", place);
  *p = value;
}

inline unsigned load_acquire(const unsigned* p, Place place = Place::here()) {
  host_shim::let_others_run("load_acquire", place);
  return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}

inline unsigned load_relaxed(const unsigned* p, Place place = Place::here()) {
  host_shim::let_others_run("load_relaxed", place);
  return __atomic_load_n(p, __ATOMIC_RELAXED);
}

inline void add_release(unsigned* p, unsigned value) { __atomic_fetch_add(p, value, __ATOMIC_RELEASE); }
inline void store_relaxed(unsigned* p, unsigned value) { __atomic_store_n(p, value, __ATOMIC_RELAXED); }

template <int bytes>
void copy_async(void* shared, const void* global, Place place = Place::here()) {
  static_assert(bytes == 4 || bytes == 8 || bytes == 16);
  host_shim::require_aligned(shared, bytes, "copy_async", place);
  host_shim::require_aligned(global, bytes, "copy_async", place);
  memset(shared, 0xff, bytes);
  host_shim::start_copy({shared, global, bytes});
}

inline void copy_async_commit() { host_shim::close_copy_group(); }

// Data arrives as late as it can, and is copied here rather than in the runtime for the sanitizers to see it.
template <int pending>
void copy_async_wait() {
  for (host_shim::Copy copy; host_shim::take_copy(pending, &copy);) memcpy(copy.to, copy.from, copy.bytes);
}

inline void load_matrices(uint32_t (&registers)[4], const void* row, Place place = Place::here()) {
  host_shim::load_matrices(registers, row, place);
}

inline void load_matrices(uint32_t (&registers)[2], const void* row, Place place = Place::here()) {
  host_shim::load_matrices(registers, row, place);
}

inline float widen(Half value) { return half_to_float(value); }
inline BFloat16 round_to_bfloat16(float value) { return float_to_bfloat16(value); }
inline Half round_to_half(float value) { return float_to_half(value); }

template <typename S>
uint32_t narrow_pair(float low, float high) {
  if constexpr (std::is_same_v<S, BFloat16>)
    return float_to_bfloat16(low).bits | uint32_t{float_to_bfloat16(high).bits} << 16;
  else
    return float_to_half(low).bits | uint32_t{float_to_half(high).bits} << 16;
}

template <typename S>
void mma_m16n8k16(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Place place = Place::here()) {
  if constexpr (std::is_same_v<S, BFloat16>)
    host_shim::multiply_matrices(sum, a, b, [](uint16_t bits) { return bfloat16_to_float({bits}); }, place);
  else
    host_shim::multiply_matrices(sum, a, b, [](uint16_t bits) { return half_to_float({bits}); }, place);
}

}  // namespace fused_rnn::cuda

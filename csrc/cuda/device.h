// What kernels ask of the machine: function macros, memory through which blocks exchange data, asynchronous copies,
// barriers, matrix instructions, conversions and clocks. All inline PTX of the project is here, for sm_80 or newer, and
// in sm90.h, for sm_90 or newer.
//
// Without nvcc a shim that runs kernels on the CPU provides the same names (tests/host_shim/host_shim.h, found through
// the include path), so everything under __CUDACC__ has a twin there. Besides, kernels may use these names of CUDA:
// threadIdx, blockIdx, blockDim, gridDim, __launch_bounds__, __syncthreads, __syncthreads_and, __syncwarp, atomicAdd
// and, with a mask of all lanes, __all_sync, __shfl_sync, __shfl_xor_sync, __shfl_up_sync, __shfl_down_sync. Shared
// memory is dynamic only.
//
// Blocks exchange data like this: writers call store_l2, then __syncthreads, and one thread adds to a counter with
// add_release; one thread of a reading block calls wait_for, then __syncthreads, and readers call load_l2. Counters
// only grow.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../cells/types.h"

#ifndef __CUDACC__
#  include "host_shim.h"
#else

#  define FUSED_RNN_KERNEL __global__ void
#  define FUSED_RNN_DEVICE __device__ __forceinline__
#  define FUSED_RNN_PARAMETER const __grid_constant__  // a kernel argument that is read in place
#  define FUSED_RNN_UNROLL _Pragma("unroll")
#  define FUSED_RNN_PRAGMA(text) _Pragma(#text)
#  define FUSED_RNN_UNROLL_BY(n) FUSED_RNN_PRAGMA(unroll n)
// Declares `name`, an unsigned char array: the block's shared memory, of the size given at launch.
#  define FUSED_RNN_DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]

namespace fused_rnn::cuda {

// Memory between blocks ---------------------------------------------------------------------------------------------

// Load past L1, which is not coherent with what other blocks write. T has 2, 4, 8 or 16 bytes and is aligned to its
// size.
template <typename T>
FUSED_RNN_DEVICE T load_l2(const T* p) {
  static_assert(alignof(T) == sizeof(T));
  if constexpr (sizeof(T) == 2) {
    uint16_t bits;
    asm volatile("ld.global.cg.b16 %0, [%1];" : "=h"(bits) : "l"(p) : "memory");
    return __builtin_bit_cast(T, bits);
  } else if constexpr (sizeof(T) == 4) {
    uint32_t bits;
    asm volatile("ld.global.cg.b32 %0, [%1];" : "=r"(bits) : "l"(p) : "memory");
    return __builtin_bit_cast(T, bits);
  } else if constexpr (sizeof(T) == 8) {
    uint64_t bits;
    asm volatile("ld.global.cg.b64 %0, [%1];" : "=l"(bits) : "l"(p) : "memory");
    return __builtin_bit_cast(T, bits);
  } else {
    uint4 bits;
    asm volatile("ld.global.cg.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(bits.x), "=r"(bits.y), "=r"(bits.z), "=r"(bits.w)
                 : "l"(p)
                 : "memory");
    return __builtin_bit_cast(T, bits);
  }
}

// Store past L1. T as above.
template <typename T>
FUSED_RNN_DEVICE void store_l2(T* p, T value) {
  static_assert(alignof(T) == sizeof(T));
  if constexpr (sizeof(T) == 2) {
    asm volatile("st.global.cg.b16 [%0], %1;" ::"l"(p), "h"(__builtin_bit_cast(uint16_t, value)) : "memory");
  } else if constexpr (sizeof(T) == 4) {
    asm volatile("st.global.cg.b32 [%0], %1;" ::"l"(p), "r"(__builtin_bit_cast(uint32_t, value)) : "memory");
  } else if constexpr (sizeof(T) == 8) {
    asm volatile("st.global.cg.b64 [%0], %1;" ::"l"(p), "l"(__builtin_bit_cast(uint64_t, value)) : "memory");
  } else {
    const auto bits = __builtin_bit_cast(uint4, value);
    asm volatile("st.global.cg.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(bits.x), "r"(bits.y), "r"(bits.z),
                 "r"(bits.w)
                 : "memory");
  }
}

// A thread that reads a flag or a counter with load_acquire sees everything written before the store_release or
// add_release that it reads.
FUSED_RNN_DEVICE unsigned load_acquire(const unsigned* p) {
  unsigned value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(p) : "memory");
  return value;
}

FUSED_RNN_DEVICE void store_release(unsigned* p, unsigned value) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(value) : "memory");
}

FUSED_RNN_DEVICE void add_release(unsigned* p, unsigned value) {
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(p), "r"(value) : "memory");
}

// Accesses to flags that order no other memory.
FUSED_RNN_DEVICE unsigned load_relaxed(const unsigned* p) {
  unsigned value;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(p) : "memory");
  return value;
}

FUSED_RNN_DEVICE void store_relaxed(unsigned* p, unsigned value) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(value) : "memory");
}

// Messages of 8 or 16 bytes, which order no other memory. PTX promises single words only; that 16 aligned bytes travel
// together is what the micro-measurements check.
template <typename T>
FUSED_RNN_DEVICE void store_message(T* p, const T& message) {
  static_assert((sizeof(T) == 8 || sizeof(T) == 16) && alignof(T) == sizeof(T));
  if constexpr (sizeof(T) == 8) {
    const auto bits = __builtin_bit_cast(uint2, message);
    asm volatile("st.relaxed.gpu.global.v2.b32 [%0], {%1, %2};" ::"l"(p), "r"(bits.x), "r"(bits.y) : "memory");
  } else {
    const auto bits = __builtin_bit_cast(uint4, message);
    asm volatile("st.relaxed.gpu.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(bits.x), "r"(bits.y), "r"(bits.z),
                 "r"(bits.w)
                 : "memory");
  }
}

template <typename T>
FUSED_RNN_DEVICE T load_message(const T* p) {
  static_assert((sizeof(T) == 8 || sizeof(T) == 16) && alignof(T) == sizeof(T));
  if constexpr (sizeof(T) == 8) {
    uint2 bits;
    asm volatile("ld.relaxed.gpu.global.v2.b32 {%0, %1}, [%2];" : "=r"(bits.x), "=r"(bits.y) : "l"(p) : "memory");
    return __builtin_bit_cast(T, bits);
  } else {
    uint4 bits;
    asm volatile("ld.relaxed.gpu.global.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(bits.x), "=r"(bits.y), "=r"(bits.z), "=r"(bits.w)
                 : "l"(p)
                 : "memory");
    return __builtin_bit_cast(T, bits);
  }
}

// Shared memory and barriers ----------------------------------------------------------------------------------------

// An address in shared memory, as instructions take it.
using SharedAddress = uint32_t;

FUSED_RNN_DEVICE SharedAddress shared_address(const void* shared) {
  return static_cast<SharedAddress>(__cvta_generic_to_shared(shared));
}

// The same value, kept in a register from here on: the compiler cannot recompute it at every use.
FUSED_RNN_DEVICE SharedAddress kept(SharedAddress value) {
  asm volatile("" : "+r"(value));
  return value;
}
FUSED_RNN_DEVICE int kept(int value) {
  asm volatile("" : "+r"(value));
  return value;
}
FUSED_RNN_DEVICE int64_t kept(int64_t value) {
  asm volatile("" : "+l"(value));
  return value;
}

// The same address of shared memory, of unknown origin to the compiler. So it stays in a register; else it would be
// recomputed at every use, from a special register that is slow to read.
FUSED_RNN_DEVICE unsigned char* settled(unsigned char* shared) {
  SharedAddress address = shared_address(shared);
  asm volatile("" : "+r"(address));
  return static_cast<unsigned char*>(__cvta_shared_to_generic(address));
}

// A load that is neither moved nor merged with an equal one. T has 4, 8 or 16 bytes and is aligned to its size.
template <typename T>
FUSED_RNN_DEVICE T load_shared(SharedAddress address) {
  static_assert(alignof(T) == sizeof(T));
  if constexpr (sizeof(T) == 4) {
    uint32_t bits;
    asm volatile("ld.shared.b32 %0, [%1];" : "=r"(bits) : "r"(address) : "memory");
    return __builtin_bit_cast(T, bits);
  } else if constexpr (sizeof(T) == 8) {
    uint64_t bits;
    asm volatile("ld.shared.b64 %0, [%1];" : "=l"(bits) : "r"(address) : "memory");
    return __builtin_bit_cast(T, bits);
  } else {
    uint4 bits;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(bits.x), "=r"(bits.y), "=r"(bits.z), "=r"(bits.w)
                 : "r"(address)
                 : "memory");
    return __builtin_bit_cast(T, bits);
  }
}

FUSED_RNN_DEVICE void store_shared(SharedAddress address, const uint32_t (&words)[4]) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(words[0]), "r"(words[1]), "r"(words[2]),
               "r"(words[3])
               : "memory");
}

// The block's named barriers, 1 to 15. A sync waits until `threads` threads, in whole warps, have arrived or synced,
// and then sees everything they wrote before. An arriving thread goes on at once, and must not arrive again before the
// barrier is complete: where it can run ahead, two barriers take turns.
FUSED_RNN_DEVICE void barrier_arrive(unsigned barrier, unsigned threads) {
  asm volatile("barrier.cta.arrive.aligned %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

FUSED_RNN_DEVICE void barrier_sync(unsigned barrier, unsigned threads) {
  asm volatile("barrier.cta.sync.aligned %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// Asynchronous copies -----------------------------------------------------------------------------------------------

// Start to copy 4, 8 or 16 bytes from global to shared memory, with both addresses aligned to the size. This thread
// sees the data after copy_async_wait, other threads after a barrier that follows it. Only 16-byte copies bypass L1.
template <int bytes>
FUSED_RNN_DEVICE void copy_async(SharedAddress to, const void* global) {
  static_assert(bytes == 4 || bytes == 8 || bytes == 16);
  if constexpr (bytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(to), "l"(global), "n"(bytes) : "memory");
}

template <int bytes>
FUSED_RNN_DEVICE void copy_async(void* shared, const void* global) {
  copy_async<bytes>(shared_address(shared), global);
}

// Close the group of the copies that this thread has started since the last group.
FUSED_RNN_DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Wait until all groups but the last `pending` are complete.
template <int pending>
FUSED_RNN_DEVICE void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// Matrix products ---------------------------------------------------------------------------------------------------

// Load one, two or four 8 x 8 matrices of 16-bit elements from shared memory. Lane l gives the address of row l % 8 of
// matrix l / 8, if there is one, aligned to 16 bytes. In registers[m] it gets elements 2(l % 4) and 2(l % 4) + 1 of row
// l / 4 of matrix m; transposed, element l / 4 of rows 2(l % 4) and 2(l % 4) + 1.
FUSED_RNN_DEVICE void load_matrices(uint32_t (&registers)[4], SharedAddress row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
               : "r"(row)
               : "memory");
}

FUSED_RNN_DEVICE void load_matrices(uint32_t (&registers)[2], SharedAddress row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(registers[0]), "=r"(registers[1])
               : "r"(row)
               : "memory");
}

FUSED_RNN_DEVICE void load_matrices_transposed(uint32_t (&registers)[1], SharedAddress row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];" : "=r"(registers[0]) : "r"(row) : "memory");
}

FUSED_RNN_DEVICE void load_matrices_transposed(uint32_t (&registers)[4], SharedAddress row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
               : "r"(row)
               : "memory");
}

template <int matrices>
FUSED_RNN_DEVICE void load_matrices(uint32_t (&registers)[matrices], const void* row) {
  load_matrices(registers, shared_address(row));
}
template <int matrices>
FUSED_RNN_DEVICE void load_matrices_transposed(uint32_t (&registers)[matrices], const void* row) {
  load_matrices_transposed(registers, shared_address(row));
}

// Transpose an 8 x 8 matrix that a warp holds in the layout of load_matrices.
FUSED_RNN_DEVICE uint32_t transpose_matrix(uint32_t matrix) {
  uint32_t result;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(matrix));
  return result;
}

// sum[16, 8] += a[16, 16] b[16, 8] by one warp, with S = BFloat16 or Half and sums in float. A lane holds these
// elements, in a and b two neighbours per register, where r = lane / 4 and c = 2(lane % 4):
//   a    [r, c], [r + 8, c], [r, c + 8], [r + 8, c + 8], each with column + 1: load_matrices of the four quarters
//   b    [c, r], [c + 8, r], each with row + 1: load_matrices of the two halves of b transposed
//   sum  [r, c], [r, c + 1], [r + 8, c], [r + 8, c + 1]
template <typename S>
FUSED_RNN_DEVICE void mma_m16n8k16(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  static_assert(std::is_same_v<S, BFloat16> || std::is_same_v<S, Half>);
  if constexpr (std::is_same_v<S, BFloat16>)
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Conversions -------------------------------------------------------------------------------------------------------

FUSED_RNN_DEVICE float widen(Half value) {
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
  return result;
}

FUSED_RNN_DEVICE BFloat16 round_to_bfloat16(float value) {
  BFloat16 result;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
  return result;
}

FUSED_RNN_DEVICE Half round_to_half(float value) {
  Half result;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
  return result;
}

// Pack two neighbours into one register, as matrix instructions take them; `low` is the first in memory.
template <typename S>
FUSED_RNN_DEVICE uint32_t narrow_pair(float low, float high) {
  static_assert(std::is_same_v<S, BFloat16> || std::is_same_v<S, Half>);
  uint32_t result;
  if constexpr (std::is_same_v<S, BFloat16>)
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
  else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
  return result;
}

// Nonlinearities and clocks -----------------------------------------------------------------------------------------

// tanh within a relative error of 2^-11.
FUSED_RNN_DEVICE float approximate_tanh(float x) {
  float result;
  asm("tanh.approx.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// 2^x within a relative error of 2^-22, and 1/x within 2^-23; subnormal numbers count as zero.
FUSED_RNN_DEVICE float approximate_exp2(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

FUSED_RNN_DEVICE float approximate_reciprocal(float x) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// The clock of this SM.
FUSED_RNN_DEVICE long long cycles() {
  long long value;
  asm volatile("mov.u64 %0, %%clock64;" : "=l"(value)::"memory");
  return value;
}

// The instructions that compute `value` stay before this point.
FUSED_RNN_DEVICE void finish(unsigned& value) { asm volatile("" : "+r"(value)::"memory"); }

}  // namespace fused_rnn::cuda

#endif

#include "sm90.h"

// Polls of wait_for before it times out. One takes 0.3 to 1 µs, so this is about ten seconds.
#ifndef FUSED_RNN_WAIT_POLLS
#  define FUSED_RNN_WAIT_POLLS (1u << 24)
#endif

namespace fused_rnn::cuda {

// Several values that are loaded and stored in one access of up to 16 bytes.
template <typename T, int n>
struct alignas(n * sizeof(T)) Vector {
  T values[n];
};

// A tensor's value in the type of computations, and back, rounded to nearest.
FUSED_RNN_DEVICE float widen(BFloat16 value) { return bfloat16_to_float(value); }
FUSED_RNN_DEVICE float widen(float value) { return value; }
FUSED_RNN_DEVICE double widen(double value) { return value; }

template <typename S, typename C>
FUSED_RNN_DEVICE S narrow(C value) {
  if constexpr (std::is_same_v<S, BFloat16>)
    return round_to_bfloat16(value);
  else if constexpr (std::is_same_v<S, Half>)
    return round_to_half(value);
  else
    return value;
}

// The two neighbours that are packed in a register.
template <typename S>
FUSED_RNN_DEVICE float low_of(uint32_t pair) {
  return widen(S{static_cast<uint16_t>(pair)});
}
template <typename S>
FUSED_RNN_DEVICE float high_of(uint32_t pair) {
  return widen(S{static_cast<uint16_t>(pair >> 16)});
}

// Wait until *counter has reached target, for which both may have wrapped around; this thread then sees everything
// written before the additions that made it so. False after a timeout, e.g. because not all blocks of the grid are
// resident. Then *failed is set to 1, and the waits of all other blocks end with false as well, so that the kernel
// returns and its caller can report the failure.
FUSED_RNN_DEVICE bool wait_for(const unsigned* counter, unsigned target, unsigned* failed) {
  for (unsigned polls = 1; static_cast<int>(load_acquire(counter) - target) < 0; ++polls) {
    if (polls % 32 == 0 && load_relaxed(failed)) return false;
    if (polls >= FUSED_RNN_WAIT_POLLS) {
      store_relaxed(failed, 1);
      return false;
    }
  }
  return true;
}

}  // namespace fused_rnn::cuda

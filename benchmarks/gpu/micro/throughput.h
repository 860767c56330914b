// What one multiprocessor can do in a clock: reading its shared memory, matrix instructions, plain multiply-adds. For
// nvcc alone. Each kernel writes the cycles of its first block and a number that tells whether the work was done.
#pragma once

#include "ptx.h"

namespace fused_rnn::cuda {

struct Work {
  int count;          // repetitions
  int bytes;          // of shared memory, where a kernel reads it
  long long* cycles;  // of the first block
  unsigned* result;   // [threads] of the first block
};

// f() is what is timed; it returns the thread's result.
template <typename F>
__device__ void time_block(const Work& w, const F& f) {
  __syncthreads();
  const long long begin = cycles();
  unsigned result = f();
  finish(result);
  __syncthreads();
  const long long end = cycles();
  if (blockIdx.x != 0) return;
  w.result[threadIdx.x] = result;
  if (threadIdx.x == 0) *w.cycles = end - begin;
}

constexpr int scan_batch = 4;  // loads of a thread that are under way at a time

// Every thread reads its share of `bytes`, 16 at a time, again and again. Result: the sum of its words, each being 1.
// `bytes` is a multiple of what the block reads in a batch.
__global__ void scan_shared(const Work w) {
  FUSED_RNN_DYNAMIC_SHARED(shared);
  for (unsigned i = threadIdx.x; i < w.bytes / 4; i += blockDim.x) reinterpret_cast<unsigned*>(shared)[i] = 1;
  const unsigned begin = shared_address(shared) + 16 * threadIdx.x, end = shared_address(shared) + w.bytes;
  time_block(w, [&] {
    unsigned sum = 0;
    for (int i = 0; i < w.count; ++i) {
      for (unsigned address = begin; address < end; address += 16 * scan_batch * blockDim.x) {
        uint4 words[scan_batch];
#pragma unroll
        for (int k = 0; k < scan_batch; ++k) words[k] = load_shared_words(address + 16 * k * blockDim.x);
#pragma unroll
        for (int k = 0; k < scan_batch; ++k) sum += words[k].x + words[k].y + words[k].z + words[k].w;
      }
    }
    return sum;
  });
}

// Matrix instructions in `chains` chains, each waiting for its own last. Result: one sum of each chain, added up; all
// operands are 1, so each instruction adds 16.
template <int chains>
__global__ void multiply_matrices(const Work w) {
  constexpr uint32_t ones = 0x3f803f80;  // two bfloat16
  const uint32_t a[4] = {ones, ones, ones, ones}, b[2] = {ones, ones};
  time_block(w, [&] {
    float sum[chains][4] = {};
    for (int i = 0; i < w.count; ++i) {
#pragma unroll
      for (int c = 0; c < chains; ++c) mma_m16n8k16<BFloat16>(sum[c], a, b);
    }
    float total = 0;
#pragma unroll
    for (int c = 0; c < chains; ++c) total += sum[c][0];
    return static_cast<unsigned>(total);
  });
}

// Each warp loads four 8 x 8 matrices at a time, in rows that follow each other. Result: the sum of its registers, each
// being 1.
__global__ void load_matrices_often(const Work w) {
  FUSED_RNN_DYNAMIC_SHARED(shared);
  for (unsigned i = threadIdx.x; i < w.bytes / 4; i += blockDim.x) reinterpret_cast<unsigned*>(shared)[i] = 1;
  const unsigned char* const row = shared + 16 * threadIdx.x;  // 512 bytes for each warp
  time_block(w, [&] {
    unsigned sum = 0;
#pragma unroll 8
    for (int i = 0; i < w.count; ++i) {
      uint32_t registers[4];
      load_matrices(registers, row);
      sum += registers[0] + registers[1] + registers[2] + registers[3];
    }
    return sum;
  });
}

// Eight chains of multiply-adds in registers. Result: the length of a chain, times eight.
__global__ void multiply_add(const Work w, float one) {
  time_block(w, [&] {
    float sum[8] = {};
    for (int i = 0; i < w.count; ++i) {
#pragma unroll
      for (int r = 0; r < 8; ++r) sum[r] = sum[r] * one + one;
    }
    float total = 0;
#pragma unroll
    for (int r = 0; r < 8; ++r) total += sum[r];
    return static_cast<unsigned>(total);
  });
}

constexpr int product_depth = 64;

// The product of the recurrent kernels: a thread multiplies its column of weights with eight rows of states, all from
// shared memory. States lie one row after another and are read one by one, or the eight of a depth lie together and
// are read in two accesses. Result: all eight sums added up; all operands are 1.
template <bool together>
__global__ void multiply_add_shared(const Work w) {
  FUSED_RNN_DYNAMIC_SHARED(shared);
  const unsigned columns = blockDim.x, values = product_depth * (8 + columns);
  for (unsigned i = threadIdx.x; i < values; i += blockDim.x) reinterpret_cast<float*>(shared)[i] = 1;
  const unsigned states = shared_address(shared);
  const unsigned weights = states + 4 * (8 * product_depth + threadIdx.x);
  time_block(w, [&] {
    float sum[8] = {};
    for (int i = 0; i < w.count; ++i) {
#pragma unroll 8
      for (int k = 0; k < product_depth; ++k) {
        float state[8];
        if constexpr (together) {
          const uint4 low = load_shared_words(states + 32 * k), high = load_shared_words(states + 32 * k + 16);
          const unsigned bits[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
          for (int r = 0; r < 8; ++r) state[r] = __uint_as_float(bits[r]);
        } else {
#pragma unroll
          for (int r = 0; r < 8; ++r) state[r] = load_shared_float(states + 4 * (r * product_depth + k));
        }
        const float weight = load_shared_float(weights + 4 * k * columns);
#pragma unroll
        for (int r = 0; r < 8; ++r) sum[r] += state[r] * weight;
      }
    }
    float total = 0;
#pragma unroll
    for (int r = 0; r < 8; ++r) total += sum[r];
    return static_cast<unsigned>(total);
  });
}

}  // namespace fused_rnn::cuda

// Kernels that measure what one SM can do in a clock: reading shared memory, matrix instructions, plain multiply-adds.
// Only for nvcc. Each kernel writes the cycles of its first block, and a number that tells whether the work was done.
#pragma once

#include "../../../csrc/cuda/device.h"

namespace fused_rnn::cuda {

struct Work {
  int count;          // repetitions
  int bytes;          // of shared memory, if a kernel reads it
  long long* cycles;  // of the first block
  unsigned* result;   // [threads] of the first block
};

// Time f(), which returns the thread's result.
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

constexpr int scan_batch = 4;  // loads of a thread that are in flight at a time

// Every thread reads its share of `bytes`, 16 at a time, again and again. Result: the sum of its words, each being 1.
// `bytes` is a multiple of what the block reads in a batch.
__global__ void scan_shared(const Work w) {
  FUSED_RNN_DYNAMIC_SHARED(shared);
  for (unsigned i = threadIdx.x; i < w.bytes / 4; i += blockDim.x) reinterpret_cast<unsigned*>(shared)[i] = 1;
  const SharedAddress begin = shared_address(shared) + 16 * threadIdx.x, end = shared_address(shared) + w.bytes;
  time_block(w, [&] {
    unsigned sum = 0;
    for (int i = 0; i < w.count; ++i) {
      for (SharedAddress address = begin; address < end; address += 16 * scan_batch * blockDim.x) {
        uint4 words[scan_batch];
#pragma unroll
        for (int k = 0; k < scan_batch; ++k) words[k] = load_shared<uint4>(address + 16 * k * blockDim.x);
#pragma unroll
        for (int k = 0; k < scan_batch; ++k) sum += words[k].x + words[k].y + words[k].z + words[k].w;
      }
    }
    return sum;
  });
}

// Matrix instructions in `chains` chains, in which each waits for the one before. Result: one sum of each chain, added
// up; all operands are 1, so each instruction adds 16.
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

// Each warp loads four 8 x 8 matrices at a time, from consecutive rows. Result: the sum of its registers, each being 1.
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

constexpr int product_steps = 64;

// The float32 product of the recurrent kernels: weights of `outputs` outputs in registers, states of eight sequences
// from shared memory, of which each quarter of a warp reads its own step of K. Result: all sums added up; all operands
// are 1, but the compiler does not know that.
template <int outputs>
__global__ void multiply_add_shared(const Work w, float4 ones) {
  FUSED_RNN_DYNAMIC_SHARED(shared);  // [steps, quarters, 8 sequences]
  for (unsigned i = threadIdx.x; i < w.bytes / 4; i += blockDim.x) reinterpret_cast<float*>(shared)[i] = ones.x;
  const SharedAddress states = shared_address(shared) + 32 * (threadIdx.x % 32 / 8);
  const float weights[4] = {ones.x, ones.y, ones.z, ones.w};
  time_block(w, [&] {
    float sum[outputs][8] = {};
    for (int i = 0; i < w.count; ++i) {
#pragma unroll 8
      for (int k = 0; k < product_steps; ++k) {
        const uint4 low = load_shared<uint4>(states + 128 * k), high = load_shared<uint4>(states + 128 * k + 16);
        const unsigned state[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
        for (int o = 0; o < outputs; ++o) {
#pragma unroll
          for (int r = 0; r < 8; ++r) sum[o][r] += weights[o] * __uint_as_float(state[r]);
        }
      }
    }
    float total = 0;
#pragma unroll
    for (int o = 0; o < outputs; ++o) {
#pragma unroll
      for (int r = 0; r < 8; ++r) total += sum[o][r];
    }
    return static_cast<unsigned>(total);
  });
}

// The bfloat16 product of the recurrent kernels: weights in registers, states of eight sequences from shared memory,
// two matrix instructions for every load. Result: one sum of each of the two chains, added up; all operands are 1.
__global__ void multiply_matrices_shared(const Work w) {
  constexpr uint32_t ones = 0x3f803f80;                 // two bfloat16
  constexpr int stride = 2 * (32 * product_steps + 8);  // bytes of a sequence's states
  FUSED_RNN_DYNAMIC_SHARED(shared);
  for (unsigned i = threadIdx.x; i < w.bytes / 4; i += blockDim.x) reinterpret_cast<uint32_t*>(shared)[i] = ones;
  const uint32_t a[4] = {ones, ones, ones, ones};
  const unsigned lane = threadIdx.x % 32;
  const unsigned char* const row = shared + lane % 8 * stride + lane / 8 * 16;
  time_block(w, [&] {
    float sum[2][4] = {};
    for (int i = 0; i < w.count; ++i) {
#pragma unroll 8
      for (int k = 0; k < product_steps; ++k) {
        uint32_t b[4];
        load_matrices(b, row + 64 * k);
        mma_m16n8k16<BFloat16>(sum[0], a, {b[0], b[1]});
        mma_m16n8k16<BFloat16>(sum[1], a, {b[2], b[3]});
      }
    }
    return static_cast<unsigned>(sum[0][0] + sum[1][0]);
  });
}

}  // namespace fused_rnn::cuda

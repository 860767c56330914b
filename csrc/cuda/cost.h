// How long a step is estimated to take, by which the planner compares the ways to divide the work.
//
// The figures are for an H200 (132 multiprocessors at 1,980 MHz), fitted to the times of 457 plans of 23 layers that
// `python -m benchmarks.gpu.plans` measured there (benchmarks/results/plans-nvidia-h200.json), less what packing the
// weights takes: ten numbers, by least squares of the relative error, to the 256 plans within 2.5 times the fastest of
// their layer. On these it is off by 10 % (root mean square), and the plan that it takes, where it was timed, is at
// most 3 % slower than the fastest. Fitted without the layer in question it is off by 13 %, and the plan at most 14 %
// slower.
#pragma once

#include <vector>

#include "product.h"

namespace fused_rnn::cuda {

// A product of a step: blocks of weights of all warps, of the warp that has most, and of these those in shared memory
// and those that are read from the second-level cache; the segments of its state, and their bytes if blocks exchange
// it.
struct ProductWork {
  int64_t all, blocks, resident, streamed;
  int64_t segments, fetched_bytes;
};

// What a step of one tile takes of one block.
struct Work {
  int64_t tiles;           // of 8 sequences
  int64_t parts, phases;   // of the team, of the step
  int64_t values;          // pre-activations that the busiest thread makes, or their gradients
  int64_t unaligned_runs;  // of columns that are fetched ahead, where they do not come in pieces of 16 bytes
  std::vector<ProductWork> products;
};

namespace cost {

// Nanoseconds. A phase of a team's step, of which counter_barrier of `python -m benchmarks.gpu.micro` explains 600 to
// 1000: stores that must be out, the meeting, loads that begin anew.
constexpr double phase = 1660, phase_of_many = 2090;
constexpr int64_t many = 64;  // parts
// A product, with all that a step does once; a further segment of its state; a byte of a state that is exchanged
// (tile_exchange, which loads in place of copying, has 0.047).
constexpr double product = 690, next_segment = 880, fetched_byte = 0.0225;
// A block of weights times 8 sequences. In 16-bit types warps wait, and what counts is the warp that has most; the
// multiply-adds of all warps share the multiprocessor. By matrix_shared_rate and multiply_add_shared_rate the
// arithmetic of a block for each of eight warps is 70 and 774 clocks. float64 was not measured: half the rate.
constexpr double matrix_block = 103, multiply_block = 688, double_block = 2 * multiply_block;
constexpr double streamed_byte = 0.0090;  // of the weights of all warps
// A gate of a unit, all that is done for it but the product; a run of columns that comes in pieces of 4 bytes in place
// of 16, which was seen in 16-bit types alone.
constexpr double value = 218, unaligned_run = 188;

template <typename S>
double of_blocks(const ProductWork& p) {
  if (on_tensor_cores<S>) return matrix_block * static_cast<double>(p.blocks);
  const double block = std::is_same_v<S, double> ? double_block : multiply_block;
  return block * static_cast<double>(p.all) / warps;
}

template <typename S>
double nanoseconds(const ProductWork& p, int64_t tiles) {
  constexpr int64_t block_bytes = int64_t{block_size} * sizeof(S) * warps;
  return product + next_segment * static_cast<double>(p.segments - 1) +
         fetched_byte * static_cast<double>(p.fetched_bytes) + of_blocks<S>(p) * static_cast<double>(tiles) +
         streamed_byte * static_cast<double>(tiles * p.streamed * block_bytes);
}

template <typename S>
double nanoseconds(const Work& w) {
  double sum = value * static_cast<double>(w.values);
  if (on_tensor_cores<S>) sum += unaligned_run * static_cast<double>(w.unaligned_runs);
  if (w.parts > 1) sum += static_cast<double>(w.phases) * (w.parts < many ? phase : phase_of_many);
  for (const ProductWork& p : w.products) sum += nanoseconds<S>(p, w.tiles);
  return sum;
}

}  // namespace cost
}  // namespace fused_rnn::cuda

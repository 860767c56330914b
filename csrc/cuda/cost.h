// How long a step is estimated to take, by which the planner compares the ways to divide the work.
//
// The figures are for an H200 (132 multiprocessors at 1,980 MHz). Those of the machine are the medians of
// `python -m benchmarks.gpu.micro`; what the kernels add to them is fitted, by least squares of the relative error, to
// the kernels' times by the profiler (MEASURED in benchmarks/gpu/plans.py): eight numbers to 24 times of ten layers,
// each with the one plan that it had then. On these the estimate is off by 3 % (root mean square) and at most 8 %;
// fitted without the layer that is estimated, by 5 % and at most 13 %. How well it ranks other plans of a layer is for
// `python -m benchmarks.gpu.plans` to show, which has not yet run on a GPU.
#pragma once

#include <vector>

#include "product.h"

namespace fused_rnn::cuda {

// A product of a step: blocks of weights of the warp that has most, all of them, those in shared memory, and those that
// are read from the second-level cache; the segments of its state, and their bytes if blocks exchange it.
struct ProductWork {
  int64_t blocks, resident, streamed;
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

// Nanoseconds. Of the machine: a meeting of 2 to 8 and of 16 to 132 blocks (counter_barrier, 0.60 to 0.67 and 0.90 to
// 1.00 µs).
constexpr double meeting_of_few = 640, meeting = 950;
// Fitted: what a phase takes beyond the meeting; a product, with all that a step does once; a byte of a state
// (tile_exchange, which loads in place of copying, has 0.047).
constexpr double phase = 540, product = 515, fetched_byte = 0.027;
// Fitted: a block of weights times 8 sequences, of each warp; by matrix_shared_rate and multiply_add_shared_rate the
// arithmetic of eight warps would be 70 and 774 clocks. For weights in shared memory the fit found nothing to add.
// float64 was not measured: half the rate.
constexpr double matrix_block = 102, multiply_block = 690, double_block = 2 * multiply_block;
constexpr double streamed_byte =
    0.0117;  // of the weights of all warps; fitted to two kernels: 0.006 to 0.017 by either
// Fitted: a gate of a unit, all that is done for it but the product. A run of columns that comes in pieces of 4 bytes
// in place of 16: one kernel had such (float16, H = 768, forward), and this is what it took longer than was estimated.
constexpr double value = 261, unaligned_run = 148;
constexpr double next_segment = 100;  // a guess: no kernel that was measured had more than one

template <typename S>
constexpr double block_of_weights = std::is_same_v<S, double> ? double_block
                                    : on_tensor_cores<S>      ? matrix_block
                                                              : multiply_block;

template <typename S>
double nanoseconds(const ProductWork& p, int64_t tiles) {
  constexpr int64_t block_bytes = int64_t{block_size} * sizeof(S) * warps;
  return product + next_segment * static_cast<double>(p.segments - 1) +
         fetched_byte * static_cast<double>(p.fetched_bytes) +
         static_cast<double>(tiles * p.blocks) * block_of_weights<S> +
         static_cast<double>(tiles * p.streamed * block_bytes) * streamed_byte;
}

template <typename S>
double nanoseconds(const Work& w) {
  double sum = value * static_cast<double>(w.values) + unaligned_run * static_cast<double>(w.unaligned_runs);
  if (w.parts > 1) sum += static_cast<double>(w.phases) * (phase + (w.parts <= 8 ? meeting_of_few : meeting));
  for (const ProductWork& p : w.products) sum += nanoseconds<S>(p, w.tiles);
  return sum;
}

}  // namespace cost
}  // namespace fused_rnn::cuda

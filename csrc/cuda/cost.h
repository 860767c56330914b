// How long a step is estimated to take, by which the planner compares the ways to divide the work.
//
// The figures are for an H200 (132 multiprocessors at 1,980 MHz). Those of the machine are the medians of
// `python -m benchmarks.gpu.micro`; what the kernels add to them is fitted, by least squares of the relative error, to
// the kernels' times by the profiler at 24 points: LSTMs with H = 128 to 1024 and B = 16 and 64 in bfloat16, float16
// and float32, both GRUs and the multiplicative LSTM with H = 512 and B = 64, forward and backward. There the estimate
// is within 8 % of what was measured. `python -m benchmarks.gpu.plans` measures other plans beside their estimates.
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
// Fitted: what a phase takes beyond the meeting, stores that must be out and loads that begin anew; a product with the
// barriers around it; a byte of a state (tile_exchange, which loads in place of copying, has 0.047).
constexpr double phase = 540, product = 515, fetched_byte = 0.027;
// Fitted: a block of weights times 8 sequences, of each warp. By matrix_shared_rate and multiply_add_shared_rate it
// would take 70 and 774 clocks: a warp waits for each load. Weights in shared memory add nothing, as at 127 bytes a
// clock (shared_scan) they are there in that time. float64 was not measured: half the rate.
constexpr double matrix_block = 102, multiply_block = 690, double_block = 2 * multiply_block;
constexpr double streamed_byte = 0.0117;  // of the weights of all warps; fitted
// Fitted: a gate of a unit with its sums, its nonlinearity and what is stored of it; a run of columns that comes in
// pieces of 4 bytes, which need divisions to find their places.
constexpr double value = 261, unaligned_run = 148;
constexpr double next_segment = 100;  // not measured by itself: a barrier of the block and a wait for copies

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

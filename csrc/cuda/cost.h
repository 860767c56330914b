// How long a step is estimated to take, by which the planner compares the ways to divide the work.
#pragma once

#include <vector>

#include "api.h"
#include "product.h"

namespace fused_rnn::cuda {

// A product of a step: blocks of weights of the warp that has most, all of them, those in shared memory, and those that
// are read from the second-level cache; the segments of its state, and their bytes if blocks exchange it.
struct ProductWork {
  int64_t blocks, resident, streamed;
  int64_t segments, fetched_bytes;
};

// A step of one tile, of what one block does.
struct Work {
  int64_t sequences, parts;  // of the tile, of the team
  int64_t grid_blocks;       // at work at the same time
  int64_t phases;            // each ends with a meeting of the team
  int64_t values;            // of the hidden state for each thread
  std::vector<ProductWork> products;
};

namespace cost {

constexpr double meeting = 1700, fetch = 700, next_segment = 250, product = 100;
constexpr double shared_bandwidth = 128;           // bytes per cycle
constexpr double l2_bandwidth = 24, l2_port = 64;  // of each multiprocessor when all read, and at most
constexpr double matrix_block = 25;                // a block of weights times 8 sequences, for each scheduler
constexpr double multiply_block = 256, double_block = 512;

template <typename S>
double of_step(const Work& w, const Chip& chip) {
  const double l2 = std::min(l2_port, l2_bandwidth * chip.multiprocessors / static_cast<double>(w.grid_blocks));
  const double block = std::is_same_v<S, double> ? double_block : on_tensor_cores<S> ? matrix_block : multiply_block;
  const double tiles = static_cast<double>(w.sequences) / tile_sequences;
  double sum = w.parts > 1 ? static_cast<double>(w.phases) * meeting : 0;
  for (const ProductWork& p : w.products) {
    sum += product + static_cast<double>(p.blocks) * tiles * block * warps / 4;
    sum += tiles * warps * block_size * sizeof(S) *
           (static_cast<double>(p.resident) / shared_bandwidth + static_cast<double>(p.streamed) / l2);
    if (p.fetched_bytes > 0)
      sum += fetch + next_segment * static_cast<double>(p.segments - 1) + static_cast<double>(p.fetched_bytes) / l2;
  }
  return sum;
}

}  // namespace cost
}  // namespace fused_rnn::cuda

// The sizes that warp kernels are compiled for, and what follows from them. K, which products with h₋ sum over, is a
// compile-time constant, so that weights stay in registers. H is padded to the next K, and I to the next `features`.
#pragma once

#include "../shape.h"
#include "cell.h"
#include "tile.h"

namespace fused_rnn::cuda::cluster {

// The `blocks` blocks of a cluster share K units, and `octets` times 8 sequences are a tile. In the forward kernel
// `shares` warps share K. If a cell has a multiplicative modifier, x̂ has `features` features, which are owned by the
// first blocks, as many as can have whole tiles of outputs; other cells have none.
template <int K_, int blocks_, int shares_, int octets_, int features_ = 0>
struct Size {
  using Exchange = ClusterExchange;
  static constexpr int K = K_, blocks = blocks_, shares = shares_, octets = octets_, features = features_;
  static constexpr int units = K / blocks, groups = units / 8;  // units of a block; groups of 8 units
  static constexpr int own_features = features / blocks > 16 ? features / blocks : features > 0 ? 16 : 0;
  static constexpr int feature_groups = own_features / 8, feature_blocks = features > 0 ? features / own_features : 0;
  static_assert(units % 16 == 0 && K % (32 * shares) == 0, "matrix instructions take 16 outputs and here 32 of K");
  static_assert(features == 0 ||
                    (own_features % 16 == 0 && features % own_features == 0 && features % (32 * shares) == 0),
                "likewise of features");
};

// Likewise for a team of blocks that exchange messages, for cells of one phase.
template <int K, int blocks, int shares, int octets>
struct TeamSize : Size<K, blocks, shares, octets> {
  using Exchange = MessageExchange;
};

// The largest divisor of `number` that is at most `most`.
constexpr int divisor_up_to(int most, int number) {
  int divisor = most < number ? most : number;
  while (number % divisor != 0) --divisor;
  return divisor;
}

// The 4-byte registers that a thread has if `threads` threads share an SM.
constexpr int registers_of(int threads) {
  const int registers = 65536 / threads / 8 * 8;
  return registers < 255 ? registers : 255;
}

// How many of `count` fragments of a matrix instruction's operand, with 4 registers each, a thread holds in registers
// besides `others` registers. The rest is in shared memory.
constexpr int held_of(int count, int threads, int others) {
  const int room = (registers_of(threads) - others) / 4;
  return room < 0 ? 0 : room < count ? room : count;
}

constexpr int fragment_bytes = 32 * 16;  // per warp

constexpr int most_shared_bytes = 232448;  // a block's limit, on GPUs with clusters

}  // namespace fused_rnn::cuda::cluster

// The sizes that kernels of warps are compiled for, and what follows from them. K is what products with h₋ sum over and
// a constant of the compiler, so that weights stay in registers; H is padded to the next one, as I is to `features`.
#pragma once

#include "../shape.h"
#include "cell.h"
#include "tile.h"

namespace fused_rnn::cuda::cluster {

// `blocks` of a cluster share K units; `octets` times 8 sequences are a tile. Forward `shares` warps share what one has
// to multiply. Where a cell has a multiplicative modifier, x̂ has `features`, which the first blocks share, so many that
// each of these has whole tiles of outputs; elsewhere there are none.
template <int K_, int blocks_, int shares_, int octets_, int features_ = 0>
struct Size {
  using Exchange = ClusterExchange;
  static constexpr int K = K_, blocks = blocks_, shares = shares_, octets = octets_, features = features_;
  static constexpr int units = K / blocks, groups = units / 8;  // of a block; of 8 units
  static constexpr int own_features = features / blocks > 16 ? features / blocks : features > 0 ? 16 : 0;
  static constexpr int feature_groups = own_features / 8, feature_blocks = features > 0 ? features / own_features : 0;
  static_assert(units % 16 == 0 && K % (32 * shares) == 0, "matrix instructions take 16 outputs and here 32 of K");
  static_assert(features == 0 ||
                    (own_features % 16 == 0 && features % own_features == 0 && features % (32 * shares) == 0),
                "likewise of features");
};

// Likewise of blocks that are a team by messages, for cells of one phase.
template <int K, int blocks, int shares, int octets>
struct TeamSize : Size<K, blocks, shares, octets> {
  using Exchange = MessageExchange;
};

// The largest divisor of a number up to `most`.
constexpr int divisor_up_to(int most, int number) {
  int divisor = most < number ? most : number;
  while (number % divisor != 0) --divisor;
  return divisor;
}

// Registers of 4 bytes that a thread has where so many share a multiprocessor.
constexpr int registers_of(int threads) {
  const int registers = 65536 / threads / 8 * 8;
  return registers < 255 ? registers : 255;
}

// Of `count` fragments of a matrix instruction's operand, 4 registers each, how many a thread holds in registers,
// beside `others` registers; the rest is in shared memory.
constexpr int held_of(int count, int threads, int others) {
  const int room = (registers_of(threads) - others) / 4;
  return room < 0 ? 0 : room < count ? room : count;
}

constexpr int fragment_bytes = 32 * 16;  // of a warp

constexpr int most_shared_bytes = 232448;  // that a block can have where there are clusters

}  // namespace fused_rnn::cuda::cluster

// The sizes that kernels of warps are compiled for, and what follows from them. K is what products sum over and a
// constant of the compiler, so that weights stay in registers; H is padded to the next one.
#pragma once

#include "../shape.h"
#include "tile.h"

namespace fused_rnn::cuda::cluster {

// `blocks` of a cluster share K units; `octets` times 8 sequences are a tile. Forward `shares` warps share what one has
// to multiply.
template <int K_, int blocks_, int shares_, int octets_>
struct Size {
  static constexpr int K = K_, blocks = blocks_, shares = shares_, octets = octets_;
  static constexpr int units = K / blocks, groups = units / 8;  // of a block; of 8 units
  static_assert(units % 16 == 0 && K % (32 * shares) == 0, "matrix instructions take 16 outputs and here 32 of K");
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
  return room < count ? room : count;
}

constexpr int fragment_bytes = 32 * 16;  // of a warp

}  // namespace fused_rnn::cuda::cluster

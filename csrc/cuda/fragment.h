// Blocks of weights and their product with the state of a tile of sequences: what one warp computes at a time.
//
// Weights are the left operand, sums[output, sequence] = weights[output, depth] state[depth, sequence], because 16
// outputs and 8 sequences are what a matrix instruction takes. A block has 16 outputs and a depth of 64. The 16-bit
// types go through the tensor cores; float and double through multiply-adds, in which a lane has two outputs and every
// fourth step of the depth. Blocks are packed in the order in which lanes want them, so that a lane loads 16 bytes at
// a time and a warp 512 in a row, from shared memory as from global.
#pragma once

#include "device.h"

namespace fused_rnn::cuda {

template <typename S>
constexpr bool on_tensor_cores = std::is_same_v<S, BFloat16> || std::is_same_v<S, Half>;

// The type of sums and of carried states.
template <typename S>
using Computed = std::conditional_t<std::is_same_v<S, double>, double, float>;

constexpr int block_outputs = 16, block_depth = 64, tile_sequences = 8;
constexpr int block_size = block_outputs * block_depth, lane_values = block_size / 32;

HOST_DEVICE constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
HOST_DEVICE constexpr int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }

// A lane's part of a block comes in pieces of 32 bytes. Every piece is a run of the depth by itself.
template <typename S>
struct Piece {
  using Word = std::conditional_t<on_tensor_cores<S>, uint32_t, S>;
  static constexpr int words = 32 / sizeof(Word), depth = block_depth * 32 / (lane_values * sizeof(S));
  Word values[words];
};

template <typename S>
constexpr int pieces = block_depth / Piece<S>::depth;  // of a block

// Where the value number i of a lane stands in the block: its output, its depth, and its place in memory.
template <typename S>
HOST_DEVICE constexpr int fragment_output(int lane, int i) {
  return on_tensor_cores<S> ? lane / 4 + i / 2 % 2 * 8 : lane % 8 + i % 2 * 8;
}

template <typename S>
HOST_DEVICE constexpr int fragment_depth(int lane, int i) {
  return on_tensor_cores<S> ? i / 8 * 16 + i / 4 % 2 * 8 + lane % 4 * 2 + i % 2 : i / 2 * 4 + lane / 8;
}

template <typename S>
HOST_DEVICE constexpr int fragment_place(int lane, int i) {
  constexpr int each = 16 / sizeof(S);
  return (i / each * 32 + lane) * each + i % each;
}

template <typename S, typename Load>
FUSED_RNN_DEVICE Piece<S> load_piece(const S* block, int piece, const Load& load) {
  using Word = typename Piece<S>::Word;
  constexpr int each = 16 / sizeof(Word);
  using Chunk = Vector<Word, each>;
  Piece<S> result;
  const auto* const chunks = reinterpret_cast<const Chunk*>(block) + piece * 64 + threadIdx.x % 32;
  FUSED_RNN_UNROLL
  for (int i = 0; i < 2; ++i) {
    const Chunk chunk = load(chunks + i * 32);
    FUSED_RNN_UNROLL
    for (int j = 0; j < each; ++j) result.values[i * each + j] = chunk.values[j];
  }
  return result;
}

// The state of a tile of sequences as products read it, [sequences, depth] with a multiple of 8 sequences and of 64
// steps of depth, in an order that keeps a warp's reads free of bank conflicts.
template <typename S>
HOST_DEVICE constexpr int state_size(int sequences, int depth) {
  return on_tensor_cores<S> ? sequences * (depth + 8) : sequences * depth;
}

template <typename S>
HOST_DEVICE constexpr int state_place(int sequence, int k, int depth) {
  if (on_tensor_cores<S>) return sequence * (depth + 8) + k;
  return (sequence / tile_sequences * depth + k) * tile_sequences + sequence % tile_sequences;
}

// The sums of a warp over a run of blocks of the same 16 outputs, for 8 sequences.
template <typename S, bool tensor_cores = on_tensor_cores<S>>
class Accumulator;

template <typename S>
class Accumulator<S, true> {
 public:
  // sums += piece * state, `state` being that of all sequences and k the first step of the piece's depth.
  FUSED_RNN_DEVICE void add(const Piece<S>& a, const S* state, int tile, int k, int depth) {
    const int lane = threadIdx.x % 32;
    uint32_t b[4];
    load_matrices(b, state + state_place<S>(tile * tile_sequences + lane % 8, k + lane / 8 * 8, depth));
    FUSED_RNN_UNROLL
    for (int i = 0; i < 2; ++i) {
      const uint32_t left[4] = {a.values[4 * i], a.values[4 * i + 1], a.values[4 * i + 2], a.values[4 * i + 3]};
      const uint32_t right[2] = {b[2 * i], b[2 * i + 1]};
      mma_m16n8k16<S>(sums_[i], left, right);
    }
  }

  // Put the sums of the block's outputs to [sequences, outputs], in addition to what is there or in place of it.
  FUSED_RNN_DEVICE void put(float* to, int stride, bool in_addition) const {
    const int lane = threadIdx.x % 32;
    to += lane % 4 * 2 * stride + lane / 4;
    FUSED_RNN_UNROLL
    for (int i = 0; i < 4; ++i) {
      float* const p = to + (i % 2) * stride + i / 2 * 8;
      *p = sums_[0][i] + sums_[1][i] + (in_addition ? *p : 0.0f);
    }
  }

 private:
  float sums_[2][4] = {};  // of the halves of pieces, so that twice as many instructions are under way
};

template <typename S>
class Accumulator<S, false> {
 public:
  FUSED_RNN_DEVICE void add(const Piece<S>& a, const S* state, int tile, int k, int depth) {
    constexpr int each = 16 / sizeof(S);
    const int quarter = threadIdx.x % 32 / 8;
    using Chunk = Vector<S, each>;
    FUSED_RNN_UNROLL
    for (int i = 0; i < Piece<S>::depth / 4; ++i) {
      const S* const from = state + state_place<S>(tile * tile_sequences, k + i * 4 + quarter, depth);
      FUSED_RNN_UNROLL
      for (int c = 0; c < tile_sequences / each; ++c) {
        const Chunk b = reinterpret_cast<const Chunk*>(from)[c];
        FUSED_RNN_UNROLL
        for (int j = 0; j < each; ++j) {
          sums_[0][c * each + j] += a.values[2 * i] * b.values[j];
          sums_[1][c * each + j] += a.values[2 * i + 1] * b.values[j];
        }
      }
    }
  }

  // The same. The quarters of the warp add up their sums; each lane ends with one output and half of the sequences.
  FUSED_RNN_DEVICE void put(S* to, int stride, bool in_addition) const {
    const int lane = threadIdx.x % 32;
    const bool second_output = lane & 16, second_half = lane & 8;
    S sums[tile_sequences];
    FUSED_RNN_UNROLL
    for (int r = 0; r < tile_sequences; ++r) {
      const S other = __shfl_xor_sync(~0u, second_output ? sums_[0][r] : sums_[1][r], 16);
      sums[r] = (second_output ? sums_[1][r] : sums_[0][r]) + other;
    }
    to += second_half * 4 * stride + second_output * 8 + lane % 8;
    FUSED_RNN_UNROLL
    for (int r = 0; r < tile_sequences / 2; ++r) {
      const S other = __shfl_xor_sync(~0u, second_half ? sums[r] : sums[r + 4], 8);
      const S sum = (second_half ? sums[r + 4] : sums[r]) + other;
      to[r * stride] = sum + (in_addition ? to[r * stride] : S(0));
    }
  }

 private:
  S sums_[2][tile_sequences] = {};
};

// How the blocks of a matrix are made: the outputs of a part of a team are runs of `own` units, one for each gate; the
// value for (gate, unit, k) stands at `from` + gate * gate_stride + unit * unit_stride + k * depth_stride.
template <typename S>
struct Packing {
  const S* from;
  S* to;  // [parts, divide_up(gates * own, 16), divide_up(depth, 64)] blocks
  int parts, gates, units, own, depth;
  int64_t gate_stride, unit_stride, depth_stride;

  HOST_DEVICE int64_t tiles() const { return divide_up(gates * own, block_outputs); }
  HOST_DEVICE int64_t size() const { return parts * tiles() * round_up(depth, block_depth) * block_outputs; }
};

// Fill the place of one value, counted through all blocks as [block, lane, value].
template <typename S>
FUSED_RNN_DEVICE void pack(const Packing<S>& p, int64_t index) {
  const int i = index % lane_values, lane = index / lane_values % 32;
  const int64_t block = index / block_size, depth_blocks = divide_up(p.depth, block_depth);
  const int64_t tile = block / depth_blocks, part = tile / p.tiles();
  const int output = static_cast<int>(tile % p.tiles()) * block_outputs + fragment_output<S>(lane, i);
  const int k = static_cast<int>(block % depth_blocks) * block_depth + fragment_depth<S>(lane, i);
  const int gate = output / p.own;
  const int64_t unit = part * p.own + output % p.own;
  S value{};
  if (gate < p.gates && unit < p.units && k < p.depth)
    value = p.from[gate * p.gate_stride + unit * p.unit_stride + k * p.depth_stride];
  p.to[block * block_size + fragment_place<S>(lane, i)] = value;
}

// What a sequence needs before it starts: packed weights, and zeros in what blocks exchange data through.
template <typename S>
struct Preparation {
  int count;
  Packing<S> packings[5];
  uint32_t* cleared;
  int64_t words;
};

template <typename S>
FUSED_RNN_KERNEL prepare(const Preparation<S> p) {
  const int64_t first = int64_t{blockIdx.x} * blockDim.x + threadIdx.x, step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = first; i < p.words; i += step) p.cleared[i] = 0;
  for (int n = 0; n < p.count; ++n)
    for (int64_t i = first; i < p.packings[n].size(); i += step) pack(p.packings[n], i);
}

}  // namespace fused_rnn::cuda

// Fragments of weights and their product with the state of a tile of sequences: what one warp computes at a time.
//
// Weights are the left operand, sums[output, sequence] = weights[output, k] state[k, sequence], because a matrix
// instruction takes 16 outputs and 8 sequences. 16-bit types use the tensor cores. float and double use multiply-adds,
// in which a lane has two outputs and every fourth value of K. Fragments are packed in the order of the lanes: from
// shared as from global memory, a lane loads 16 bytes at a time, and a warp 512 consecutive bytes.
#pragma once

#include "device.h"
#include "shape.h"

namespace fused_rnn::cuda {

// A lane's values of a fragment come in pieces of 32 bytes. Each piece covers a range of K of its own.
template <typename S>
struct Piece {
  using Word = std::conditional_t<on_tensor_cores<S>, uint32_t, S>;
  static constexpr int words = 32 / sizeof(Word), k = fragment_k * 32 / (lane_values * sizeof(S));
  Word values[words];
};

template <typename S>
constexpr int pieces = fragment_k / Piece<S>::k;  // per fragment

// The position of a lane's value i: its output and its k in the fragment, and its index in memory.
template <typename S>
HOST_DEVICE constexpr int fragment_output(int lane, int i) {
  return on_tensor_cores<S> ? lane / 4 + i / 2 % 2 * 8 : lane % 8 + i % 2 * 8;
}

template <typename S>
HOST_DEVICE constexpr int fragment_column(int lane, int i) {
  return on_tensor_cores<S> ? i / 8 * 16 + i / 4 % 2 * 8 + lane % 4 * 2 + i % 2 : i / 2 * 4 + lane / 8;
}

template <typename S>
HOST_DEVICE constexpr int fragment_place(int lane, int i) {
  constexpr int each = 16 / sizeof(S);
  return (i / each * 32 + lane) * each + i % each;
}

template <typename S, typename Load>
FUSED_RNN_DEVICE Piece<S> load_piece(const S* fragment, int piece, const Load& load) {
  using Word = typename Piece<S>::Word;
  constexpr int each = 16 / sizeof(Word);
  using Chunk = Vector<Word, each>;
  Piece<S> result;
  const auto* const chunks = reinterpret_cast<const Chunk*>(fragment) + piece * 64 + threadIdx.x % 32;
  FUSED_RNN_UNROLL
  for (int i = 0; i < 2; ++i) {
    const Chunk chunk = load(chunks + i * 32);
    FUSED_RNN_UNROLL
    for (int j = 0; j < each; ++j) result.values[i * each + j] = chunk.values[j];
  }
  return result;
}

// The index of a value in a segment of a state, [sequences, span]; sequences are a multiple of 8, span one of
// fragment_k.
template <typename S>
HOST_DEVICE constexpr int state_place(int sequence, int k, int span) {
  if (on_tensor_cores<S>) return sequence * (span + 8) + k;
  return (sequence / octet * span + k) * octet + sequence % octet;
}

// A warp's sums over consecutive fragments of one strip, for 8 sequences.
template <typename S, bool tensor_cores = on_tensor_cores<S>>
class Accumulator;

template <typename S>
class Accumulator<S, true> {
 public:
  // sums += piece * state of octet n. `state` is a segment with all sequences, and k the first of the piece.
  FUSED_RNN_DEVICE void add(const Piece<S>& a, const S* state, int n, int k, int span) {
    const int lane = threadIdx.x % 32;
    uint32_t b[4];
    load_matrices(b, state + state_place<S>(n * octet + lane % 8, k + lane / 8 * 8, span));
    FUSED_RNN_UNROLL
    for (int i = 0; i < 2; ++i) {
      const uint32_t left[4] = {a.values[4 * i], a.values[4 * i + 1], a.values[4 * i + 2], a.values[4 * i + 3]};
      const uint32_t right[2] = {b[2 * i], b[2 * i + 1]};
      mma_m16n8k16<S>(sums_[i], left, right);
    }
  }

  // Store the sums of the strip's outputs to [sequences, outputs], or add them to what is there.
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
  float sums_[2][4] = {};  // one for each half of a piece, to keep twice as many instructions in flight
};

template <typename S>
class Accumulator<S, false> {
 public:
  FUSED_RNN_DEVICE void add(const Piece<S>& a, const S* state, int n, int k, int span) {
    constexpr int each = 16 / sizeof(S);
    const int quarter = threadIdx.x % 32 / 8;
    using Chunk = Vector<S, each>;
    FUSED_RNN_UNROLL
    for (int i = 0; i < Piece<S>::k / 4; ++i) {
      const S* const from = state + state_place<S>(n * octet, k + i * 4 + quarter, span);
      FUSED_RNN_UNROLL
      for (int c = 0; c < octet / each; ++c) {
        const Chunk b = reinterpret_cast<const Chunk*>(from)[c];
        FUSED_RNN_UNROLL
        for (int j = 0; j < each; ++j) {
          sums_[0][c * each + j] += a.values[2 * i] * b.values[j];
          sums_[1][c * each + j] += a.values[2 * i + 1] * b.values[j];
        }
      }
    }
  }

  // Likewise. The quarters of the warp add up their sums; each lane ends with one output and half of the sequences.
  FUSED_RNN_DEVICE void put(S* to, int stride, bool in_addition) const {
    const int lane = threadIdx.x % 32;
    const bool second_output = lane & 16, second_half = lane & 8;
    S sums[octet];
    FUSED_RNN_UNROLL
    for (int r = 0; r < octet; ++r) {
      const S other = __shfl_xor_sync(~0u, second_output ? sums_[0][r] : sums_[1][r], 16);
      sums[r] = (second_output ? sums_[1][r] : sums_[0][r]) + other;
    }
    to += second_half * 4 * stride + second_output * 8 + lane % 8;
    FUSED_RNN_UNROLL
    for (int r = 0; r < octet / 2; ++r) {
      const S other = __shfl_xor_sync(~0u, second_half ? sums[r] : sums[r + 4], 8);
      const S sum = (second_half ? sums[r + 4] : sums[r]) + other;
      to[r * stride] = sum + (in_addition ? to[r * stride] : S(0));
    }
  }

 private:
  S sums_[2][octet] = {};
};

}  // namespace fused_rnn::cuda

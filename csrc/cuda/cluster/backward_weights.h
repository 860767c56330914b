// The weights of backward products: the rows of a weight matrix that belong to the block, transposed.
#pragma once

#include "backward_shape.h"

namespace fused_rnn::cuda::cluster {

#if FUSED_RNN_SM90

// A warp's sums for 16 outputs and 8 sequences: one accumulator, or three for floats.
template <typename S>
struct WarpSums {
  static constexpr int terms = terms_of<S>;
  using Fragment = Vector<uint32_t, 4>;
  float sums[terms][4];

  // Add the product of weights and a step of the operand.
  FUSED_RNN_DEVICE void add(const InTerms<S, Fragment>& a, const uint32_t (&b)[terms][2]) {
    if constexpr (terms == 1)
      mma_m16n8k16<S>(sums[0], a.values, b[0]);
    else
      mma_terms(sums[0], sums[1], sums[2], a, b);
  }

  // Add the sums of another chain.
  FUSED_RNN_DEVICE void add(const WarpSums& other) {
    FUSED_RNN_UNROLL
    for (int term = 0; term < terms; ++term) {
      FUSED_RNN_UNROLL
      for (int i = 0; i < 4; ++i) sums[term][i] += other.sums[term][i];
    }
  }

  FUSED_RNN_DEVICE float total(int i) const {
    if constexpr (terms == 1)
      return sums[0][i];
    else
      return total_of(sums[0][i], sums[1][i], sums[2][i]);
  }
};

// A warp's fragments in the order in which they are used: `together` tiles step by step, then the next ones. The steps
// cover `own` rows of each of `gates` gates, and then zeros. Fragments in registers are spread evenly among the others,
// so that these can come from shared memory meanwhile.
template <typename S, int tiles_, int k_steps_, int held, int own, int gates, int together>
class TurnedWeights {
  using Fragment = Vector<uint32_t, 4>;
  using Place = InTerms<S, Fragment>;
  static constexpr int fragments = tiles_ * k_steps_, terms = terms_of<S>;
  static_assert(tiles_ % together == 0, "each has a place of its own");

 public:
  static constexpr int tiles = tiles_, k_steps = k_steps_;
  static constexpr int in_shared = fragments - held;

  // `shared` has what registers do not hold, starting with the first warp's.
  FUSED_RNN_DEVICE TurnedWeights(unsigned char* shared, int warp, int lane)
      : in_shared_(at<Fragment>(shared, 0) + warp * terms * in_shared * 32 + lane) {}

  // Neighbours in a row of the transpose lie in a column of the matrix. So 16-bit matrices are loaded as they lie in
  // memory, and transposed when all loads are in flight; floats are loaded one by one, each where its lane needs it.
  // Fragments for shared memory are loaded a few at a time, or there would be more loads than registers. `pairs`: every
  // second output is aligned to 4 bytes, of which floats make no use.
  //
  // A source is a matrix: weights(), with rows() rows for each gate and columns() columns; output() is the first one of
  // the warp, rank() that of the block, lane() that of the thread. They are functions so that the compiler reads a
  // kernel's parameter where it is used.
  template <bool pairs, typename Source>
  FUSED_RNN_DEVICE void load(const Source& source) {
    for_each<pairs, false>(source, [&](int at, const Place& f) {
      if constexpr (terms == 1) {
        in_shared_[at * 32] = turned(f);
        if (at % 8 == 7) __syncwarp();  // no later load moves ahead of this
      } else {
        FUSED_RNN_UNROLL
        for (int term = 0; term < terms; ++term) in_shared_[(terms * at + term) * 32] = f.terms[term];
        if (at % 4 == 3) __syncwarp();
      }
    });
    for_each<pairs, true>(source, [&](int at, const Place& f) { held_[at] = f; });
    if constexpr (terms == 1) {
      FUSED_RNN_UNROLL
      for (int at = 0; at < held; ++at) held_[at] = turned(held_[at]);
    }
  }

  FUSED_RNN_DEVICE Place get(int s, int j) const {
    const int at = place_of(s, j), in_shared = at - before(at);
    if (is_held(at)) return held_[before(at)];
    if constexpr (terms == 1)
      return in_shared_[in_shared * 32];
    else
      return {in_shared_[3 * in_shared * 32], in_shared_[(3 * in_shared + 1) * 32],
              in_shared_[(3 * in_shared + 2) * 32]};
  }

 private:
  // Call f with the index and the value of each fragment in registers, or of each one in shared memory.
  template <bool pairs, bool in_registers, typename Source, typename F>
  FUSED_RNN_DEVICE static void for_each(const Source& source, const F& f) {
    // 16 bits: as a matrix lies in memory; floats: where the lane needs it
    const int row = source.rank() * own + (terms == 1 ? source.lane() / 4 : 2 * (source.lane() % 4)),
              column = source.output() + (terms == 1 ? 2 * (source.lane() % 4) : source.lane() / 4);
    const S* from = source.weights() + int64_t{row} * source.columns() + column;
    FUSED_RNN_UNROLL
    for (int s = 0; s < k_steps; ++s) {
      const int below = 16 * s % own;  // rows below the block's first one
      FUSED_RNN_UNROLL
      for (int j = 0; j < tiles; ++j) {
        const int at = place_of(s, j);
        if (is_held(at) != in_registers) continue;
        Place fragment;
        FUSED_RNN_UNROLL
        for (int i = 0; i < 4; ++i) {
          const int right = 16 * j + i % 2 * 8, down = i / 2 * 8;
          const bool exists = 16 * s / own < gates && row + below + down < source.rows();
          const int left = exists ? source.columns() - column - right : 0;
          const S* const place = from + down * int64_t{source.columns()} + right;
          if constexpr (terms == 1) {
            fragment.values[i] = weight_pair<pairs>(place, left);
          } else {
            const bool has_next = left > 0 && row + below + down + 1 < source.rows();
            const auto pair = split_pair(left > 0 ? *place : 0.0f, has_next ? place[source.columns()] : 0.0f);
            FUSED_RNN_UNROLL
            for (int term = 0; term < terms; ++term) fragment.terms[term].values[i] = pair.terms[term];
          }
        }
        f(in_registers ? before(at) : at - before(at), fragment);
      }
      from += (below + 16 < own ? 16 : source.rows() - below) * int64_t{source.columns()};
    }
  }

  FUSED_RNN_DEVICE static Fragment turned(const Fragment& f) {
    Fragment result;
    FUSED_RNN_UNROLL
    for (int i = 0; i < 4; ++i) result.values[i] = transpose_matrix(f.values[i]);
    return result;
  }

  FUSED_RNN_DEVICE static constexpr int place_of(int s, int j) {
    return (j / together * k_steps + s) * together + j % together;
  }
  FUSED_RNN_DEVICE static constexpr int before(int at) { return at * held / fragments; }  // those in registers
  FUSED_RNN_DEVICE static constexpr bool is_held(int at) { return before(at + 1) > before(at); }

  Fragment* const in_shared_;
  Place held_[held > 0 ? held : 1];
};

#endif

}  // namespace fused_rnn::cuda::cluster

// Weights that backward products multiply with: the transpose of a matrix of weights, as far as the block's own rows of
// it go.
#pragma once

#include "backward_shape.h"

namespace fused_rnn::cuda::cluster {

#if FUSED_RNN_SM90

// The fragments of a warp, in the order in which they are used: of `together` tiles step by step, then of the next
// ones. The steps go over `own` rows of each of `gates` gates, and then zeros. Those in registers are spread evenly
// among them, so that others come from shared memory meanwhile.
template <typename S, int tiles_, int k_steps_, int held, int own, int gates, int together>
class TurnedWeights {
  using Fragment = Vector<uint32_t, 4>;
  static constexpr int fragments = tiles_ * k_steps_;

 public:
  static constexpr int tiles = tiles_, k_steps = k_steps_;
  static constexpr int in_shared = fragments - held;

  // `shared`: what registers do not hold, of the first warp.
  FUSED_RNN_DEVICE TurnedWeights(unsigned char* shared, int warp, int lane)
      : in_shared_(at<Fragment>(shared, 0) + warp * in_shared * 32 + lane) {}

  // Neighbours in a row of the transpose lie in a column of the matrix: matrices are loaded as they lie there, and
  // turned when all loads are under way; those for shared memory a few at a time, or there would be more loads than
  // registers. `pairs` says that every second output stands at a multiple of 4 bytes.
  //
  // A source is a matrix: weights(), with rows() rows for each gate and columns() columns; output() is the first one of
  // the warp, rank() is that of the block, lane() the thread's. They are functions for the compiler to read a kernel's
  // parameter where it is used.
  template <bool pairs, typename Source>
  FUSED_RNN_DEVICE void load(const Source& source) {
    for_each<pairs, false>(source, [&](int at, const Fragment& f) {
      in_shared_[at * 32] = turned(f);
      if (at % 8 == 7) __syncwarp();  // no load is made earlier
    });
    for_each<pairs, true>(source, [&](int at, const Fragment& f) { held_[at] = f; });
    FUSED_RNN_UNROLL
    for (int at = 0; at < held; ++at) held_[at] = turned(held_[at]);
  }

  FUSED_RNN_DEVICE Fragment get(int s, int j) const {
    const int at = place_of(s, j);
    return is_held(at) ? held_[before(at)] : in_shared_[(at - before(at)) * 32];
  }

 private:
  // Calls f with the number and the value of each fragment in registers, or of each in shared memory.
  template <bool pairs, bool in_registers, typename Source, typename F>
  FUSED_RNN_DEVICE static void for_each(const Source& source, const F& f) {
    const int row = source.rank() * own + source.lane() / 4, column = source.output() + 2 * (source.lane() % 4);
    const S* from = source.weights() + int64_t{row} * source.columns() + column;
    FUSED_RNN_UNROLL
    for (int s = 0; s < k_steps; ++s) {
      const int below = 16 * s % own;  // from the first row of the block
      FUSED_RNN_UNROLL
      for (int j = 0; j < tiles; ++j) {
        const int at = place_of(s, j);
        if (is_held(at) != in_registers) continue;
        Fragment fragment;
        FUSED_RNN_UNROLL
        for (int i = 0; i < 4; ++i) {
          const int right = 16 * j + i % 2 * 8, down = i / 2 * 8;
          const bool exists = 16 * s / own < gates && row + below + down < source.rows();
          const int left = exists ? source.columns() - column - right : 0;
          fragment.values[i] = weight_pair<pairs>(from + down * int64_t{source.columns()} + right, left);
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
  FUSED_RNN_DEVICE static constexpr int before(int at) { return at * held / fragments; }  // so many in registers
  FUSED_RNN_DEVICE static constexpr bool is_held(int at) { return before(at + 1) > before(at); }

  Fragment* const in_shared_;
  Fragment held_[held > 0 ? held : 1];
};

#endif

}  // namespace fused_rnn::cuda::cluster

// Forward products of a warp: rows of weights, which stay in registers, times a state of the tile's sequences in shared
// memory. Rows are interleaved by gate, two gates to a matrix instruction, so that the sums hold all gates of a unit
// and two sequences in one thread.
#pragma once

#include "values.h"

namespace fused_rnn::cuda::cluster {

// The weights of a matrix instruction: 8 rows of a gate and 8 of the next gate, 16 values of K.
using Fragment = Vector<uint32_t, 4>;
// Likewise for a gate that has no next one.
using HalfFragment = Vector<uint32_t, 2>;

#if FUSED_RNN_SM90

FUSED_RNN_DEVICE HalfFragment half(const Fragment& f) { return {f.values[0], f.values[2]}; }
FUSED_RNN_DEVICE Fragment whole(const HalfFragment& f) { return {f.values[0], 0u, f.values[1], 0u}; }
FUSED_RNN_DEVICE Terms<HalfFragment> half(const Terms<Fragment>& f) {
  return {half(f.terms[0]), half(f.terms[1]), half(f.terms[2])};
}
FUSED_RNN_DEVICE Terms<Fragment> whole(const Terms<HalfFragment>& f) {
  return {whole(f.terms[0]), whole(f.terms[1]), whole(f.terms[2])};
}

// The terms of two neighbours in a row of weights with `left` values left, and zeros past its end.
FUSED_RNN_DEVICE Terms<uint32_t> weight_terms(const float* from, int left) {
  return split_pair(left > 0 ? from[0] : 0.0f, left > 1 ? from[1] : 0.0f);
}

// Call put(step, m, fragment) for `count` matrices, from `first` on, and `steps` steps of K. Gates 2m and 2m + 1 of a
// warp's 8 units are the rows of matrix m. row(gate) is the address of the lane's first value, and `left` values of the
// row are left from there on. `pairs`: every second value of a row is aligned to 4 bytes.
template <bool pairs, typename S, int gates, int first, int count, int steps, typename Row, typename F>
FUSED_RNN_DEVICE void load_gates(const Row& row, int left, const F& put) {
  FUSED_RNN_UNROLL
  for (int s = 0; s < steps; ++s) {
    FUSED_RNN_UNROLL
    for (int m = 0; m < count; ++m) {
      InTerms<S, Fragment> f;
      FUSED_RNN_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int gate = 2 * (first + m) + i % 2, k = 16 * s + i / 2 * 8;
        if constexpr (terms_of<S> == 1) {
          f.values[i] = gate < gates ? weight_pair<pairs>(row(gate) + k, left - k) : 0u;
        } else {
          const auto terms = gate < gates ? weight_terms(row(gate) + k, left - k) : Terms<uint32_t>{};
          FUSED_RNN_UNROLL
          for (int term = 0; term < 3; ++term) f.terms[term].values[i] = terms.terms[term];
        }
      }
      put(s, m, f);
    }
  }
}

// Add the product of weights(step, m) and the rows of a state to the sums of `count` matrices and each octet. `rows` is
// the lane's address, and `row` the stride of rows in values. The sums are added up in `chains`, because dependent
// instructions take the time where there is little to multiply.
template <typename S, int count, int octets, int steps, int row, int chains, typename Weights>
FUSED_RNN_DEVICE std::enable_if_t<terms_of<S> == 1> multiply(float (&sums)[count * octets][4], SharedAddress rows,
                                                             const Weights& weights) {
  float more[chains][count * octets][4] = {};  // all chains but the first
  FUSED_RNN_UNROLL
  for (int s = 0; s < steps; s += 2) {
    Fragment a[2][count];
    FUSED_RNN_UNROLL
    for (int i = 0; i < 2 * count; ++i) a[i / count][i % count] = weights(s + i / count, i % count);
    FUSED_RNN_UNROLL
    for (int n = 0; n < octets; ++n) {
      uint32_t b[4];
      load_matrices(b, rows + (n * 8 * row + s * 16) * int{sizeof(S)});
      FUSED_RNN_UNROLL
      for (int m = 0; m < count; ++m) {
        auto& one = s % chains == 0 ? sums : more[s % chains];
        auto& other = (s + 1) % chains == 0 ? sums : more[(s + 1) % chains];
        mma_m16n8k16<S>(one[count * n + m], a[0][m].values, {b[0], b[1]});
        mma_m16n8k16<S>(other[count * n + m], a[1][m].values, {b[2], b[3]});
      }
    }
  }
  FUSED_RNN_UNROLL
  for (int c = 1; c < chains; ++c) {
    FUSED_RNN_UNROLL
    for (int i = 0; i < count * octets; ++i) {
      FUSED_RNN_UNROLL
      for (int j = 0; j < 4; ++j) sums[i][j] += more[c][i][j];
    }
  }
}

// Likewise for floats, whose three accumulators keep enough instructions in flight.
template <typename S, int count, int octets, int steps, int row, int chains, typename Weights>
FUSED_RNN_DEVICE std::enable_if_t<(terms_of<S> > 1)> multiply(float (&sums)[count * octets][4], SharedAddress rows,
                                                              const Weights& weights) {
  constexpr int plane_bytes = octets * 8 * row * int{sizeof(BFloat16)};
  float middle[count * octets][4] = {}, low[count * octets][4] = {};
  FUSED_RNN_UNROLL
  for (int s = 0; s < steps; s += 2) {
    FUSED_RNN_UNROLL
    for (int n = 0; n < octets; ++n) {
      uint32_t b[3][4];
      FUSED_RNN_UNROLL
      for (int term = 0; term < 3; ++term)
        load_matrices(b[term], rows + term * plane_bytes + (n * 8 * row + s * 16) * int{sizeof(BFloat16)});
      FUSED_RNN_UNROLL
      for (int i = 0; i < 2; ++i) {
        const uint32_t halves[3][2] = {
            {b[0][2 * i], b[0][2 * i + 1]}, {b[1][2 * i], b[1][2 * i + 1]}, {b[2][2 * i], b[2][2 * i + 1]}};
        FUSED_RNN_UNROLL
        for (int m = 0; m < count; ++m) {
          const int at = count * n + m;
          mma_terms(sums[at], middle[at], low[at], weights(s + i, m), halves);
        }
      }
    }
  }
  FUSED_RNN_UNROLL
  for (int i = 0; i < count * octets; ++i) {
    FUSED_RNN_UNROLL
    for (int j = 0; j < 4; ++j) sums[i][j] = total_of(sums[i][j], middle[i][j], low[i][j]);
  }
}

#endif

}  // namespace fused_rnn::cuda::cluster

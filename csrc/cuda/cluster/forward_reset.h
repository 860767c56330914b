// The two phases of the reset-before GRU in the forward warp kernel: first its gates and s = r⊙h₋, which is sent as h
// is, and then its candidate and h.
#pragma once

#include "forward.h"

namespace fused_rnn::cuda::cluster {

#if FUSED_RNN_SM90

template <typename Cell, typename S, typename Size>
template <bool plain>
FUSED_RNN_DEVICE bool Forward<Cell, S, Size>::advance_in_two(const ThisTile& tile, int t, bool last) {
  if (group_ == 0) s_.expect(share_);
  float gates[octets][4], candidate[octets][4];
  start<0, 1>(gates);
  start<1, 1>(candidate);
  multiply_u(gates, state_.address());
  if constexpr (of_input) {
    modulator_.wait(share_, [&] {
      poison(gates);
      poison(candidate);
    });
    multiply_x<0, 1>(gates);
    multiply_x<1, 1>(candidate);
  }
  if (shares > 1 && share_ > 0) {
    sums_.give(gates, team_.alive());
  } else {
    if constexpr (shares > 1) sums_.take(gates);
    if constexpr (ring_slots<plain> > 0) ring_.wait();
    FUSED_RNN_UNROLL
    for (int n = 0; n < octets; ++n) make_gates(n, gates[n]);
  }
  s_.wait(share_, [&] { poison(candidate); });
  multiply<S, 1, octets, k_steps, K + 8, Shape::chains>(candidate, s_.address() + row_, [&](int s, int) {
    return whole(s < held_n ? weights_n_[s] : weights_n_in_shared_[(s - held_n) * 32]);
  });
  if constexpr (shares > 1) {
    if (share_ > 0) {
      sums_n_.give(candidate, team_.alive());
      return false;
    }
    sums_n_.take(candidate);
  }
  FUSED_RNN_UNROLL
  for (int n = 0; n < octets; ++n) make_candidate<plain>(tile, n, t, last, candidate[n]);
  return true;
}

// Make the gates of an octet, and s, which is sent as h is.
template <typename Cell, typename S, typename Size>
FUSED_RNN_DEVICE void Forward<Cell, S, Size>::make_gates(int n, const float (&sums)[4]) {
  Pair<S> from_input[4] = {};
  if constexpr (inputs > 0) ring_.load(from_input, n, 0);
  T r[2], z[2], s[2];
  FUSED_RNN_UNROLL
  for (int j = 0; j < 2; ++j) {
    const T wx[2] = {half_of<S, T>(from_input[0], j), half_of<S, T>(from_input[1], j)};
    const T uh[2] = {T(sums[j]), T(sums[2 + j])};
    Cell::forward_gates(wx, uh, T(h_[n][j]), r[j], z[j], s[j]);
    if (!has_unit()) s[j] = T(0.0f);
    z_[n][j] = z[j].value;
  }
  send(s_, n, s[0].value, s[1].value, true);
  put<2>(n, 1, {pair_of<S>(r[0].value, r[1].value), pair_of<S>(z[0].value, z[1].value)});
}

// Make the candidate of an octet, and h.
template <typename Cell, typename S, typename Size>
template <bool plain>
FUSED_RNN_DEVICE void Forward<Cell, S, Size>::make_candidate(const ThisTile& tile, int n, int t, bool last,
                                                             const float (&sums)[4]) {
  Pair<S> from_input[1] = {}, keep[1] = {};
  if constexpr (inputs > 0) ring_.load(from_input, n, G - 1);
  if constexpr (!plain)
    if (a_.keep_h) ring_.load(keep, n, inputs);
  T values[2];
  FUSED_RNN_UNROLL
  for (int j = 0; j < 2; ++j) {
    T h;
    Cell::forward_candidate(half_of<S, T>(from_input[0], j), T(sums[j]), T(z_[n][j]), T(h_[n][j]), values[j], h);
    if constexpr (!plain)
      if (a_.keep_h) h = Zoneout::forward(half_of<S, T>(keep[0], j), T(h_[n][j]), h);
    h_[n][j] = tile.active(n, j, t) && has_unit() ? h.value : h_[n][j];
  }
  send(state_, n, h_[n][0], h_[n][1], !last);
  put<1>(n, Cell::saved, {pair_of<S>(values[0].value, values[1].value)});
}

#endif

}  // namespace fused_rnn::cuda::cluster

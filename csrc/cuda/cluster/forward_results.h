// The results of a step of the forward warp kernel, on their way to memory. In 16-bit types they are stored as rows,
// which pass through matrices in shared memory, one for each result and octet. Floats are stored as single values, and
// stay in registers until then.
#pragma once

#include "forward.h"

namespace fused_rnn::cuda::cluster {

#if FUSED_RNN_SM90

// Put `count` results of two sequences, from result number `result` on.
template <typename Cell, typename S, typename Size>
template <int count>
FUSED_RNN_DEVICE void Forward<Cell, S, Size>::put(int n, int result, const Pair<S> (&pairs)[count]) {
  if constexpr (by_values<S>) {
    FUSED_RNN_UNROLL
    for (int i = 0; i < count; ++i) made_[n][result + i] = pairs[i];
  } else {
    store_matrices_transposed<count>(turned(n, result), pairs);
  }
}

// Put the first result, h, or s in its place, and send it to other blocks in rows.
template <typename Cell, typename S, typename Size>
FUSED_RNN_DEVICE void Forward<Cell, S, Size>::send(const State& state, int n, float first, float second, bool sent) {
  if constexpr (by_values<S>) {
    send_terms(state, first_octet() + n, turned_ + n * Shape::turned * matrix_bytes, lane_, first, second, sent);
    made_[n][0] = {first, second};
  } else {
    store_matrices_transposed<1>(turned(n, 0), {narrow_pair<S>(first, second)});
    __syncwarp();
    if (sent) state.push(first_octet() + n, load_shared<Row<S>>(turned(n, 0) - lane_ / 8 * matrix_bytes));
  }
}

// Store all results of time t. Past the end of a sequence outputs are zero, and nothing is saved.
template <typename Cell, typename S, typename Size>
template <bool plain>
FUSED_RNN_DEVICE void Forward<Cell, S, Size>::store(const ThisTile& tile, int t, Outputs& outputs, Saved& saved) const {
  __syncwarp();
  FUSED_RNN_UNROLL
  for (int n = 0; n < own_octets; ++n) {
    if constexpr (by_values<S>) {
      FUSED_RNN_UNROLL
      for (int j = 0; j < 2; ++j) {
        const bool active = tile.active(n, j, t);
        FUSED_RNN_UNROLL
        for (int i = 0; i < 1 + has_c; ++i) outputs.store(n, j, 0, active ? made_[n][i].values[j] : 0.0f, i);
        if (!active) continue;
        FUSED_RNN_UNROLL
        for (int k = 0; k < Cell::saved; ++k) saved.store(n, j, k * q_.H, made_[n][1 + has_c + k].values[j]);
      }
    } else {
      const bool active = tile.active_row(n, t);
      outputs.template store<plain>(n, turned(n, 0), !active);
      saved.template store_if<plain>(active, n, turned(n, 1 + has_c));
    }
  }
  outputs.advance();
  saved.advance();
  __syncwarp();
}

// Store zeros at times that no sequence of the tile reaches.
template <typename Cell, typename S, typename Size>
template <bool plain>
FUSED_RNN_DEVICE void Forward<Cell, S, Size>::clear_rest(const ThisTile& tile) const {
  Outputs outputs = outputs_from(tile, tile.longest(), 1);
  for (int t = tile.longest(); t < q_.T; ++t, outputs.advance()) {
    FUSED_RNN_UNROLL
    for (int n = 0; n < own_octets; ++n) {
      if constexpr (by_values<S>) {
        FUSED_RNN_UNROLL
        for (int i = 0; i < 2 * (1 + has_c); ++i) outputs.store(n, i % 2, 0, 0.0f, i / 2);
      } else {
        outputs.template store<plain>(n, turned(n, 0), true);
      }
    }
  }
}

// Where rows are stored, lanes 0 to 7 have outputs and lanes 8 to 15 cell states; each 8 lanes have one of the saved
// values.
template <typename Cell, typename S, typename Size>
FUSED_RNN_DEVICE auto Forward<Cell, S, Size>::outputs_from(const ThisTile& tile, int time, int time_step) const
    -> Outputs {
  if constexpr (by_values<S>) {
    const auto units = [&](S* values) { return values ? values + unit_ : nullptr; };
    if constexpr (has_c)
      return {q_, tile, Vector<S*, 2>{units(a_.output), units(a_.cells)}, a_.output, q_.H, columns(), time, time_step};
    else
      return {q_, tile, units(a_.output), a_.output, q_.H, columns(), time, time_step};
  } else {
    S* const values = lane_ < 8 ? a_.output : has_c && lane_ < 16 ? a_.cells : nullptr;
    return {q_, tile, values ? values + unit_ : nullptr, a_.output, q_.H, columns(), time, time_step};
  }
}

template <typename Cell, typename S, typename Size>
FUSED_RNN_DEVICE auto Forward<Cell, S, Size>::saved_from(const ThisTile& tile, int time, int time_step) const -> Saved {
  if constexpr (by_values<S>)
    return {q_,   tile,     a_.saved ? a_.saved + unit_ : nullptr, a_.output, saved_row<Cell>(q_), columns(),
            time, time_step};
  else
    return {q_, tile, saved_of_lane(), a_.output, saved_row<Cell>(q_), columns(), time, time_step};
}

template <typename Cell, typename S, typename Size>
FUSED_RNN_DEVICE S* Forward<Cell, S, Size>::saved_of_lane() const {
  return a_.saved && lane_ / 8 < Cell::saved ? a_.saved + int64_t{lane_ / 8} * q_.H + unit_ : nullptr;
}

#endif

}  // namespace fused_rnn::cuda::cluster

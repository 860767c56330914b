// The list of base cells. The multiplicative modifier of the input combines with any of them.
#pragma once

#include <type_traits>

#include "gru.h"
#include "gru_reset_after.h"
#include "lstm.h"
#include "multiplicative.h"
#include "regularise.h"
#include "rnn.h"

namespace fused_rnn {

enum class CellId { rnn_tanh, rnn_relu, lstm, gru, gru_reset_after };

// The values that forward returns beside output and final state: nothing; the cell states (these and the hidden states,
// which are the output, suffice to recompute the rest); or every other value that backward reads as well.
enum class Save { nothing, states, everything };

// Call f with a value of the cell's type.
template <typename F>
auto dispatch_cell(CellId id, const F& f) {
  switch (id) {
    case CellId::rnn_tanh:
      return f(Rnn<Tanh>());
    case CellId::rnn_relu:
      return f(Rnn<Relu>());
    case CellId::lstm:
      return f(Lstm());
    case CellId::gru:
      return f(Gru());
    case CellId::gru_reset_after:
      return f(GruResetAfter());
  }
  __builtin_unreachable();
}

// Call f with a value of the cell's type and with the operand that the multiplicative modifier scales, as a type, for
// the pairs that have a name: see CELLS in fused_rnn/cells.py.
template <typename F>
auto dispatch_named_cell(CellId id, Modulates modulates, const F& f) {
  using Nothing = std::integral_constant<Modulates, Modulates::nothing>;
  using Input = std::integral_constant<Modulates, Modulates::input>;
  using Hidden = std::integral_constant<Modulates, Modulates::hidden>;
  if (modulates == Modulates::hidden) return f(Lstm(), Hidden());
  if (modulates == Modulates::input) return id == CellId::lstm ? f(Lstm(), Input()) : f(Gru(), Input());
  return dispatch_cell(id, [&](auto cell) { return f(cell, Nothing()); });
}

}  // namespace fused_rnn

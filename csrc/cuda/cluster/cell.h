// A cell as kernels of warps are compiled for it: one of csrc/cells, perhaps with the multiplicative modifier.
#pragma once

#include "../../cells/cells.h"
#include "../device.h"

namespace fused_rnn::cuda::cluster {

// A cell that reads x̂ in place of x, or in place of h₋.
template <typename Cell, Modulates modulates_>
struct Modulated : Cell {
  static constexpr Modulates modulates = modulates_;
};

template <typename Cell>
constexpr Modulates modulates_of = Modulates::nothing;
template <typename Cell, Modulates modulates>
constexpr Modulates modulates_of<Modulated<Cell, modulates>> = modulates;

template <typename Cell>
constexpr bool is_multiplicative = modulates_of<Cell> != Modulates::nothing;

// In place of what a cell does not have.
struct Nothing {
  static constexpr int shared_bytes = 0;
  template <typename... Arguments>
  FUSED_RNN_DEVICE explicit Nothing(Arguments&&...) {}
};

// The exchanges of a step: of x̂, of s = r⊙h₋, of h; backward of their gradients.
template <typename Cell>
constexpr int phases_of = 1 + is_multiplicative<Cell> + Cell::reset_before;

// Columns of what is saved for a step, and of the gradients of its pre-activations: those of units, then those of m.
template <typename Cell, typename Operands>
HOST_DEVICE constexpr int saved_row(const Operands& q) {
  return Cell::saved * q.H + (is_multiplicative<Cell> ? q.I : 0);
}
template <typename Cell, typename Operands>
HOST_DEVICE constexpr int gradients_row(const Operands& q) {
  return Cell::gradients * q.H + (is_multiplicative<Cell> ? q.I : 0);
}

}  // namespace fused_rnn::cuda::cluster

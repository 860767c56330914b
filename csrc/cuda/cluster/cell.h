// A cell as warp kernels are compiled for it: one of csrc/cells, with or without the multiplicative modifier.
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

// Stands in for what a cell does not have.
struct Nothing {
  static constexpr int shared_bytes = 0;
  template <typename... Arguments>
  FUSED_RNN_DEVICE explicit Nothing(Arguments&&...) {}
};

// The number of exchanges in a step: of x̂, of s = r⊙h₋, and of h; in the backward kernel, of their gradients.
template <typename Cell>
constexpr int phases_of = 1 + is_multiplicative<Cell> + Cell::reset_before;

// The columns of what is saved for a step, and of the gradients of its pre-activations: first those of units, then
// those of m.
template <typename Cell, typename Operands>
HOST_DEVICE constexpr int saved_row(const Operands& q) {
  return Cell::saved * q.H + (is_multiplicative<Cell> ? q.I : 0);
}
template <typename Cell, typename Operands>
HOST_DEVICE constexpr int gradients_row(const Operands& q) {
  return Cell::gradients * q.H + (is_multiplicative<Cell> ? q.I : 0);
}

}  // namespace fused_rnn::cuda::cluster

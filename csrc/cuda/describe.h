// What the planner must know of a call, for each direction: its sizes, what a step exchanges and multiplies, and what
// else a block keeps in shared memory. Runs on the host.
#pragma once

#include <algorithm>
#include <array>

#include "shape.h"

namespace fused_rnn::cuda {

// The weights of a product: for each gate, the units (or features) of one part of a team, times the K values of a
// state. The value for (gate, unit, k) is at `offset` + gate * gate_stride + unit * unit_stride + k * k_stride.
struct ProductShape {
  int gates = 0;          // zero if the cell lacks the product
  bool features = false;  // outputs are features in place of units
  int state = 0;          // the state that it reads
  int sums = 0;           // which of the two places takes its sums
  enum class Weight { ih, hh, mhh } weight = Weight::hh;
  int64_t offset = 0, gate_stride = 0, unit_stride = 0, k_stride = 0;
};

struct Description {
  Number number;
  CellShape cell;
  bool forward;
  int64_t B, I, H;
  std::array<int64_t, most_states> k{};  // K of each state; zero if the cell lacks it
  std::array<ProductShape, most_products> products{};
  int carried;             // values per unit that stay in shared memory from step to step
  int staged;              // runs of columns that are fetched a step ahead
  bool staged_features;    // columns of features in place of units
  int biases;              // per unit
  int scaled_biases;       // per feature
  bool sums_side_by_side;  // all sums of a place exist at once; else one product's at a time
  int phases;              // per step
  int values, scaled;      // pre-activations per unit and per feature, or their gradients
  int64_t most_parts;      // more parts would leave strips partly empty

  // The fragments of a product that each warp holds in registers.
  int held(int product) const {
    return forward ? held_fragments(number, cell, static_cast<ForwardProduct>(product))
                   : held_fragments(number, cell, static_cast<BackwardProduct>(product));
  }
  int64_t deepest() const {
    int64_t most = 0;
    for (const int64_t each : k) most = std::max(most, each);
    return most;
  }
};

namespace describing {

// The members that are alike in both directions; the others are zero.
inline Description common(const CellShape& cell, const Number& number, int64_t B, int64_t I, int64_t H) {
  return {.number = number,
          .cell = cell,
          .B = B,
          .I = I,
          .H = H,
          .phases = 1 + cell.reset_before + cell.multiplicative(),
          .scaled = 2 * cell.multiplicative()};
}

template <typename State>
void add_state(Description& d, State state, int64_t k) {
  if (exists(d.cell, state)) d.k[static_cast<int>(state)] = k;
}

template <typename Product, typename State>
void add_product(Description& d, Product product, State state, ProductShape shape) {
  if (!exists(d.cell, product)) return;
  shape.state = static_cast<int>(state);
  d.products[static_cast<int>(product)] = shape;
}

}  // namespace describing

inline Description describe_forward(const CellShape& cell, const Number& number, int64_t B, int64_t I, int64_t H) {
  using State = ForwardState;
  using Product = ForwardProduct;
  using Weight = ProductShape::Weight;
  using describing::add_product, describing::add_state;
  Description d = describing::common(cell, number, B, I, H);
  d.forward = true;
  d.carried = 1 + cell.has_cell_state + cell.reset_before;
  d.staged = forward_staged(cell);
  d.staged_features = cell.of_input();
  d.biases = 2 * cell.gates;
  d.scaled_biases = cell.multiplicative();
  d.values = cell.gates;
  d.most_parts = divide_up(H, divide_up(fragment_outputs, cell.gates));
  add_state(d, State::h, H);
  add_state(d, State::s, H);
  add_state(d, State::x_hat, I);
  add_product(d, Product::recurrent, cell.of_hidden() ? State::x_hat : State::h,
              {.gates = cell.reset_before ? 2 : cell.gates, .gate_stride = H * H, .unit_stride = H, .k_stride = 1});
  add_product(d, Product::candidate, State::s, {.gates = 1, .offset = 2 * H * H, .unit_stride = H, .k_stride = 1});
  add_product(
      d, Product::input, State::x_hat,
      {.gates = cell.gates, .sums = 1, .weight = Weight::ih, .gate_stride = H * I, .unit_stride = I, .k_stride = 1});
  add_product(d, Product::modulation, State::h,
              {.gates = 1, .features = true, .weight = Weight::mhh, .unit_stride = H, .k_stride = 1});
  return d;
}

inline Description describe_backward(const CellShape& cell, const Number& number, int64_t B, int64_t I, int64_t H) {
  using State = BackwardState;
  using Product = BackwardProduct;
  using Weight = ProductShape::Weight;
  using describing::add_product, describing::add_state;
  Description d = describing::common(cell, number, B, I, H);
  d.carried = 1 + cell.has_cell_state;
  d.staged = backward_staged(cell);
  d.sums_side_by_side = true;
  d.values = cell.gradients;
  d.most_parts = divide_up(H, fragment_outputs);
  add_state(d, State::gates, cell.gates_together() * H);
  add_state(d, State::n, H);
  add_state(d, State::q, H);
  add_state(d, State::m, I);
  const Weight through_x = cell.of_hidden() ? Weight::hh : Weight::ih;
  add_product(d, Product::recurrent, State::gates, {.gates = 1, .unit_stride = 1, .k_stride = H});
  add_product(d, Product::recurrent_n, cell.has_q() ? State::q : State::n,
              {.gates = 1, .offset = 2 * H * H, .unit_stride = 1, .k_stride = H});
  add_product(d, Product::input, State::gates,
              {.gates = 1, .features = true, .sums = 1, .weight = through_x, .unit_stride = 1, .k_stride = I});
  add_product(d, Product::input_n, State::n,
              {.gates = 1,
               .features = true,
               .sums = 1,
               .weight = through_x,
               .offset = 2 * H * I,
               .unit_stride = 1,
               .k_stride = I});
  add_product(d, Product::modulation, State::m, {.gates = 1, .weight = Weight::mhh, .unit_stride = 1, .k_stride = H});
  return d;
}

}  // namespace fused_rnn::cuda

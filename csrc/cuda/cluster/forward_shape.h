// The shape of the forward warp kernel for a cell, type and size: its products, and where their weights stay.
#pragma once

#include "product.h"
#include "size.h"

namespace fused_rnn::cuda::cluster {

// How many of `most` steps of K have their weights in `room` registers. A step takes `registers`, and products take
// steps in pairs.
constexpr int steps_that_fit(int room, int most, int registers) {
  const int steps = room < 0 ? 0 : room / (2 * registers) * 2;
  return steps < most ? steps : most;
}

template <typename Cell, typename S, typename Size>
struct ForwardShape {
  static constexpr bool of_input = modulates_of<Cell> == Modulates::input, reset_before = Cell::reset_before;
  static constexpr int G = Cell::gates, matrices = (G + 1) / 2, own_k = Size::K / Size::shares, k_steps = own_k / 16;
  static constexpr int warps = Size::groups * Size::shares, threads = 32 * warps;
  // If two shares of K multiply two octets, each runs the cell for one octet and they trade sums. Otherwise the first
  // share runs it for all.
  static constexpr bool trades =
      Size::shares == 2 && Size::octets == 2 && phases_of<Cell> == 1 && Size::Exchange::id == ExchangeId::cluster;
  static constexpr int own_octets = trades ? 1 : Size::octets, cell_warps = trades ? warps : Size::groups;
  // Matrices of U that multiply h₋, or x̂ in its place; the last one of the reset-before GRU waits for s.
  static constexpr int recurrent = reset_before ? 1 : matrices;
  static constexpr int x_steps = of_input ? Size::features / Size::shares / 16 : 0;  // steps of K in W x̂
  // Warps of the block that share the product U_m h₋ for 8 features.
  static constexpr int splits = Size::features > 0 ? warps / Size::feature_groups : 1;
  static constexpr int m_steps = Size::features > 0 ? Size::K / splits / 16 : 0;
  static_assert(Size::features == 0 || (Size::groups % Size::feature_groups == 0 && m_steps % 2 == 0),
                "warps share the product U_m h₋ within their share of K, 32 at a time");

  // Chains of sums in a product of one matrix with the octets. Where warps are few, the instructions of others do not
  // fill the time that each waits for the one before, and chains do; where a product is long, it lacks registers for
  // them.
  static constexpr int chains = Size::octets > 1 ? 1 : warps > 8 || k_steps > 16 || phases_of<Cell> > 2 ? 2 : 4;

  // Registers. Besides weights, a thread has sums, carried states, biases and addresses; cells of several phases need
  // more, as many as nvcc 13.0 was seen to take. The weights of W and U_m stay in registers in any case, then come
  // those of U_n, then those of U. The rest is in shared memory, if that has room.
  static constexpr int one_octet_of = Size::octets == 1 ? Size::K : 0;
  static constexpr int terms = terms_of<S>, phases = phases_of<Cell>;
  static constexpr int for_phases = phases == 1    ? 0
                                    : of_input     ? (one_octet_of > 384 ? 48 : 28) + 40 * (phases - 1)
                                    : reset_before ? (warps > 8 ? 40 : 56)
                                                   : (one_octet_of > 256 ? 100 : 74);
  static constexpr int for_phases_of_terms = phases == 1    ? 0
                                             : of_input     ? 20 + 8 * phases
                                             : reset_before ? (k_steps > 4 ? 40 : 10)
                                                            : 64;
  static constexpr int others = terms == 1 ? 64 + 16 * Size::octets + for_phases + Size::Exchange::registers
                                           : 130 + 14 * Size::octets + for_phases_of_terms;
  static constexpr int u_registers = terms * 4 * k_steps * recurrent,
                       n_registers = reset_before ? terms * 2 * k_steps : 0,
                       always = terms * 2 * (x_steps * G + m_steps);
  static constexpr int most_in_shared = 144 * 1024 / (4 * threads);  // registers of a thread that this can replace
  static constexpr int wanted = registers_of(threads) - others - always,
                       needed = reset_before ? u_registers + n_registers - most_in_shared : 0,
                       room = wanted > needed ? wanted : needed;
  static constexpr int held_n = steps_that_fit(room, reset_before ? k_steps : 0, terms * 2);  // steps of K
  static constexpr int held = steps_that_fit(room - terms * 2 * held_n, k_steps, terms * 4 * recurrent);
  static constexpr int inputs = of_input ? 0 : G;                  // for W x
  static constexpr int slots = inputs + 1 + Cell::has_cell_state;  // and for keep_h and keep_c of zoneout
  // Steps that are fetched ahead: fewer where weights and states need the memory.
  static constexpr int stages = Size::K > 512 || (terms > 1 && Size::K * Size::octets > 256) ? 4 : 6;
  static constexpr int results = 1 + Cell::has_cell_state + Cell::saved;  // h, c, and what backward reads
  static constexpr int u_bytes = warps * terms * (k_steps - held) * recurrent * fragment_bytes,
                       n_bytes = warps * (n_registers - terms * 2 * held_n) / 2 * fragment_bytes / 2,
                       weight_bytes = u_bytes + n_bytes;
  // Matrices of an octet that pass through shared memory: results, or the terms of a state.
  static constexpr int turned = by_values<S> ? terms : results;
  static constexpr int turned_bytes = own_octets * turned * matrix_bytes;  // per warp

  // Whether an SM has room.
  static constexpr bool fits = phases == 1 || (wanted >= 0 && weight_bytes <= 152 * 1024 &&
                                               (terms == 1 || Size::octets == 1 || !is_multiplicative<Cell>));

  // Figures for the plan.
  static constexpr int held_registers = terms * (4 * held * recurrent + 2 * held_n) + always;
  static constexpr int held_fragments = held_registers / 4, resident_fragments = weight_bytes / fragment_bytes / warps;
  static constexpr int received_bytes =
      ((1 + reset_before) * Size::K + Size::features) * 8 * Size::octets * terms * int{sizeof(Term<S>)};
  static constexpr int64_t places_bytes =
      Size::Exchange::state_places(terms * Size::K * 8 * Size::octets, int{sizeof(Term<S>)});
};

}  // namespace fused_rnn::cuda::cluster

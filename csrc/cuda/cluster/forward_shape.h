// What the forward kernels of warps are compiled for: which products a cell has, and where their weights stay.
#pragma once

#include "product.h"
#include "size.h"

namespace fused_rnn::cuda::cluster {

template <typename Cell, typename S, typename Size>
struct ForwardShape {
  static constexpr bool of_input = modulates_of<Cell> == Modulates::input, reset_before = Cell::reset_before;
  static constexpr int G = Cell::gates, matrices = (G + 1) / 2, own_k = Size::K / Size::shares, k_steps = own_k / 16;
  static constexpr int warps = Size::groups * Size::shares, threads = 32 * warps;
  // Matrices that U multiplies with h₋, or with x̂ in its place; the last of the reset-before GRU waits for s.
  static constexpr int recurrent = reset_before ? 1 : matrices;
  static constexpr int x_steps = of_input ? Size::features / Size::shares / 16 : 0;  // of W x̂
  // The product U_m h₋ of 8 features is shared by so many warps of the block.
  static constexpr int splits = Size::features > 0 ? warps / Size::feature_groups : 1;
  static constexpr int m_steps = Size::features > 0 ? Size::K / splits / 16 : 0;
  static_assert(Size::features == 0 || (Size::groups % Size::feature_groups == 0 && m_steps % 2 == 0),
                "warps share the product U_m h₋ within their share of K, 32 at a time");

  // Registers: weights of those products that others wait for, which all stay there; beside weights sums, carried
  // states, biases, addresses.
  static constexpr int always = 2 * (x_steps * G + (reset_before ? k_steps : 0) + m_steps);
  static constexpr int others = 64 + 16 * Size::octets + (Size::features > 0 ? 24 : 0);
  static constexpr int room = held_of(k_steps * recurrent, threads, others + always) / (2 * recurrent) * 2;
  static constexpr int held = room > 0 ? room : 0;                        // steps of K of U
  static constexpr int inputs = of_input ? 0 : G;                         // W x
  static constexpr int slots = inputs + 1 + Cell::has_cell_state;         // and what zoneout keeps of h and c
  static constexpr int results = 1 + Cell::has_cell_state + Cell::saved;  // h, c, and what backward reads
  static constexpr int weight_bytes = warps * (k_steps - held) * recurrent * fragment_bytes;
  static constexpr int turned_bytes = Size::octets * results * matrix_bytes;  // of a warp

  // Whether a multiprocessor has room.
  static constexpr bool fits = registers_of(threads) >= others + always && weight_bytes <= 176 * 1024;

  // For the plan.
  static constexpr int held_registers = 4 * held * recurrent + always;
  static constexpr int held_fragments = held_registers / 4, resident_fragments = (k_steps - held) * recurrent;
  static constexpr int received_bytes =
      ((1 + reset_before) * Size::K + Size::features) * 8 * Size::octets * int{sizeof(S)};
};

}  // namespace fused_rnn::cuda::cluster

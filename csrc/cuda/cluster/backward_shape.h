// The shape of the backward warp kernel for a cell, type and size: its products, its jobs, and where everything lies in
// shared memory.
#pragma once

#include "size.h"
#include "values.h"

namespace fused_rnn::cuda::cluster {

// A warp's fragments of the weights of a product, each with all its terms: `tiles` of 16 outputs times `steps` of 16
// values of K. `held` of them are in registers, the rest in shared memory.
struct WarpProduct {
  int tiles = 0, steps = 0, held = 0;
  constexpr int fragments() const { return tiles * steps; }
};

// The products of a step:
//   candidate   U_nᵀ, makes δs of the reset-before GRU
//   features    Wᵀ, or Uᵀ where h₋ is modulated, makes δx̂
//   modulation  U_mᵀ, makes a part of δh₋
//   recurrent   the rest of Uᵀ, makes the other part
//   update      its columns for z, which are apart where they fill the time of an exchange
struct BackwardProducts {
  WarpProduct candidate, features, modulation, recurrent, update;

  constexpr int fragments() const {
    return candidate.fragments() + features.fragments() + modulation.fragments() + recurrent.fragments() +
           update.fragments();
  }
  constexpr int held() const { return candidate.held + features.held + modulation.held + recurrent.held + update.held; }
  // The same with up to `room` fragments in registers: first those of products that others wait for, last those that
  // fill the time.
  constexpr BackwardProducts holding(int room) const {
    BackwardProducts result = *this;
    for (WarpProduct* product :
         {&result.candidate, &result.features, &result.modulation, &result.recurrent, &result.update}) {
      product->held = room < product->fragments() ? room : product->fragments();
      room -= product->held;
    }
    return result;
  }
};

template <typename Cell, typename S, typename Size>
struct BackwardShape {
  static constexpr int gates = Cell::gates, gradients = Cell::gradients, phases = phases_of<Cell>;
  static constexpr bool multiplicative = is_multiplicative<Cell>, reset_before = Cell::reset_before,
                        of_hidden = modulates_of<Cell> == Modulates::hidden;
  static constexpr int terms = terms_of<S>;  // terms of a number in the operand and in weights
  // The type in which partial sums travel. Rounded to bfloat16, they leave δ and δh_0 as far from float64 as floats do
  // over 1024 steps, because what is saved in bfloat16 decides.
  using Travelling = std::conditional_t<std::is_same_v<S, BFloat16>, BFloat16, float>;
  // Products have tiles of 16 outputs, of which each warp has the same number. Of those of x̂ some warps may have none.
  static constexpr int tiles = Size::K / 16, warps = divisor_up_to(8, tiles), own_tiles = tiles / warps,
                       threads = 32 * warps;
  static constexpr int feature_tiles = Size::features / 16,
                       feature_warps = multiplicative ? divisor_up_to(warps, feature_tiles) : 0,
                       own_feature_tiles = multiplicative ? feature_tiles / feature_warps : 0;
  // The columns of the operand: the gradients of the gates, one for each unit, with zeros up to a multiple of 32 where
  // all are multiplied at once; then what only the result has; then those of m; then those of the input.
  static constexpr int of_gates =
      phases > 1 ? gates * Size::units : static_cast<int>(round_up(gates * Size::units, 32));
  static constexpr int m_at = of_gates + (gradients - gates) * Size::units;
  static constexpr int stride = m_at + 2 * Size::own_features + 8;  // padding against bank conflicts
  // One operand is enough if a step has several phases, see Backward::hand_back. It has a plane for each term.
  static constexpr int operands = phases > 1 ? 1 : 2, plane_bytes = 8 * Size::octets * stride * int{sizeof(Term<S>)},
                       operand_bytes = terms * plane_bytes;
  // The pointwise part: jobs of 8 units or 8 features and 8 sequences, of which a warp has some.
  static constexpr int unit_jobs = Size::groups * Size::octets, feature_jobs = Size::feature_groups * Size::octets,
                       jobs = unit_jobs + feature_jobs, own_jobs = static_cast<int>(divide_up(jobs, warps));
  // What a job reads in a step, as slots of its ring.
  static constexpr bool has_before = Cell::has_cell_state || Cell::bypasses_product;  // the cell reads c₋ or h₋
  static constexpr int d_output_at = Cell::saved, keep_h_at = d_output_at + 1, d_cells_at = keep_h_at + 1,
                       before_at = d_cells_at + Cell::has_cell_state, keep_c_at = before_at + has_before,
                       slots = keep_c_at + Cell::has_cell_state;
  // Stages of the ring, fewer where weights need the memory and steps take long.
  static constexpr int stages = Size::K > 512 || phases > 1 || (terms > 1 && Size::K * Size::octets > 256) ? 3 : 6;

  static constexpr int of_units = Size::units / 16;  // steps of K over a block's units
  static constexpr BackwardProducts all = {
      .candidate = {own_tiles, reset_before ? of_units : 0},
      .features = {own_feature_tiles, gates * of_units},
      .modulation = {own_tiles, Size::own_features / 16},
      .recurrent = {own_tiles, phases == 1 ? of_gates / 16
                               : of_hidden ? 0
                                           : (reset_before ? 1 : gates) * of_units},
      .update = {own_tiles, reset_before ? of_units : 0}};
  // Registers besides weights: sums of a product, or what the pointwise part reads; carried gradients; addresses.
  // Floats have three sums each, besides those of the phase before and a step of the operand, and a job has an address
  // for each slot.
  static constexpr int of_terms = 12 * (own_tiles + (phases > 2 ? 2 : 1)) * Size::octets;
  static constexpr int others =
      terms == 1 ? 52 + 4 * own_tiles * Size::octets + 40 * own_jobs
                 : (Size::octets > 1 && own_tiles > 1 ? 36 : 48) + of_terms + (20 + 4 * slots) * own_jobs;
  static constexpr BackwardProducts products = all.holding(held_of(terms * all.fragments(), threads, others) / terms);
  // Tiles that are multiplied together: if weights come from shared memory, so few that sums leave registers for them.
  static constexpr int together = phases > 1 || products.held() == all.fragments() || own_tiles <= 4
                                      ? own_tiles
                                      : divisor_up_to(3, own_tiles);

  // Offsets in shared memory, in bytes: partial sums, the operand, weights that registers do not hold, rings of jobs.
  static constexpr int sums_bytes(int outputs) {
    return Size::Exchange::sums_bytes(Size::blocks, outputs * 8 * Size::octets, int{sizeof(Travelling)}, warps);
  }
  static constexpr int bytes_of(const WarpProduct& p) {
    return warps * terms * (p.fragments() - p.held) * fragment_bytes;
  }
  static constexpr int unit_sums_bytes = sums_bytes(Size::units),
                       feature_sums_bytes = multiplicative ? sums_bytes(Size::own_features) : 0,
                       ring_bytes = stages * slots * 8 * 8 * int{sizeof(S)};
  static constexpr int reset_sums_at = unit_sums_bytes,
                       feature_sums_at = reset_sums_at + reset_before * unit_sums_bytes,
                       operand_at = feature_sums_at + feature_sums_bytes,
                       recurrent_at = operand_at + operands * operand_bytes,
                       update_at = recurrent_at + bytes_of(products.recurrent),
                       candidate_at = update_at + bytes_of(products.update),
                       features_at = candidate_at + bytes_of(products.candidate),
                       modulation_at = features_at + bytes_of(products.features),
                       rings_at = modulation_at + bytes_of(products.modulation),
                       shared_bytes = rings_at + jobs * ring_bytes;

  // Figures for the plan.
  static constexpr int own_octets = static_cast<int>(divide_up(unit_jobs, warps) / divide_up(Size::groups, warps));
  static constexpr int held_fragments = terms * products.held(),
                       resident_fragments = terms * all.fragments() - held_fragments,
                       held_registers = 4 * held_fragments;
  static constexpr int received_bytes =
      (Size::K * (1 + reset_before) + Size::features) * 8 * Size::octets * int{sizeof(Travelling)};
  static constexpr int64_t places_bytes =
      Size::Exchange::sums_places(Size::blocks, Size::units * 8 * Size::octets, int{sizeof(Travelling)});
  static constexpr bool fits = (phases == 1 && terms == 1) || shared_bytes <= most_shared_bytes;
};

}  // namespace fused_rnn::cuda::cluster

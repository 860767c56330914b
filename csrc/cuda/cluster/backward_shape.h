// What the backward kernel of warps is made of, in numbers that follow from the cell and the size: products, jobs, and
// where everything stands in shared memory.
#pragma once

#include "size.h"
#include "values.h"

namespace fused_rnn::cuda::cluster {

// Fragments of the weights of a product, of a warp, each with all its terms: for `tiles` of 16 outputs `steps` of 16
// values that these sum over; so many of them in registers, and the rest in shared memory.
struct WarpProduct {
  int tiles = 0, steps = 0, held = 0;
  constexpr int fragments() const { return tiles * steps; }
};

// The products of a step. U_nᵀ makes δs of a cell whose reset gate acts before; Wᵀ, or Uᵀ where it takes the place of
// h₋, makes δx̂; U_mᵀ and the rest of Uᵀ make δh₋. The columns for z are apart where they fill the time of an exchange.
struct BackwardProducts {
  WarpProduct candidate, features, modulation, recurrent, update;

  constexpr int fragments() const {
    return candidate.fragments() + features.fragments() + modulation.fragments() + recurrent.fragments() +
           update.fragments();
  }
  constexpr int held() const { return candidate.held + features.held + modulation.held + recurrent.held + update.held; }
  // With so many in registers: first those that others wait for, last those that fill the time.
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
  static constexpr int terms = terms_of<S>;  // of the operand and of weights
  // As what partial sums travel. Rounded to bfloat16 they leave δ and δh_0 as far from float64 as floats do over 1024
  // steps, for what is saved in bfloat16 is what decides.
  using Travelling = std::conditional_t<std::is_same_v<S, BFloat16>, BFloat16, float>;
  // Products: tiles of 16 outputs, of which all warps have as many, and what these sum over. Of x̂ some warps may have
  // none.
  static constexpr int tiles = Size::K / 16, warps = divisor_up_to(8, tiles), own_tiles = tiles / warps,
                       threads = 32 * warps;
  static constexpr int feature_tiles = Size::features / 16,
                       feature_warps = multiplicative ? divisor_up_to(warps, feature_tiles) : 0,
                       own_feature_tiles = multiplicative ? feature_tiles / feature_warps : 0;
  // Columns of the operand: gradients of the gates, as many of each as there are units, and zeros to a multiple of 32
  // where all are multiplied at once; then what only the result has; those of m, then those of the input.
  static constexpr int of_gates =
      phases > 1 ? gates * Size::units : static_cast<int>(round_up(gates * Size::units, 32));
  static constexpr int m_at = of_gates + (gradients - gates) * Size::units;
  static constexpr int stride = m_at + 2 * Size::own_features + 8;  // rows start in different banks
  // One operand is enough where a step has several phases, see Backward. It has a plane for each term.
  static constexpr int operands = phases > 1 ? 1 : 2, plane_bytes = 8 * Size::octets * stride * int{sizeof(Term<S>)},
                       operand_bytes = terms * plane_bytes;
  // The pointwise part: jobs of 8 units or 8 features and 8 sequences, of which a warp has some.
  static constexpr int unit_jobs = Size::groups * Size::octets, feature_jobs = Size::feature_groups * Size::octets,
                       jobs = unit_jobs + feature_jobs, own_jobs = static_cast<int>(divide_up(jobs, warps));
  // What a job reads of a step.
  static constexpr bool has_before = Cell::has_cell_state || Cell::bypasses_product;  // it reads c₋ or h₋
  static constexpr int d_output_at = Cell::saved, keep_h_at = d_output_at + 1, d_cells_at = keep_h_at + 1,
                       before_at = d_cells_at + Cell::has_cell_state, keep_c_at = before_at + has_before,
                       slots = keep_c_at + Cell::has_cell_state;
  // Fewer stages where weights want the memory and steps take long.
  static constexpr int stages = Size::K > 512 || phases > 1 || (terms > 1 && Size::K * Size::octets > 256) ? 3 : 6;

  static constexpr int of_units = Size::units / 16;  // steps of a product
  static constexpr BackwardProducts all = {
      .candidate = {own_tiles, reset_before ? of_units : 0},
      .features = {own_feature_tiles, gates * of_units},
      .modulation = {own_tiles, Size::own_features / 16},
      .recurrent = {own_tiles, phases == 1 ? of_gates / 16
                               : of_hidden ? 0
                                           : (reset_before ? 1 : gates) * of_units},
      .update = {own_tiles, reset_before ? of_units : 0}};
  // beside weights: sums of a product, or what the pointwise part reads; carried gradients, addresses. Of floats the
  // sums are three, beside those of the phase before, and a step of the operand, and a job has an address for each
  // slot.
  static constexpr int of_terms = 12 * (own_tiles + (phases > 2 ? 2 : 1)) * Size::octets;
  static constexpr int others =
      terms == 1 ? 52 + 4 * own_tiles * Size::octets + 40 * own_jobs
                 : (Size::octets > 1 && own_tiles > 1 ? 36 : 48) + of_terms + (20 + 4 * slots) * own_jobs;
  static constexpr BackwardProducts products = all.holding(held_of(terms * all.fragments(), threads, others) / terms);
  // Tiles that are multiplied together: where weights come from shared memory so few that sums leave room for them.
  static constexpr int together = phases > 1 || products.held() == all.fragments() || own_tiles <= 4
                                      ? own_tiles
                                      : divisor_up_to(3, own_tiles);

  // Places in shared memory, in bytes: of partial sums, the operand, weights that registers do not hold, jobs' rows.
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

  // for the plan
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

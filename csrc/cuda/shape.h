// What the host plans and the kernels follow: the shape of a cell's kernel, the names of its states and products, and
// the layout of a division, which has offsets and no addresses. Nothing here needs CUDA.
//
// Words: a *team* of blocks runs a *tile* of sequences at a time, and its blocks, the team's *parts*, share the units.
// K is what a product sums over. Weights come in *fragments* of 16 outputs x 64 values of K; the fragments of the same
// outputs are a *strip*. *Splits* are the shares of K that different warps sum. A tile consists of *octets*, the 8
// sequences that a matrix instruction takes. A state that blocks exchange comes to shared memory in *segments* of K.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../cells/cells.h"
#include "../cells/types.h"
#include "division.h"

namespace fused_rnn::cuda {

// The threads of a block, and the 4-byte registers of a thread that may hold weights. Tests on the host set them low.
#ifndef FUSED_RNN_THREADS
#  define FUSED_RNN_THREADS 256
#endif
#ifndef FUSED_RNN_WEIGHT_REGISTERS
#  define FUSED_RNN_WEIGHT_REGISTERS 128
#endif

constexpr int threads = FUSED_RNN_THREADS, warps = threads / 32;
constexpr int fragment_outputs = 16, fragment_k = 64, octet = 8;
constexpr int fragment_size = fragment_outputs * fragment_k, lane_values = fragment_size / 32;

HOST_DEVICE constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
HOST_DEVICE constexpr int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }

// Types -------------------------------------------------------------------------------------------------------------

template <typename S>
constexpr bool on_tensor_cores = std::is_same_v<S, BFloat16> || std::is_same_v<S, Half>;

// The type of sums and of carried states.
template <typename S>
using Computed = std::conditional_t<std::is_same_v<S, double>, double, float>;

// What a layout must know of a tensor type: the bytes of a value in memory, and of one in computations.
struct Number {
  int bytes, computed_bytes;
  bool on_tensor_cores;
};

template <typename S>
constexpr Number number_of{sizeof(S), sizeof(Computed<S>), on_tensor_cores<S>};

// The fragments that a warp holds in registers for the nth product of a kernel: as many as the compiler can hold
// without spills. A kernel with many products needs more registers for itself, and multiply-adds need more than matrix
// instructions; float64 is not tuned for speed.
constexpr int held_fragments(const Number& number, int products, int nth) {
  const int full = FUSED_RNN_WEIGHT_REGISTERS * 4 / (lane_values * number.bytes);
  const int most = number.bytes == 8 ? 0 : number.on_tensor_cores ? full : full / 2;
  const int fragments = products > 2 ? most / 2 : most;
  return (fragments + products - 1 - nth) / products;
}

// The values of a segment of a state for a tile. In 16-bit types 16 bytes lie between rows, to avoid bank conflicts.
HOST_DEVICE constexpr int state_size(bool on_tensor_cores, int sequences, int k) {
  return on_tensor_cores ? sequences * (k + 8) : sequences * k;
}

// The stride in values of rows in shared memory that begin at multiples of 16 bytes.
HOST_DEVICE constexpr int staged_stride(int bytes, int columns) {
  return static_cast<int>(round_up(columns, 16 / bytes));
}

HOST_DEVICE constexpr int sums_stride(int outputs) {  // 4 modulo 16, against bank conflicts
  return static_cast<int>(round_up(outputs, fragment_outputs)) + 4;
}

// Cells -------------------------------------------------------------------------------------------------------------

// What the planner and the kernels must know of a cell besides its equations. A multiplicative modifier changes what
// the library projects before the loop, and what the kernels multiply:
//   plain cells                    W x before, then U h₋
//   x modulated, x̂ = m⊙x           W_m x before, then U_m h₋, W x̂ and U h₋
//   h₋ modulated (Krause's mLSTM)  W x and W_m x before, then U_m h₋ and U x̂
struct CellShape {
  int gates, saved, gradients;
  bool has_cell_state, reset_before, bypasses_product, n_apart;
  Modulates modulates;

  constexpr bool multiplicative() const { return modulates != Modulates::nothing; }
  constexpr bool of_input() const { return modulates == Modulates::input; }
  constexpr bool of_hidden() const { return modulates == Modulates::hidden; }
  // The gates whose gradients one product reads side by side; and whether U_n reads δq, where W_n reads δa_n.
  constexpr int gates_together() const { return n_apart ? 2 : gates; }
  constexpr bool has_q() const { return n_apart && !reset_before; }
};

template <typename Cell, Modulates modulates_>
constexpr CellShape shape_of{.gates = Cell::gates,
                             .saved = Cell::saved,
                             .gradients = Cell::gradients,
                             .has_cell_state = Cell::has_cell_state,
                             .reset_before = Cell::reset_before,
                             .bypasses_product = Cell::bypasses_product,
                             .n_apart = Cell::n_apart,
                             .modulates = modulates_};

// The states that forward products read: h₋; s = r⊙h₋ in the reset-before GRU; x̂ in multiplicative cells.
enum class ForwardState { h, s, x_hat };

// The products of the forward kernel. `recurrent` is U h₋, or U x̂ where h₋ is modulated; in the reset-before GRU it has
// only the rows of r and z, and `candidate` is U_n s. `input` is W x̂, and `modulation` is U_m h₋.
enum class ForwardProduct { recurrent, candidate, input, modulation, count };

// The gradients that backward products read: `gates` are those of all gates, without n where n is apart; `n` is δa_n;
// `q` is δq, which U_n reads in place of δa_n in the reset-after GRU; `m` is δm.
enum class BackwardState { gates, n, q, m };

// The products of the backward kernel. `recurrent` is Uᵀ and `input` Wᵀ; where their columns for n have an operand of
// their own, they are products of their own, `recurrent_n` and `input_n`. `modulation` is U_mᵀ. Where h₋ is modulated,
// `input` is Uᵀ, and there is no `recurrent`.
enum class BackwardProduct { recurrent, recurrent_n, input, input_n, modulation, count };

constexpr int most_states = 4, most_products = 5;

constexpr bool exists(const CellShape& cell, ForwardState state) {
  return state == ForwardState::h || (state == ForwardState::s ? cell.reset_before : cell.multiplicative());
}
constexpr bool exists(const CellShape& cell, ForwardProduct product) {
  return product == ForwardProduct::recurrent || (product == ForwardProduct::candidate ? cell.reset_before
                                                  : product == ForwardProduct::input   ? cell.of_input()
                                                                                       : cell.multiplicative());
}
constexpr bool exists(const CellShape& cell, BackwardState state) {
  return state == BackwardState::gates ||
         (state == BackwardState::n   ? cell.reset_before || (cell.n_apart && cell.multiplicative())
          : state == BackwardState::q ? cell.has_q()
                                      : cell.multiplicative());
}
constexpr bool exists(const CellShape& cell, BackwardProduct product) {
  return product == BackwardProduct::recurrent     ? !cell.of_hidden()
         : product == BackwardProduct::recurrent_n ? cell.n_apart
         : product == BackwardProduct::input_n     ? cell.n_apart && cell.multiplicative()
                                                   : cell.multiplicative();
}

// The fragments of a product that each warp holds in registers. The first products come first, here as in shared
// memory.
template <typename Product>
constexpr int held_fragments(const Number& number, const CellShape& cell, Product product) {
  int count = 0, before = 0;
  for (int p = 0; p < static_cast<int>(Product::count); ++p) {
    if (!exists(cell, static_cast<Product>(p))) continue;
    ++count;
    before += p < static_cast<int>(product);
  }
  return held_fragments(number, count, before);
}

// The runs of columns that the forward kernel fetches a step ahead: what was projected (see CellShape), a run for each
// gate of W x, and x where it is modulated.
constexpr int forward_staged(const CellShape& cell) { return cell.of_input() ? 2 : cell.gates + cell.of_hidden(); }

// Likewise in the backward kernel: the saved values, δ output, h₋, c₋ and δc. Cells with a cell state do not read h₋,
// and have c in its place.
constexpr int backward_staged(const CellShape& cell) { return cell.saved + 3 + cell.has_cell_state; }

// Layouts -----------------------------------------------------------------------------------------------------------

// A state that products read: K values of each sequence, in segments of `span`, a multiple of fragment_k.
struct StateLayout {
  int k, span, segments;
  int size;           // values per segment
  int local;          // byte offset in shared memory, for exchanges that keep the whole state there
  int64_t exchanged;  // byte offset in the workspace, for exchanges that go through memory
};

// A product of a block; its outputs are those of one part of a team.
struct ProductLayout {
  int outputs;
  int strips, k_fragments;  // weights, in fragments
  int span_fragments;       // per segment of the state
  int groups, splits;       // warps: group g has strips g, g + groups, ...; each split sums a share of K
  int resident;             // fragments per warp in shared memory
  int shared;               // byte offset of these
  int64_t packed;           // byte offset in the workspace: [parts, strips, k_fragments] fragments
};

struct Layout {
  Division division;                             // as laid out, without zeros
  int teams, units, features;                    // units and features: the most that a part has
  int limits, carried, staged, biases, fetched;  // byte offsets in shared memory
  int sums[2];                                   // likewise: the two places for sums, the second for `input` products
  int64_t cleared, arrivals, failed;             // byte offsets in the workspace, which is zeroed from `cleared` on
  StateLayout states[most_states];               // by ForwardState or BackwardState
  ProductLayout products[most_products];         // by ForwardProduct or BackwardProduct
  int64_t shared_bytes, workspace_bytes;         // per block, per call

  int64_t blocks() const { return int64_t{teams} * division.parts; }
};

}  // namespace fused_rnn::cuda

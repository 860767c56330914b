// What the host plans and the kernels follow: the shape of a cell's kernel, with the names of its states and products,
// and the layout of a division, in numbers without addresses. Nothing here needs CUDA.
//
// Words: a *team* of blocks runs a *tile* of sequences at a time, and its blocks, the team's *parts*, share the units.
// K is what a product sums over. Weights come in *fragments* of 16 outputs x 64 values of K; the fragments of the same
// outputs are a *strip*. *Splits* are the shares of K that warps sum apart. A tile is made of *octets*, the 8 sequences
// that a matrix instruction takes. A state that blocks exchange comes to shared memory in *segments* of K.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../cells/cells.h"
#include "../cells/types.h"
#include "division.h"

namespace fused_rnn::cuda {

// Threads of a block, and 4-byte registers of each that may hold weights. Tests on the host make them few.
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

// What a layout must know of a type of tensors: bytes of a value, and of one that is computed with.
struct Number {
  int bytes, computed_bytes;
  bool on_tensor_cores;
};

template <typename S>
constexpr Number number_of{sizeof(S), sizeof(Computed<S>), on_tensor_cores<S>};

// Fragments that a warp holds in registers for the nth product of a kernel: as many as the compiler can hold without
// spilling others. A kernel of many products needs more registers for itself, and multiply-adds need more than matrix
// instructions do; float64 is not about speed.
constexpr int held_fragments(const Number& number, int products, int nth) {
  const int full = FUSED_RNN_WEIGHT_REGISTERS * 4 / (lane_values * number.bytes);
  const int most = number.bytes == 8 ? 0 : number.on_tensor_cores ? full : full / 2;
  const int fragments = products > 2 ? most / 2 : most;
  return (fragments + products - 1 - nth) / products;
}

// Values of a segment of a state for a tile, with 16 bytes between the rows of 16-bit types, which keeps a warp's reads
// free of bank conflicts.
HOST_DEVICE constexpr int state_size(bool on_tensor_cores, int sequences, int k) {
  return on_tensor_cores ? sequences * (k + 8) : sequences * k;
}

// Values of a row in shared memory when rows begin at multiples of 16 bytes.
HOST_DEVICE constexpr int staged_stride(int bytes, int columns) {
  return static_cast<int>(round_up(columns, 16 / bytes));
}

HOST_DEVICE constexpr int sums_stride(int outputs) {  // 4 modulo 16, so that neither writes nor reads conflict
  return static_cast<int>(round_up(outputs, fragment_outputs)) + 4;
}

// Cells -------------------------------------------------------------------------------------------------------------

// What planner and kernels must know of a cell, besides its equations.
struct CellShape {
  int gates, saved, gradients;
  bool has_cell_state, reset_before, bypasses_product, n_apart;
  Modulates modulates;

  constexpr bool multiplicative() const { return modulates != Modulates::nothing; }
  constexpr bool of_input() const { return modulates == Modulates::input; }
  constexpr bool of_hidden() const { return modulates == Modulates::hidden; }
  // Gates whose gradients products read side by side, and whether U_n reads δq where W_n reads δa_n.
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

// The states that products of the forward kernel read: h₋; s = r⊙h₋ of the reset-before GRU; x̂ of multiplicative cells.
enum class ForwardState { h, s, x_hat };

// The products of the forward kernel. `recurrent` is U with h₋, or with x̂ where h₋ is modulated; of the reset-before
// GRU it has the rows of r and z, and `candidate` those of n. `input` is W with x̂, `modulation` U_m with h₋.
enum class ForwardProduct { recurrent, candidate, input, modulation, count };

// What products of the backward kernel read: gradients of the gates that U multiplies alone; of n, beside W and beside
// U; of m.
enum class BackwardState { gates, n, q, m };

// The products of the backward kernel: Uᵀ and Wᵀ, without their columns for n where these multiply something of their
// own, and those; U_mᵀ. Where h₋ is modulated, `input` is Uᵀ, and there is no `recurrent`.
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

// Fragments of a product that each warp holds in registers. Weights of the first products are the first to stay on the
// chip.
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

// Runs of columns that a step of the forward kernel fetches ahead: W x of the gates, and where h₋ is modulated W_m x;
// where x is modulated W_m x and x.
constexpr int forward_staged(const CellShape& cell) { return cell.of_input() ? 2 : cell.gates + cell.of_hidden(); }

// Likewise of the backward kernel: what was saved, δ output, h₋, and in cells with a cell state, which do not read h₋,
// in its place c, then c₋ and δ of c.
constexpr int backward_staged(const CellShape& cell) { return cell.saved + 3 + cell.has_cell_state; }

// Layouts -----------------------------------------------------------------------------------------------------------

// A state that products read: K values of each sequence, in segments of `span`, a multiple of fragment_k.
struct StateLayout {
  int k, span, segments;
  int size;           // values of a segment
  int local;          // bytes into shared memory, in an exchange that keeps the whole state there
  int64_t exchanged;  // bytes into the workspace, in an exchange that goes through memory
};

// A product of a block, whose outputs are those of one part of a team.
struct ProductLayout {
  int outputs;
  int strips, k_fragments;  // weights, in fragments
  int span_fragments;       // of a segment of the state
  int groups, splits;       // warps are groups x splits: a group has every groups-th strip, a split a share of K
  int resident;             // fragments of each warp in shared memory
  int shared;               // where, in bytes into shared memory
  int64_t packed;           // bytes into the workspace: [parts, strips, k_fragments] fragments
};

struct Layout {
  Division division;                             // as it was made, without zeros
  int teams, units, features;                    // the last two of a part, at most
  int limits, carried, staged, biases, fetched;  // bytes into shared memory
  int sums[2];                                   // likewise: where products leave their sums, those with W apart
  int64_t cleared, arrivals, failed;             // bytes into the workspace, which is cleared from the first on
  StateLayout states[most_states];               // by ForwardState or BackwardState
  ProductLayout products[most_products];         // by ForwardProduct or BackwardProduct
  int64_t shared_bytes, workspace_bytes;         // of a block, of a call

  int64_t blocks() const { return int64_t{teams} * division.parts; }
};

}  // namespace fused_rnn::cuda

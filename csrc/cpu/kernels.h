// The interface between the time loop and the kernels: matrices, the operands of one time step, and the table of
// kernels. kernels.inc implements the table once per instruction set; the fastest one that the processor has is chosen
// at run time. Nothing here depends on torch.
//
// All code is generic in two types: C is the type of computations and carried states (float or double), S is the type
// of the caller's tensors (the same, or BFloat16 with C = float).
#pragma once

#include <cstdint>

#include "../cells/cells.h"
#include "../cells/types.h"

namespace fused_rnn::cpu {

struct Range {
  int64_t begin, end;
};

// Rows of a matrix in the layout of the caller's tensors: entry (k, g, j) is data[k * depth_stride + (g * units + j) *
// unit_stride].
template <typename S>
struct MatrixPart {
  const S* data;
  int64_t depth, depth_stride, unit_stride;
};

// A matrix for multiplication from the right. It has `depth` rows, those of its parts one below the other, and `gates`
// x `units` columns with one bias per column, the sum of two of which null counts as zeros. It is read in panels of a
// few vectors of units, with all gates of a unit in the same panel: from `packed`, which holds the panels one after the
// other, or if that is null from the caller's tensors. One of the strides is 1, the same one in all parts.
template <typename C, typename S>
struct Matrix {
  C* packed = nullptr;
  int64_t depth = 0, gates = 0, units = 0;
  const S *bias = nullptr, *other_bias = nullptr;
  MatrixPart<S> parts[2] = {};

  bool exists() const { return units > 0; }
};

// Adjacent columns of a matrix whose rows are `stride` apart.
template <typename C>
struct Columns {
  const C* first;
  int64_t stride, count;
};

// The product of a left operand with a matrix of one gate: results = addend + operand matrix.
template <typename C, typename S>
struct Product {
  Columns<C> operand;  // [rows, depth]
  const Matrix<C, S>& matrix;
  const C* addend;  // [rows, units], or null for zeros; may equal the results
  C* results;       // [rows, units]
};

// The gradient of a weight by a few rows: result[i][j] = sum over rows of d[row][i] * a[row][j].
constexpr int64_t few_rows = 8;
template <typename C, typename S>
struct WeightGradient {
  Columns<C> d, a;
  int64_t rows;  // at most few_rows
  S* result;     // [d.count, a.count]
};

// A matrix of B contiguous rows that will be read soon, or null.
struct UpcomingRows {
  const void* rows;
  int64_t row_bytes;
};
constexpr int most_upcoming = 5;

// The sequences that have a step, the longest first. They are the first rows of the time loop's own arrays, of type C,
// and anywhere in the caller's tensors, of type S.
struct Running {
  int64_t count = 0;
  const int64_t* order = nullptr;  // [B] the caller's row of each; null: the same

  int64_t at(int64_t row) const { return order ? order[row] : row; }
};

// A forward step of B sequences. Rows are sequences; every array is contiguous unless it has a stride here.
template <typename C, typename S>
struct ForwardStep {
  int64_t input_size, hidden_size;
  Matrix<C, S> recurrent;   // U and b'; if wx is null, W below U, and both biases; gru: rows r and z only
  Matrix<C, S> candidate;   // gru: U_n, and W_n likewise
  Matrix<C, S> modulation;  // multiplicative: U_m
  Matrix<C, S> projection;  // if x is modulated and wx is not null: W and b
  C* wx;                    // [B, G*H] W x + b; from x̂ computed in this step. Null: part of the recurrent product
  const C* operand;         // [B, I] x or x̂, if wx is null
  const S* x;               // [B, I] if x is modulated
  const C* wx_m;            // [B, M] multiplicative: W_m x + b_m
  C* x_hat;                 // [B, M] multiplicative, scratch
  const C* state;           // [B, H] h₋, or x̂ in its place
  const C* h_prev;          // [B, H]
  C* h;                     // [B, H]
  C* c;                     // [B, H] cells with a cell state: c₋, then c
  C* s;                     // [B, H] gru, scratch: r⊙h₋
  C* z;                     // [B, H] gru, scratch
  S* output;                // [B, H]
  S* cells;                 // [B, H] second copy of the cell state, for return_cells; or null
  const S* keep_h;          // [B, H] zoneout: the fraction of its old state that each unit keeps; or null
  const S* keep_c;          // [B, H] likewise, cells with a cell state
  S* saved;                 // [B, saved_stride] the cell's saved values, H each, then m; or null
  int64_t saved_stride;
  Running running;
};

// A backward step. d has the cell's gradient columns, H each, and then δm.
template <typename C, typename S>
struct BackwardStep {
  int64_t input_size, hidden_size;
  Matrix<C, S> recurrent;   // Uᵀ, and below it U_mᵀ: from gradient columns to δh₋; if h₋ is modulated U_mᵀ alone
  Matrix<C, S> reset;       // gru: U_nᵀ, from δa_n to δs
  Matrix<C, S> projection;  // multiplicative: from δa to δx̂, Wᵀ, or Uᵀ if h₋ is modulated
  const S* saved;           // [B, saved_stride]
  int64_t saved_stride;
  const S* c;          // [B, H] cells with a cell state
  const S* h_prev;     // [B, H] outputs of the step before
  const S* c_prev;     // [B, H] likewise
  const S* h_0;        // [B, H] the state before a sequence's first step
  const S* c_0;        // [B, H]
  const bool* begins;  // [B] whether a sequence begins this step anew, or null
  const S* h_reset;    // [B, H] its initial state then, if any begins anew
  const S* c_reset;    // [B, H]
  const S* x;          // [B, I]
  const C* wx_m;       // [B, H] if h₋ is modulated: W_m x, else null
  const S* d_output;   // [B, H], or null for zeros
  const S* d_cells;    // [B, H] likewise
  const S* keep_h;     // [B, H] as in the forward step
  const S* keep_c;     // [B, H] likewise
  C gradient_clip;     // the largest magnitude of a gradient of a pre-activation
  C* dh;               // [B, H] δh from later steps, then δh₋
  C* dc;               // [B, H] likewise
  C* d;                // [B, d_stride] gradients of the pre-activations
  int64_t d_stride;
  C* history;  // [B, operand_stride] h₋, and after it x̂ or x, or both: operands of the weight gradients
  int64_t operand_stride;
  C* s;   // [B, H] gru: r⊙h₋, for the weight gradients
  C* dx;  // [B, M] multiplicative: the part of δx that does not pass through W_m, or δ(W_m x)
  Running running;
  int64_t running_before;                // sequences that have the step before; for the others this one is the first
  UpcomingRows upcoming[most_upcoming];  // the memory that the step before will read first
};

enum class ForwardPhase { modulate, project, recur, candidate };
enum class BackwardPhase { pointwise, reset, modulate, recur };

// The kernels of one cell in one pair of types. A phase is a product with a matrix and the pointwise work on its
// results, for some rows and some panels of that matrix; the phases of a step run in the order of their enumeration.
// The backward phase `pointwise` has no product and ignores `panels`.
template <typename C, typename S>
struct CellKernels {
  void (*forward)(const ForwardStep<C, S>&, ForwardPhase, Range rows, Range panels);
  void (*backward)(const BackwardStep<C, S>&, BackwardPhase, Range rows, Range panels);
};

template <typename C, typename S>
struct Kernels {
  int64_t weight_bytes;  // of each packed weight: 2 if products round both operands to bfloat16
  int64_t (*panel_count)(int64_t gates, int64_t units);
  int64_t (*packed_size)(int64_t depth, int64_t gates, int64_t units);  // elements
  void (*pack)(const Matrix<C, S>&);                                    // from its parts and biases to `packed`
  void (*multiply)(const Product<C, S>&, Range rows, Range panels);
  void (*differentiate_weight)(const WeightGradient<C, S>&, Range lines);  // some of the d.count lines of the result
  CellKernels<C, S> (*cell)(CellId);
  // Add the sums over rows of a matrix, in some of its columns, to sums[column]. The sums are double, because a bias
  // gradient is a sum of T*B terms of either sign.
  void (*add_column_sums)(const C* matrix, int64_t rows, int64_t stride, Range columns, double* sums);
};

// The kernels for this processor; FUSED_RNN_CPU_ISA=generic, avx2, avx512 or amx in the environment forces a choice.
// AMX serves bfloat16 only; float and double take AVX-512 then.
template <typename C, typename S>
const Kernels<C, S>& kernels();

// Return "generic", "avx2", "avx512" or "amx", or null for an unknown or unsupported name in the environment.
const char* instruction_set();

}  // namespace fused_rnn::cpu

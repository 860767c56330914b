// The interface of the CUDA kernels to the operators: one call runs one layer in one direction over a whole sequence.
// It is planned first, by its sizes and the device alone, and runs in a workspace of the size that the plan states.
// This file includes no torch header, so that its users (the CUDA runtime, or the host shim of the tests) compile
// quickly.
//
// Arrays are contiguous and of the call's type; they need no alignment beyond that of their elements. Every size is at
// least 1. With G gates: arrays marked * exist in multiplicative cells only, and may be null in others. In Krause's
// mLSTM, which modulates h₋, I is H and `input` is W_m x; in other cells `input` is x.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "../cells/cells.h"
#include "division.h"

namespace fused_rnn::cuda {

enum class Type { float32, float64, bfloat16, float16 };

constexpr int cluster_sizes = 5;

// The properties of the device that plans depend on.
struct Chip {
  int multiprocessors;
  int64_t shared_bytes;              // the most that a block may use
  int clusters[cluster_sizes] = {};  // of 1, 2, 4, 8 and 16 blocks, each with a multiprocessor of its own, that run at
                                     // the same time; zero where there are none
  const char* name = "";             // as the driver reports it
};

// The steps that begin anew, and their initial states; of type void in the operators' calls. They are not among the
// arrays of a call, for which the warp kernels are compiled, because these do not support them.
template <typename S>
struct Beginnings {
  const bool* resets;           // [T, B] whether a sequence begins a step anew, or null for no resets
  const S *h_reset, *c_reset;   // [B, H] its initial state then; null is zeros
  void *d_h_reset, *d_c_reset;  // [B, H] backward: their gradients, in the type of sums, or null
};

struct Layer {
  CellId cell;
  Modulates modulates;
  Type type;
  bool reverse;
  int64_t T, B, I, H;
  const int64_t* lengths;  // [B] steps of each sequence, at most T, or null
  unsigned* timed_out;     // set to 1 when a block times out; the host may read it at any time
  Beginnings<void> beginnings;
};

// The arrays of a call, of type S; of type void in the operators' calls.
template <typename S>
struct ForwardArrays {
  const S *keep_h, *keep_c;        // [T, B, H] zoneout: the part of its old state that each
                                   // unit keeps; or null
  const S* projected;              // [T, B, G*H] W x; if x is modulated [T, B, I] W_m x
  const S* input;                  // [T, B, I] *
  const S *h_0, *c_0;              // [B, H]; c_0 for cells with a cell state
  const S *weight_ih, *weight_hh;  // [G*H, I] if x is modulated, [G*H, H]
  const S *weight_mhh, *bias_m;    // [I, H] *, [I] * or null
  const S *bias_ih, *bias_hh;      // [G*H] or null
  S *output, *h_n, *c_n;           // [T, B, H], [B, H], [B, H] for cells with a cell state
  S* cells;                        // [T, B, H] the cell states of all steps, or null
  S* saved;                        // [T, B, Cell::saved * H (+ I)], or null
};

template <typename S>
struct BackwardArrays {
  const S *keep_h, *keep_c;                     // as above
  const S *d_output, *d_h_n, *d_c_n, *d_cells;  // gradients of the results; null counts as zero
  const S *output, *cells, *saved;              // of the forward call; cells for cells with a cell state
  const S *input, *h_0, *c_0;                   // as above
  const S *weight_ih, *weight_hh, *weight_mhh;
  S *d_h_0, *d_c_0;  // [B, H]; d_c_0 for cells with a cell state
  S* d;              // [T, B, Cell::gradients * H (+ I)] of the pre-activations, then of m
  S* d_input;        // [T, B, I] *, the part that does not pass through W_m
};

struct ForwardCall : Layer {
  ForwardArrays<void> arrays;
};

struct BackwardCall : Layer {
  BackwardArrays<void> arrays;
  double gradient_clip;  // the largest magnitude of a gradient of a pre-activation, or infinity
};

// A summary of a call's plan, for people, benchmarks and tests. `division` is complete.
struct Plan {
  Division division;
  int teams;                              // the grid has teams x parts blocks, which all run at the same time
  int held, resident, streamed;           // fragments of weights, 16 outputs x 64 values of K, of the warp that has
                                          // most: in its registers, in shared memory, read anew in every step
  int64_t shared_bytes, workspace_bytes;  // of shared memory of a block, and of device memory beside the arrays
  double nanoseconds;                     // estimated time of a step
};

// A call that is ready to run.
struct Prepared {
  std::string refusal;  // why the call cannot run, or empty; if not, the rest is undefined
  Plan plan;
  // Queue the call on a stream of the current device and return at once, with an empty string or an error message.
  // The workspace is aligned to 256 bytes, and need not be cleared.
  std::function<std::string(void* workspace, void* stream)> run;
};

// Plan a call; `forced` may fix the division in part or in full. Only whether pointers of resets are null matters; none
// is dereferenced before the call runs.
Prepared prepare(const ForwardCall&, const Chip&, const Division& forced);
Prepared prepare(const BackwardCall&, const Chip&, const Division& forced);

}  // namespace fused_rnn::cuda

// What the CUDA kernels offer to the operators: one call runs one layer in one direction over a whole sequence. It is
// planned first, by its sizes and the device alone, and run in a workspace of the size that the plan says. No torch
// header here, so that whoever launches (the CUDA runtime, or the host shim of the tests) compiles it quickly.
//
// Arrays are contiguous and of the call's type; they need no alignment beyond that of their elements. Every size is at
// least 1. With G gates: arrays marked * exist in multiplicative cells only, and may be null in others. Where h₋ is
// modulated, I is H and `input` is W_m x; elsewhere it is x.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "../cells/cells.h"
#include "division.h"

namespace fused_rnn::cuda {

enum class Type { float32, float64, bfloat16, float16 };

constexpr int cluster_sizes = 5;

// What a plan must know of the device.
struct Chip {
  int multiprocessors;
  int64_t shared_bytes;              // of a block, at most
  int clusters[cluster_sizes] = {};  // of 1, 2, 4, 8 and 16 blocks, each with a multiprocessor of its own, that run at
                                     // the same time; zero where there are none
  const char* name = "";             // as the driver has it
};

// The steps that begin anew, and with what; of type void in what the operators hand over. Not among the arrays of a
// call, of which the kernels of clusters are made, which know none of it.
template <typename S>
struct Beginnings {
  const bool* resets;           // [T, B] whether a sequence begins a step anew, or null
  const S *h_reset, *c_reset;   // [B, H] with what; null is zeros
  void *d_h_reset, *d_c_reset;  // [B, H] backward, where there are these: their gradients, in the type of sums
};

struct Layer {
  CellId cell;
  Modulates modulates;
  Type type;
  bool reverse;
  int64_t T, B, I, H;
  const int64_t* lengths;  // [B] steps of each sequence, at most T, or null
  unsigned* timed_out;     // becomes 1 if a block timed out; the host may read it at any time
  Beginnings<void> beginnings;
};

// The arrays of a call, of type S; of type void in what the operators hand over.
template <typename S>
struct ForwardArrays {
  const S *keep_h, *keep_c;        // [T, B, H] zoneout: the part of its old state that each
                                   // unit keeps; or null
  const S* projected;              // [T, B, G*H] W x; where x is modulated [T, B, I] W_m x
  const S* input;                  // [T, B, I] *
  const S *h_0, *c_0;              // [B, H]; c_0 for cells with a cell state
  const S *weight_ih, *weight_hh;  // [G*H, I] where x is modulated, [G*H, H]
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

// What a call's plan comes to, for people, benchmarks and tests. `division` leaves nothing open.
struct Plan {
  Division division;
  int teams;                              // the grid has teams x parts blocks, which all run at the same time
  int held, resident, streamed;           // fragments of weights, 16 outputs x 64 values of K, of the warp that has
                                          // most: in its registers, in shared memory, read anew in every step
  int64_t shared_bytes, workspace_bytes;  // of shared memory of a block, and of device memory beside the arrays
  double nanoseconds;                     // that a step is estimated to take
};

// A call that is ready to run.
struct Prepared {
  std::string refusal;  // why the call cannot run, or empty; the rest says nothing then
  Plan plan;
  // Queue the call on a stream of the current device; returns at once, with an empty string or with what went wrong.
  // The workspace is aligned to 256 bytes, and need not be cleared.
  std::function<std::string(void* workspace, void* stream)> run;
};

// Plan a call, by the division that is forced as far as one is. Of pointers only matters whether there are resets; none
// is followed before the call runs.
Prepared prepare(const ForwardCall&, const Chip&, const Division& forced);
Prepared prepare(const BackwardCall&, const Chip&, const Division& forced);

}  // namespace fused_rnn::cuda

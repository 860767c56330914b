// What the CUDA kernels offer to the operators: one call runs one layer in one direction over a whole sequence. No
// torch header here, so that whoever launches (the CUDA runtime, or the host shim of the tests) compiles it quickly.
//
// Arrays are contiguous and of the call's type; they need no alignment beyond that of their elements. Every size is at
// least 1. With G gates: arrays marked * exist in multiplicative cells only, and may be null in others. Where h₋ is
// modulated, I is H and `input` is W_m x; elsewhere it is x.
#pragma once

#include <cstdint>
#include <string>

#include "../cells/cells.h"

namespace fused_rnn::cuda {

enum class Type { float32, float64, bfloat16, float16 };

// What a plan must know of the device. Tests and tuning may force the sequences of a tile, a multiple of 8, and the
// blocks that share them.
struct Chip {
  int multiprocessors;
  int64_t shared_bytes;  // of a block, at most
  int forced_sequences = 0, forced_parts = 0;
};

struct Layer {
  CellId cell;
  Modulates modulates;
  Type type;
  bool reverse;
  int64_t T, B, I, H;
  const int64_t* lengths;       // [B] steps of each sequence, at most T, or null
  unsigned* timed_out;          // becomes 1 if a block waited in vain; the host may read it at any time
  const void *keep_h, *keep_c;  // [T, B, H] zoneout: the part of its old state that each unit keeps; or null
};

struct ForwardCall : Layer {
  const void* projected;              // [T, B, G*H] W x; where x is modulated [T, B, I] W_m x
  const void* input;                  // [T, B, I] *
  const void *h_0, *c_0;              // [B, H]; c_0 for cells with a cell state
  const void *weight_ih, *weight_hh;  // [G*H, I] where x is modulated, [G*H, H]
  const void *weight_mhh, *bias_m;    // [I, H] *, [I] * or null
  const void *bias_ih, *bias_hh;      // [G*H] or null
  void *output, *h_n, *c_n;           // [T, B, H], [B, H], [B, H] for cells with a cell state
  void* cells;                        // [T, B, H] the cell states of all steps, or null
  void* saved;                        // [T, B, Cell::saved * H (+ I)], or null
};

struct BackwardCall : Layer {
  const void *d_output, *d_h_n, *d_c_n, *d_cells;  // gradients of the results; null counts as zero
  const void *output, *cells, *saved;              // of the forward call; cells for cells with a cell state
  const void *input, *h_0, *c_0;                   // as above
  const void *weight_ih, *weight_hh, *weight_mhh;
  void *d_h_0, *d_c_0;   // [B, H]; d_c_0 for cells with a cell state
  void* d;               // [T, B, Cell::gradients * H (+ I)] of the pre-activations, then of m
  void* d_input;         // [T, B, I] *, the part that does not pass through W_m
  double gradient_clip;  // the largest magnitude of a gradient of a pre-activation, or infinity
};

// Bytes of device memory that a call needs beside its arrays, to be aligned to 256 bytes; it need not be cleared. None
// for a call that `run` refuses.
int64_t workspace_bytes(const ForwardCall&, const Chip&);
int64_t workspace_bytes(const BackwardCall&, const Chip&);

// Queue the call on a stream of the current device; returns at once, with an empty string or with what went wrong.
std::string run(const ForwardCall&, const Chip&, void* workspace, void* stream);
std::string run(const BackwardCall&, const Chip&, void* workspace, void* stream);

}  // namespace fused_rnn::cuda

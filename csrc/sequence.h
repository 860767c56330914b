// The checked operands of one layer in one direction, which the operators of ops.cpp hand to a backend.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <tuple>

#include "cells/cells.h"

namespace fused_rnn {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

// A cell by the caller's name, with the sizes of its base cell.
struct CellSpec {
  CellId id;
  Modulates modulates;
  int64_t gates, saved, gradients;
  bool has_cell_state, reset_before, n_apart, separates_x;

  bool multiplicative() const { return modulates != Modulates::nothing; }

  // Values per step and sequence: of m, of the cell states, and of the others that forward saves.
  int64_t modulated_size(int64_t I, int64_t H) const {
    return modulates == Modulates::input ? I : modulates == Modulates::hidden ? H : 0;
  }
  int64_t cell_columns(Save save, int64_t H) const { return has_cell_state && save != Save::nothing ? H : 0; }
  int64_t saved_columns(Save save, int64_t I, int64_t H) const {
    return save == Save::everything ? saved * H + modulated_size(I, H) : 0;
  }
};

struct Weights {
  Tensor weight_ih, weight_hh;                    // (G*H, I), (G*H, H)
  OptionalTensor bias_ih, bias_hh;                // (G*H)
  OptionalTensor weight_mih, weight_mhh, bias_m;  // (M, I), (M, H), (M): multiplicative cells, with M values of m
};

// All tensors are contiguous, of one type, on one device, and of sizes that fit.
struct Sequence {
  CellSpec cell;
  Tensor input;        // (T, B, I)
  Tensor h_0;          // (B, H)
  OptionalTensor c_0;  // (B, H), cells with a cell state
  Weights weights;
  OptionalTensor lengths;           // (B) int64, steps of each sequence, at most T
  OptionalTensor keep_h, keep_c;    // (T, B, H) zoneout: the fraction of its old state that each unit keeps
  OptionalTensor resets;            // (T, B) bool: the steps that begin anew, in the direction of the run
  OptionalTensor h_reset, c_reset;  // (B, H) their initial state; missing ones are zeros
  bool reverse;
  int64_t T, B, I, H;

  // Return the time of a step; steps count in the order of computation.
  int64_t time(int64_t step) const { return reverse ? T - 1 - step : step; }
  int64_t modulated_size() const { return cell.modulated_size(I, H); }
  int64_t saved_columns(Save save) const { return cell.saved_columns(save, I, H); }
};

// Results that were not requested, not saved or do not exist are undefined.
struct ForwardResult {
  Tensor output, h_n, c_n;  // (T, B, H), (B, H), (B, H)
  Tensor cells, saved;      // (T, B, H), (T, B, saved columns)
};

struct BackwardInput {
  OptionalTensor d_output, d_h_n, d_c_n, d_cells;  // gradients of the results, missing ones count as zero
  Tensor output, cells, saved;                     // of the forward pass, which saved everything
  double gradient_clip;                            // the largest magnitude of gradients of pre-activations, or infinity
  bool input_gradient, weight_gradients;           // which products after the loop are wanted
};

// Gradients of the members of Sequence; those that were not requested or do not exist are undefined.
struct BackwardResult {
  Tensor input, h_0, c_0, weight_ih, weight_hh, bias_ih, bias_hh, weight_mih, weight_mhh, bias_m, h_reset, c_reset;
};

namespace cpu {
// Final states are optional: for a single step they are the output and the cells.
ForwardResult forward(const Sequence&, Save, bool final_states = true);
BackwardResult backward(const Sequence&, const BackwardInput&);
}  // namespace cpu

}  // namespace fused_rnn

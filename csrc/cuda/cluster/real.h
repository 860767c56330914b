// The number that the cells' equations compute with: a float, with nonlinearities that have no branches, so that those
// of a step overlap. Where results are float32 they are those of ../../cells/math.h, but for a reciprocal in place of a
// division, which is within 2^-23 too. Where results are 16-bit they take few instructions: for bfloat16 they are tanh
// of the special function unit, which is within a relative error of 2^-11, less than what rounding leaves. That is as
// much as what rounding to float16 does, whose nonlinearities are therefore of exponentials and reciprocals, within an
// error of 2^-21.
#pragma once

#include "../device.h"

namespace fused_rnn::cuda {

template <typename S>
struct Real {
  float value;

  FUSED_RNN_DEVICE Real() {}
  FUSED_RNN_DEVICE explicit Real(float number) : value(number) {}

  FUSED_RNN_DEVICE friend Real operator+(Real a, Real b) { return Real(a.value + b.value); }
  FUSED_RNN_DEVICE friend Real operator-(Real a, Real b) { return Real(a.value - b.value); }
  FUSED_RNN_DEVICE friend Real operator*(Real a, Real b) { return Real(a.value * b.value); }
  FUSED_RNN_DEVICE friend Real operator-(Real a) { return Real(-a.value); }
  FUSED_RNN_DEVICE friend bool operator<(Real a, Real b) { return a.value < b.value; }
  FUSED_RNN_DEVICE friend bool operator>(Real a, Real b) { return a.value > b.value; }
  FUSED_RNN_DEVICE friend bool operator<=(Real a, Real b) { return a.value <= b.value; }

  // found by argument, from the namespace of the cells
  FUSED_RNN_DEVICE friend Real tanh(Real x) {
    if constexpr (std::is_same_v<S, float>)
      return Real(fused_rnn::tanh(x.value));
    else if constexpr (std::is_same_v<S, BFloat16>)
      return Real(approximate_tanh(x.value));
    else
      return Real(2.0f * logistic(2.0f * x.value) - 1.0f);
  }
  FUSED_RNN_DEVICE friend Real sigmoid(Real x) {
    if constexpr (std::is_same_v<S, float>)
      return Real(approximate_reciprocal(1.0f + expf(-x.value)));
    else if constexpr (std::is_same_v<S, BFloat16>)
      return Real(0.5f * approximate_tanh(0.5f * x.value) + 0.5f);
    else
      return Real(logistic(x.value));
  }

 private:
  FUSED_RNN_DEVICE static float logistic(float x) {
    return approximate_reciprocal(1.0f + approximate_exp2(-1.44269504f * x));
  }
};

}  // namespace fused_rnn::cuda

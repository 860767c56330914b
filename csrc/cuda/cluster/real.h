// The number type that the cells' equations compute with in warp kernels: a float whose nonlinearities have no
// branches, so that those of a step overlap. For float32 results these are the ones of ../../cells/math.h, but with a
// reciprocal, which is also within 2^-23, in place of a division. For 16-bit results they take few instructions. In
// bfloat16 they use tanh of the special function unit, within a relative error of 2^-11, less than rounding to bfloat16
// leaves. Rounding to float16 leaves no more than that, so its nonlinearities use exponentials and reciprocals, within
// an error of 2^-21.
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

  // found by argument-dependent lookup from the namespace of the cells
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

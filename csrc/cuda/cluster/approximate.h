// The number that the cells' equations compute with where results are 16-bit: a float whose nonlinearities take few
// instructions. For bfloat16 these are tanh of the special function unit, which is within a relative error of 2^-11,
// less than what rounding leaves. That is as much as what rounding to float16 does, whose nonlinearities are therefore
// of exponentials and reciprocals, within an error of 2^-21.
#pragma once

#include "../device.h"

namespace fused_rnn::cuda {

template <typename S>
struct Approximate {
  float value;

  FUSED_RNN_DEVICE Approximate() {}
  FUSED_RNN_DEVICE explicit Approximate(float number) : value(number) {}

  FUSED_RNN_DEVICE friend Approximate operator+(Approximate a, Approximate b) { return Approximate(a.value + b.value); }
  FUSED_RNN_DEVICE friend Approximate operator-(Approximate a, Approximate b) { return Approximate(a.value - b.value); }
  FUSED_RNN_DEVICE friend Approximate operator*(Approximate a, Approximate b) { return Approximate(a.value * b.value); }
  FUSED_RNN_DEVICE friend Approximate operator-(Approximate a) { return Approximate(-a.value); }
  FUSED_RNN_DEVICE friend bool operator<(Approximate a, Approximate b) { return a.value < b.value; }
  FUSED_RNN_DEVICE friend bool operator>(Approximate a, Approximate b) { return a.value > b.value; }
  FUSED_RNN_DEVICE friend bool operator<=(Approximate a, Approximate b) { return a.value <= b.value; }

  // found by argument, from the namespace of the cells
  FUSED_RNN_DEVICE friend Approximate tanh(Approximate x) {
    if constexpr (std::is_same_v<S, BFloat16>)
      return Approximate(approximate_tanh(x.value));
    else
      return Approximate(2.0f * logistic(2.0f * x.value) - 1.0f);
  }
  FUSED_RNN_DEVICE friend Approximate sigmoid(Approximate x) {
    if constexpr (std::is_same_v<S, BFloat16>)
      return Approximate(0.5f * approximate_tanh(0.5f * x.value) + 0.5f);
    else
      return Approximate(logistic(x.value));
  }

 private:
  FUSED_RNN_DEVICE static float logistic(float x) {
    return approximate_reciprocal(1.0f + approximate_exp2(-1.44269504f * x));
  }
};

}  // namespace fused_rnn::cuda

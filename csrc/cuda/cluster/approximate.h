// The number that the cells' equations compute with where results are 16-bit: a float whose nonlinearities are those of
// the tensor-core generation, one instruction each. tanh is within a relative error of 2^-11 and σ within 2^-12, which
// is less than what rounding to bfloat16 leaves, and as much as what rounding to float16 does.
#pragma once

#include "../device.h"

namespace fused_rnn::cuda {

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
  FUSED_RNN_DEVICE friend Approximate tanh(Approximate x) { return Approximate(approximate_tanh(x.value)); }
  FUSED_RNN_DEVICE friend Approximate sigmoid(Approximate x) {
    return Approximate(0.5f * approximate_tanh(0.5f * x.value) + 0.5f);
  }
};

}  // namespace fused_rnn::cuda

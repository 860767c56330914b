// The multiplicative modifier, which turns any cell into one that reads x̂ = m⊙x in place of x, with
// m = W_m x + U_m h₋ + b_m. Not Krause et al.'s mLSTM, which replaces h₋, nor xLSTM's matrix memory.
#pragma once

#include "math.h"

namespace fused_rnn {

struct Multiplicative {
  template <typename T>
  HOST_DEVICE static void forward(T wx, T uh, T x, T& m, T& x_hat) {
    m = wx + uh;
    x_hat = m * x;
  }

  // dx: the part of δx that does not pass through W_m.
  template <typename T>
  HOST_DEVICE static void backward(T dx_hat, T x, T m, T& dm, T& dx) {
    dm = dx_hat * x;
    dx = dx_hat * m;
  }
};

}  // namespace fused_rnn

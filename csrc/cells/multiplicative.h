// The multiplicative modifier, which scales an operand of a cell in every step. For the input, any cell reads x̂ = m⊙x
// in place of x, with m = W_m x + U_m h₋ + b_m. For the hidden state, in Krause et al.'s mLSTM, (W_m x)⊙(U_m h₋)
// replaces h₋: this is the same step with m = U_m h₋ and W_m x in place of x, whose x̂ goes to U. xLSTM's matrix memory
// is something else.
#pragma once

#include "math.h"

namespace fused_rnn {

enum class Modulates { nothing, input, hidden };

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

// The Elman network: h = f(W x + b + U h₋) with f = tanh or relu.
#pragma once

#include "math.h"

namespace fused_rnn {

struct Tanh {
  template <typename T>
  HOST_DEVICE static T value(T a) {
    return tanh(a);
  }
  template <typename T>
  HOST_DEVICE static T slope(T y) {  // as a function of the value
    return T(1) - y * y;
  }
};

struct Relu {
  template <typename T>
  HOST_DEVICE static T value(T a) {
    return a <= T(0) ? T(0) : a;  // NaN stays NaN
  }
  template <typename T>
  HOST_DEVICE static T slope(T y) {
    return y > T(0) ? T(1) : T(0);
  }
};

template <typename Activation>
struct Rnn {
  static constexpr int gates = 1;      // rows of W and U per unit
  static constexpr int saved = 1;      // values per unit that backward reads: h
  static constexpr int gradients = 1;  // columns of pre-activation gradients per unit
  static constexpr bool has_cell_state = false;
  static constexpr bool reset_before = false;
  static constexpr bool bypasses_product = false;  // whether part of δh₋ does not pass through U
  static constexpr bool n_apart = false;           // whether U_n has an operand or a result of its own
  static constexpr bool separates_x = false;       // whether forward needs W x and U h₋ separately

  // wx: W x + b, uh: U h₋ + b', one value per gate.
  template <typename T>
  HOST_DEVICE static void forward(const T (&wx)[1], const T (&uh)[1], T, T&, T& h, T (&saved)[1]) {
    h = Activation::value(wx[0] + uh[0]);
    saved[0] = h;
  }

  // dh: δh on entry. d: gradients of the pre-activations.
  template <typename T>
  HOST_DEVICE static void backward(const T (&saved)[1], T, T, T, T& dh, T&, T (&d)[1]) {
    d[0] = dh * Activation::slope(saved[0]);
  }
};

}  // namespace fused_rnn

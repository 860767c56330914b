// Long short-term memory: i, f, o = σ(W x + U h₋ + b), g = tanh(W x + U h₋ + b), c = f⊙c₋ + i⊙g, h = o⊙tanh(c).
#pragma once

#include "math.h"

namespace fused_rnn {

struct Lstm {
  static constexpr int gates = 4;      // i, f, g, o
  static constexpr int saved = 4;      // i, f, g, o; the cell states are a result of their own
  static constexpr int gradients = 4;  // δa_i, δa_f, δa_g, δa_o
  static constexpr bool has_cell_state = true;
  static constexpr bool reset_before = false;
  static constexpr bool bypasses_product = false;
  static constexpr bool n_apart = false;
  static constexpr bool separates_x = false;

  // c: c₋ on entry, c on return.
  template <typename T>
  HOST_DEVICE static void forward(const T (&wx)[4], const T (&uh)[4], T, T& c, T& h, T (&saved)[4]) {
    const T i = sigmoid(wx[0] + uh[0]);
    const T f = sigmoid(wx[1] + uh[1]);
    const T g = tanh(wx[2] + uh[2]);
    const T o = sigmoid(wx[3] + uh[3]);
    saved[0] = i;
    saved[1] = f;
    saved[2] = g;
    saved[3] = o;
    c = cell_state(saved, c);
    h = o * tanh(c);
  }

  // Recompute c for the backward pass of zoneout, which changes c after the cell.
  template <typename T>
  HOST_DEVICE static T cell_state(const T (&saved)[4], T c_prev) {
    return sum_of_products(saved[1], c_prev, saved[0], saved[2]);
  }

  // dc: on entry the part of δc that does not come through h; on return δc₋.
  template <typename T>
  HOST_DEVICE static void backward(const T (&saved)[4], T, T c_prev, T c, T& dh, T& dc, T (&d)[4]) {
    const T i = saved[0], f = saved[1], g = saved[2], o = saved[3];
    const T tanh_c = tanh(c);  // recomputing is cheaper than saving
    dc = dc + dh * o * (T(1) - tanh_c * tanh_c);
    d[0] = dc * g * i * (T(1) - i);
    d[1] = dc * c_prev * f * (T(1) - f);
    d[2] = dc * i * (T(1) - g * g);
    d[3] = dh * tanh_c * o * (T(1) - o);
    dc = dc * f;
  }
};

}  // namespace fused_rnn

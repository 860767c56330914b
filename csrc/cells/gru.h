// The gated recurrent unit of Chung et al. 2014, whose reset gate acts before the recurrent product:
// r, z = σ(W x + U h₋ + b), s = r⊙h₋, n = tanh(W_n x + U_n s + b_n), h = (1−z)⊙h₋ + z⊙n.
//
// U_n s needs all of s, so a step has two phases in both directions: the gates and then the candidate n going
// forward, the candidate and then the reset gate going backward.
#pragma once

#include "math.h"

namespace fused_rnn {

struct Gru {
  static constexpr int gates = 3;      // r, z, n
  static constexpr int saved = 3;      // r, z, n
  static constexpr int gradients = 3;  // δa_r, δa_z, δa_n
  static constexpr bool has_cell_state = false;
  static constexpr bool reset_before = true;
  static constexpr bool bypasses_product = true;
  static constexpr bool n_apart = true;
  static constexpr bool separates_x = false;

  template <typename T>
  HOST_DEVICE static void forward_gates(const T (&wx)[2], const T (&uh)[2], T h_prev, T& r, T& z, T& s) {
    r = sigmoid(wx[0] + uh[0]);
    z = sigmoid(wx[1] + uh[1]);
    s = r * h_prev;
  }

  template <typename T>
  HOST_DEVICE static void forward_candidate(T wx, T us, T z, T h_prev, T& n, T& h) {
    n = tanh(wx + us);
    h = sum_of_products(T(1) - z, h_prev, z, n);
  }

  // dh: δh on entry; on return the part of δh₋ that passes through neither U nor s.
  template <typename T>
  HOST_DEVICE static void backward_candidate(T z, T n, T h_prev, T& dh, T& da_z, T& da_n) {
    da_z = dh * (n - h_prev) * z * (T(1) - z);
    da_n = dh * z * (T(1) - n * n);
    dh = dh * (T(1) - z);
  }

  // ds = U_nᵀ δa_n; dh gains the part of δh₋ that passes through s.
  template <typename T>
  HOST_DEVICE static void backward_reset(T ds, T r, T h_prev, T& dh, T& da_r) {
    da_r = ds * h_prev * r * (T(1) - r);
    dh = dh + ds * r;
  }
};

}  // namespace fused_rnn

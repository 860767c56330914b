// The gated recurrent unit of torch.nn and cuDNN, whose reset gate acts after the recurrent product:
// r, z = σ(W x + b + U h₋ + b'), n = tanh(W_n x + b_n + r⊙q) with q = U_n h₋ + b'_n, h = (1−z)⊙n + z⊙h₋.
#pragma once

#include "math.h"

namespace fused_rnn {

struct GruResetAfter {
  static constexpr int gates = 3;      // r, z, n
  static constexpr int saved = 4;      // r, z, n, q
  static constexpr int gradients = 4;  // δa_r, δa_z, δa_n, and δq, which replaces δa_n in products with U
  static constexpr bool has_cell_state = false;
  static constexpr bool reset_before = false;
  static constexpr bool bypasses_product = true;
  static constexpr bool n_apart = true;
  static constexpr bool separates_x = true;

  template <typename T>
  HOST_DEVICE static void forward(const T (&wx)[3], const T (&uh)[3], T h_prev, T&, T& h, T (&saved)[4]) {
    const T r = sigmoid(wx[0] + uh[0]);
    const T z = sigmoid(wx[1] + uh[1]);
    const T n = tanh(wx[2] + r * uh[2]);
    h = sum_of_products(T(1) - z, n, z, h_prev);
    saved[0] = r;
    saved[1] = z;
    saved[2] = n;
    saved[3] = uh[2];
  }

  // dh: δh on entry; on return the part of δh₋ that does not pass through U.
  template <typename T>
  HOST_DEVICE static void backward(const T (&saved)[4], T h_prev, T, T, T& dh, T&, T (&d)[4]) {
    const T r = saved[0], z = saved[1], n = saved[2], q = saved[3];
    const T dn = dh * (T(1) - z) * (T(1) - n * n);
    d[0] = dn * q * r * (T(1) - r);
    d[1] = dh * (h_prev - n) * z * (T(1) - z);
    d[2] = dn;
    d[3] = dn * r;
    dh = dh * z;
  }
};

}  // namespace fused_rnn

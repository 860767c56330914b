// The regularisers of a step of any cell: zoneout, which acts on the states, and the clipping of gradients.
#pragma once

#include "math.h"

namespace fused_rnn {

// Zoneout (Krueger et al. 2016, arXiv:1606.01305): a unit keeps the fraction k of its old state. k is 0 or 1 if drawn
// at random, or the probability of keeping.
struct Zoneout {
  template <typename T>
  HOST_DEVICE static T forward(T keep, T before, T after) {
#ifdef __CUDA_ARCH__
    return keep * before + (T(1) - keep) * after;  // as measured: the other form is the same instructions, reordered
#else
    return sum_of_products(keep, before, T(1) - keep, after);
#endif
  }

  // d: on entry the gradient of the state, on return that of the cell's new state. Returns the part that bypasses the
  // cell.
  template <typename T>
  HOST_DEVICE static T backward(T keep, T& d) {
    const T kept = keep * d;
    d = (T(1) - keep) * d;
    return kept;
  }
};

// x, or the limit with the sign of x if that is nearer to zero; NaN stays NaN. Graves 2013 (arXiv:1308.0850), section
// 2.1, clips the gradients of all pre-activations in every step in this way.
template <typename T>
HOST_DEVICE T clip(T x, T limit) {
  return x > limit ? limit : x < -limit ? -limit : x;
}

}  // namespace fused_rnn

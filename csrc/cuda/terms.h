// Numbers as tensor cores multiply them. A 16-bit number is one term. A float is the sum of three of bfloat16; of the
// nine products of two floats' terms six are taken, and what the others would add is below 2^-25 of the product.
#pragma once

#include <cmath>

#include "device.h"

namespace fused_rnn::cuda {

template <typename S>
constexpr int terms_of = std::is_same_v<S, float> ? 3 : 1;

// The type of a term.
template <typename S>
using Term = std::conditional_t<std::is_same_v<S, float>, BFloat16, S>;

// What a product is made of, in as many terms as its type has, the largest first.
template <typename Part>
struct Terms {
  Part terms[3];
};
template <typename S, typename Part>
using InTerms = std::conditional_t<terms_of<S> == 1, Part, Terms<Part>>;

// The terms of two neighbours, which are their exact sum where their magnitude is 2^-110 or more. Of what is not
// finite, and a magnitude above 3.39e38, the largest of bfloat16, counts as ∞, the first term is ±∞ or NaN and the
// others say nothing: see total_of.
FUSED_RNN_DEVICE Terms<uint32_t> split_pair(float low, float high) {
  Terms<uint32_t> result;
  FUSED_RNN_UNROLL
  for (int i = 0; i < 3; ++i) {
    result.terms[i] = narrow_pair<BFloat16>(low, high);
    low -= low_of<BFloat16>(result.terms[i]);
    high -= high_of<BFloat16>(result.terms[i]);
  }
  return result;
}

// Put a value as a state has it: its terms, so many places after each other.
template <typename S>
FUSED_RNN_DEVICE void put_terms(Term<S>* to, int distance, S value) {
  if constexpr (terms_of<S> == 1) {
    *to = value;
  } else {
    const auto pairs = split_pair(value, 0.0f);
    FUSED_RNN_UNROLL
    for (int i = 0; i < 3; ++i) to[i * distance] = {static_cast<uint16_t>(pairs.terms[i])};
  }
}

// sum[16, 8] += a[16, 16] b[16, 8] of floats, in three sums: the products of high terms, those with a middle one, and
// what is smaller. Numbers of such different size are added at the end, by total_of, because a sum loses what is below
// the last place of the largest.
FUSED_RNN_DEVICE void mma_terms(float (&high)[4], float (&middle)[4], float (&low)[4],
                                const Terms<Vector<uint32_t, 4>>& a, const uint32_t (&b)[3][2]) {
  const auto add = [&](float (&sum)[4], int i, int j) { mma_m16n8k16<BFloat16>(sum, a.terms[i].values, b[j]); };
  add(high, 0, 0);
  add(middle, 0, 1);
  add(low, 1, 1);
  add(middle, 1, 0);
  add(low, 0, 2);
  add(low, 2, 0);
}

// Where a weight or a state is not finite, its products with high terms are what the product is, and those with other
// terms say nothing: they are NaN, or infinite with either sign.
FUSED_RNN_DEVICE float total_of(float high, float middle, float low) {
  const float total = high + (middle + low);
  return total == total ? total : high;
}

}  // namespace fused_rnn::cuda

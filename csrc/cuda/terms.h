// Terms: numbers as the tensor cores multiply them. A 16-bit number is a single term, and a float the sum of three
// bfloat16 terms. Of the nine products of the terms of two floats six are computed; the other three would add less than
// 2^-25 of the product.
#pragma once

#include <cmath>

#include "device.h"

namespace fused_rnn::cuda {

template <typename S>
constexpr int terms_of = std::is_same_v<S, float> ? 3 : 1;

// The type of a term.
template <typename S>
using Term = std::conditional_t<std::is_same_v<S, float>, BFloat16, S>;

// A part of an operand, such as a fragment, in each of its terms, the largest first. A single term needs no array.
template <typename Part>
struct Terms {
  Part terms[3];
};
template <typename S, typename Part>
using InTerms = std::conditional_t<terms_of<S> == 1, Part, Terms<Part>>;

// Split two neighbouring floats into pairs of terms, which add up exactly to values of magnitude 2^-110 or more. Values
// that are not finite or exceed 3.39e38, the largest bfloat16, have a first term of ±∞ or NaN and other terms without
// meaning, which total_of discards.
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

// Store a value of a state as its terms, which lie `distance` apart.
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

// sum[16, 8] += a[16, 16] b[16, 8] for floats, in three accumulators: products of two high terms, products of a high
// and a middle term, and smaller ones. One accumulator would lose the low bits of the small products; total_of adds the
// three at the end.
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

// The sum of the three accumulators. If a weight or a state is not finite, the products of high terms are the result;
// the others are meaningless, NaN or infinite with either sign.
FUSED_RNN_DEVICE float total_of(float high, float middle, float low) {
  const float total = high + (middle + low);
  return total == total ? total : high;
}

}  // namespace fused_rnn::cuda

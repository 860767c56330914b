// The 16-bit floating-point types that tensors can hold, and their conversions in plain arithmetic, for host and
// device. Float is rounded to nearest, ties to even; NaN stays NaN.
#pragma once

#include <cstdint>

#include "math.h"

namespace fused_rnn {

struct BFloat16 {
  uint16_t bits;  // the upper half of a float
};

struct Half {
  uint16_t bits;  // IEEE binary16: 5 bits of exponent, 10 of fraction
};

HOST_DEVICE float bfloat16_to_float(BFloat16 value) {
  return __builtin_bit_cast(float, static_cast<uint32_t>(value.bits) << 16);
}

HOST_DEVICE BFloat16 float_to_bfloat16(float value) {
  const auto bits = __builtin_bit_cast(uint32_t, value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return {static_cast<uint16_t>(value == value ? rounded : 0x7fc0u)};
}

HOST_DEVICE float half_to_float(Half value) {
  const uint32_t sign = (value.bits & 0x8000u) << 16, magnitude = value.bits & 0x7fffu;
  // The product is exact; it moves the exponent from one bias to the other, for subnormal numbers too.
  const auto bits = __builtin_bit_cast(uint32_t, __builtin_bit_cast(float, magnitude << 13) * 0x1p112f);
  const uint32_t infinite = magnitude >= 0x7c00u ? 0x7f800000u : 0u;
  return __builtin_bit_cast(float, sign | infinite | bits);
}

HOST_DEVICE Half float_to_half(float value) {
  const auto bits = __builtin_bit_cast(uint32_t, value);
  const uint32_t sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  uint32_t rounded;
  if (magnitude > 0x7f800000u) {  // NaN
    rounded = 0x7e00u;
  } else if (magnitude >= 0x47800000u) {  // 2^16
    rounded = 0x7c00u;
  } else if (magnitude < 0x38800000u) {  // 2^-14: subnormal, a multiple of 2^-24, which is the spacing of floats at 0.5
    rounded = __builtin_bit_cast(uint32_t, __builtin_bit_cast(float, magnitude) + 0.5f) - 0x3f000000u;
  } else {
    rounded = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  return {static_cast<uint16_t>(sign | rounded)};
}

}  // namespace fused_rnn

// The two nonlinearities of gated cells, σ and tanh, and a sum of products, for host and device.
//
// On the host in float32 they are branch-free polynomials, so that a loop over units vectorises; their error is
// below 2.5 units in the last place over the whole range, and NaN stays NaN. float64 takes the standard library's.
#pragma once

#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#  define HOST_DEVICE __host__ __device__ __forceinline__
#else
#  define HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace fused_rnn {

// e^y = 2^n (1 + p) with p = e^r - 1 for |r| <= ln(2)/2: e^y and e^y - 1 are assembled from these parts.
struct SplitExponential {
  float scale;  // 2^n
  float p;
};

// y must be in -86 <= y <= 87, where 2^n and the result are normal numbers.
HOST_DEVICE SplitExponential split_exponential(float y) {
  constexpr float magic = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low mantissa bits
  const float shifted = y * 1.44269504f + magic;
  const float n = shifted - magic;
  const float r = (y - n * 0.693359375f) + n * 2.12194440e-4f;  // n ln(2) in two parts, the first one exact
  // minimax, relative error 1.4e-8; summed in pairs to shorten the chain of dependent operations
  const float r2 = r * r;
  const float low = 1.66665428e-1f * r + 0.5f, high = 8.36661569e-3f * r + 4.16662813e-2f;
  const float q = (1.39465057e-3f * r2 + high) * r2 + low;
  const auto bits = (__builtin_bit_cast(uint32_t, shifted) + 127u) << 23;
  return {__builtin_bit_cast(float, bits), q * r2 + r};
}

// x, or the limit with the sign of x if that is nearer to zero; NaN gives the limit, too. The comparison is in
// integers, because for one of floats the compiler would carry the limits through all later operations as a separate
// path, subnormal products included.
HOST_DEVICE float clamp_magnitude(float x, float limit) {
  const auto bits = __builtin_bit_cast(uint32_t, x), most = __builtin_bit_cast(uint32_t, limit);
  const uint32_t magnitude = bits & 0x7fffffffu;
  return __builtin_bit_cast(float, (bits & 0x80000000u) | (magnitude < most ? magnitude : most));
}

HOST_DEVICE float sigmoid(float x) {
#ifdef __CUDA_ARCH__
  return 1.0f / (1.0f + expf(-x));
#else
  const SplitExponential e = split_exponential(clamp_magnitude(-x, 86.0f));
  float y = 1.0f / (1.0f + (e.scale + e.scale * e.p));
  y = x < -86.0f ? 0.0f : y;  // makes σ(-inf) exactly 0, which the limit is not
  return x == x ? y : x;
#endif
}

// tanh |x| = t / (t + 2) with t = e^2|x| - 1 keeps full relative precision near zero and does not amplify the error of
// t, as t >= 0.
HOST_DEVICE float tanh(float x) {
#ifdef __CUDA_ARCH__
  return tanhf(x);
#else
  const SplitExponential e = split_exponential(clamp_magnitude(2.0f * __builtin_fabsf(x), 40.0f));
  const float t = e.scale * e.p + (e.scale - 1.0f);
  const float y = __builtin_copysignf(t / (t + 2.0f), x);
  return x == x ? y : x;
#endif
}

// a b + c d. A compiler that fuses multiplications and additions may fuse either product, and not the same one in all
// kernels of a cell, whose results must be equal: on a CPU with such instructions it is always the first.
template <typename T>
HOST_DEVICE T sum_of_products(T a, T b, T c, T d) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  return std::fma(a, b, c * d);
#else
  return a * b + c * d;
#endif
}

HOST_DEVICE double sigmoid(double x) { return 1.0 / (1.0 + ::exp(-x)); }
HOST_DEVICE double tanh(double x) { return ::tanh(x); }

}  // namespace fused_rnn

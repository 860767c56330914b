// Launches the kernels on the host shim and compares what they compute with plain loops.
// Usage: checks NAME SEED. Exits with 0 if all is right, else says on stderr what is not and exits with 1.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels.h"

using namespace fused_rnn;
using namespace fused_rnn::cuda;
using host_shim::launch;

namespace {

void expect(bool condition, const char* what) {
  if (!condition) throw std::runtime_error(std::string("wrong ") + what);
}

// Small numbers without a pattern.
float noise(size_t i) { return static_cast<float>(i * 7919 % 101) / 101.0f - 0.5f; }

std::vector<float> noises(size_t n, size_t first = 0) {
  std::vector<float> values(n);
  for (size_t i = 0; i < n; ++i) values[i] = noise(first + i);
  return values;
}

std::vector<float> expected_recurrence(const Recurrence& r) {
  const int size = r.batch * r.units;
  std::vector<float> y(r.x, r.x + r.steps * size);
  for (int t = 1; t < r.steps; ++t)
    for (int i = 0; i < size; ++i)
      for (int k = 0; k < r.units; ++k)
        y[t * size + i] += r.weight[i % r.units * r.units + k] * y[(t - 1) * size + i / r.units * r.units + k];
  return y;
}

void check_recurrence(unsigned seed) {
  constexpr int blocks = 3, threads = 40, steps = 5, batch = 3, units = 12;
  const auto x = noises(steps * batch * units), weight = noises(units * units, 1000);
  std::vector<float> exchanged(2 * batch * units), y(steps * batch * units, NAN);
  unsigned arrivals = 0, failed = 0;
  const Recurrence r{steps, batch, units, x.data(), weight.data(), exchanged.data(), y.data(), &arrivals, &failed};
  launch({{blocks}, {threads}, shared_bytes(r, blocks), seed}, recur, r);
  const auto expected = expected_recurrence(r);
  for (size_t i = 0; i < y.size(); ++i) expect(std::fabs(y[i] - expected[i]) < 1e-4f, "y");
  expect(failed == 0, "flag of failure");
}

template <typename S>
void check_product(unsigned seed) {
  constexpr int depth = 48;
  std::vector<S> a(16 * depth), b(8 * depth);
  for (size_t i = 0; i < a.size(); ++i) a[i] = narrow<S>(noise(i));
  for (size_t i = 0; i < b.size(); ++i) b[i] = narrow<S>(noise(i + 1000));
  std::vector<float> c(16 * 8);
  const size_t shared = sizeof(S) * (16 + 8) * (depth + padding);
  launch({{1}, {32}, shared, seed}, multiply<S>, Product<S>{depth, a.data(), b.data(), c.data()});
  for (int i = 0; i < 16 * 8; ++i) {
    double sum = 0;
    for (int k = 0; k < depth; ++k) sum += double{widen(a[i / 8 * depth + k])} * widen(b[i % 8 * depth + k]);
    expect(std::fabs(c[i] - sum) < 1e-5, "product");
  }
}

void check_shuffles(unsigned seed) {
  const auto in = noises(32);
  std::vector<float> out(4 * 32);
  launch({{1}, {32}, 0, seed}, shuffle, in.data(), out.data());
  double sum = 0;
  for (const float value : in) sum += value;
  for (int i = 0; i < 32; ++i) {
    expect(std::fabs(out[i] - sum) < 1e-5, "__shfl_xor_sync");
    expect(out[32 + i] == in[5], "__shfl_sync");
    expect(out[64 + i] == in[i < 1 ? i : i - 1], "__shfl_up_sync");
    expect(out[96 + i] == in[i > 29 ? i : i + 2], "__shfl_down_sync");
  }
}

template <typename T>
void check_exchange(unsigned seed) {
  constexpr int n = 5;
  T from[n], to[n];
  for (size_t i = 0; i < sizeof(from); ++i) reinterpret_cast<unsigned char*>(from)[i] = static_cast<unsigned char>(i);
  launch({{1}, {n}, 0, seed}, exchange<T>, from, to);
  expect(memcmp(from, to, sizeof(from)) == 0, "exchange");
}

// The positive number with these bits from the definition of the format, as if its exponents had no end.
double value_of(unsigned bits, int exponent_bits, int fraction_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1, exponent = static_cast<int>(bits >> fraction_bits);
  const double fraction = std::ldexp(bits & ((1u << fraction_bits) - 1), -fraction_bits);
  return exponent ? std::ldexp(1 + fraction, exponent - bias) : std::ldexp(fraction, 1 - bias);
}

template <typename S>
void check_narrow(float value, unsigned bits) {
  expect(narrow<S>(value).bits == bits, "rounding");
  expect(narrow<S>(-value).bits == (bits | 0x8000u), "rounding of a negative number");
}

// Every number keeps its value, and between it and the next the middle is where rounding turns.
template <typename S>
void check_rounding(int exponent_bits, int fraction_bits) {
  const unsigned infinity = ((1u << exponent_bits) - 1) << fraction_bits;
  for (unsigned bits = 0; bits < infinity; ++bits) {
    const double value = value_of(bits, exponent_bits, fraction_bits);
    const double next = value_of(bits + 1, exponent_bits, fraction_bits);
    const auto middle = static_cast<float>((value + next) / 2);
    expect(widen(S{static_cast<uint16_t>(bits)}) == value, "value of a bit pattern");
    check_narrow<S>(static_cast<float>(value), bits);
    check_narrow<S>(std::nextafter(middle, 0.0f), bits);
    check_narrow<S>(middle, bits + bits % 2);
    check_narrow<S>(std::nextafter(middle, INFINITY), bits + 1);
  }
  check_narrow<S>(INFINITY, infinity);
  expect(widen(S{static_cast<uint16_t>(infinity)}) == INFINITY, "infinity");
}

template <typename S>
void check_conversions(unsigned seed) {
  const float in[] = {1.0f, -0.0f, 3.14159265f, NAN, std::numeric_limits<float>::signaling_NaN(), 1e-40f, 3e38f};
  constexpr unsigned n = sizeof(in) / sizeof(float);
  S narrowed[n];
  float widened[n];
  uint32_t pairs[n];
  launch({{1}, {n}, 0, seed}, convert<S>, in, narrowed, widened, pairs);
  for (unsigned i = 0; i < n; ++i) {
    expect(std::isnan(widened[i]) == std::isnan(in[i]), "NaN");
    expect(pairs[i] == (narrow<S>(in[i]).bits | uint32_t{narrow<S>(-in[i]).bits} << 16), "pair");
    expect(narrowed[i].bits == narrow<S>(in[i]).bits, "narrowed value");
  }
}

void check_conversions(unsigned seed) {
  check_conversions<BFloat16>(seed);
  check_conversions<Half>(seed);
  check_rounding<BFloat16>(8, 7);
  check_rounding<Half>(5, 10);
}

void check_indices(unsigned seed) {
  std::vector<unsigned> own(2 * 3 * 2 * 5 * 2 * 3);
  unsigned all = 0;
  double sum = 0;
  launch({{2, 3, 2}, {5, 2, 3}, 0, seed}, count, own.data(), &all, &sum);
  for (const unsigned times : own) expect(times == 1, "index");
  expect(all == own.size() && sum == 0.5 * own.size(), "atomicAdd");
}

void check_bounded_wait(unsigned seed) {
  unsigned arrivals = 0, failed = 0, gave_up[4] = {};
  launch({{4}, {1}, 0, seed}, wait_in_vain, &arrivals, &failed, gave_up);
  expect(failed == 1, "flag of failure");
  expect(gave_up[0] == 0, "result of the block that does not wait");
  for (int block = 1; block < 4; ++block) expect(gave_up[block] == 1, "result of wait_for");
}

void check(const std::string& name, unsigned seed) {
  const unsigned never = 0;
  alignas(16) const float numbers[8] = {};
  float number;
  if (name == "recurrence") return check_recurrence(seed);
  if (name == "product_bfloat16") return check_product<BFloat16>(seed);
  if (name == "product_half") return check_product<Half>(seed);
  if (name == "shuffles") return check_shuffles(seed);
  if (name == "conversions") return check_conversions(seed);
  if (name == "indices") return check_indices(seed);
  if (name == "bounded_wait") return check_bounded_wait(seed);
  if (name == "exchange") {
    check_exchange<Half>(seed);
    check_exchange<float>(seed);
    check_exchange<double>(seed);
    return check_exchange<Vector<BFloat16, 8>>(seed);
  }
  if (name == "return_early") return launch({{2}, {4}, 0, seed}, return_early);
  if (name == "meet_apart") return launch({{2}, {4}, 0, seed}, meet_apart);
  if (name == "spin") return launch({{2}, {4}, 0, seed, 100}, spin, &never);
  if (name == "load_misaligned") return launch({{1}, {1}, 0, seed}, load_misaligned, numbers, &number);
  throw std::runtime_error("unknown check " + name);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  try {
    check(argv[1], static_cast<unsigned>(std::atoi(argv[2])));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}

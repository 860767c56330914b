// A program that launches small kernels on the host shim and compares their results with plain loops.
// Usage: checks NAME SEED. Exits with 0 if all is right, else says on stderr what is wrong and exits with 1.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "cluster_kernels.h"
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

void check_hand_over(unsigned seed) {
  constexpr int steps = 7, warps = 3;
  std::vector<float> sums(steps * 32);
  launch({{1}, {32 * warps}, 2 * 32 * warps * sizeof(float), seed}, hand_over, HandOver{steps, sums.data()});
  for (int t = 0; t < steps; ++t)
    for (int lane = 0; lane < 32; ++lane)
      expect(sums[32 * t + lane] == 2 * (t * 100 + 31 - lane) + 10 + 20, "sum that was handed over");
}

uint16_t element(const std::vector<uint32_t>& matrices, int matrix, int row, int column) {
  return static_cast<uint16_t>(matrices[32 * matrix + 4 * row + column / 2] >> 16 * (column % 2));
}

std::vector<uint32_t> four_matrices() {
  std::vector<uint32_t> in(4 * 32);
  for (unsigned i = 0; i < in.size(); ++i) in[i] = 2 * i | (2 * i + 1) << 16;
  return in;
}

void check_transposition(unsigned seed) {
  const auto in = four_matrices();
  std::vector<uint32_t> out(3 * 4 * 32);
  launch({{1}, {32}, 512, seed}, transpose, in.data(), out.data());
  for (int m = 0; m < 4; ++m)
    for (int row = 0; row < 8; ++row)
      for (int column = 0; column < 8; ++column) {
        expect(element(out, m, row, column) == element(in, m, column, row), "transpose_matrix");
        expect(element(out, 4 + m, row, column) == element(in, m, column, row), "load_matrices_transposed, four");
        expect(element(out, 8 + m, row, column) == element(in, 0, column, row), "load_matrices_transposed, one");
      }
}

void check_stored_matrices(unsigned seed) {
  const auto in = four_matrices();
  std::vector<uint32_t> out(6 * 4 * 32);
  launch({{1}, {32}, 512, seed}, store_matrices_on_all_ways, in.data(), out.data());
  for (int way = 0; way < 6; ++way)
    for (int m = 0; m < 1 << way % 3; ++m)
      for (int row = 0; row < 8; ++row)
        for (int column = 0; column < 8; ++column)
          expect(element(out, 4 * way + m, row, column) ==
                     (way < 3 ? element(in, m, row, column) : element(in, m, column, row)),
                 way < 3 ? "store_matrices" : "store_matrices_transposed");
}

void check_approximations(unsigned seed) {
  std::vector<float> in = {0.0f, -0.0f, INFINITY, -INFINITY, NAN, 1e-30f, 8.0f, -100.0f, 200.0f, -200.0f, 1e38f};
  for (int i = -60; i < 60; ++i) in.push_back(0.07f * static_cast<float>(i) + 0.001f);
  const size_t n = in.size();
  std::vector<float> out(3 * n);
  launch({{1}, {static_cast<unsigned>(n)}, 0, seed}, approximate, in.data(), out.data());
  const auto check = [&](size_t first, double (*function)(double), double allowed, const char* name) {
    int inexact = 0;
    for (size_t i = 0; i < n; ++i) {
      const double exact = function(in[i]), value = out[first + i];
      expect(std::isnan(exact) == std::isnan(value), name);
      if (std::isnan(exact)) continue;
      const bool vast = static_cast<float>(exact) == INFINITY || static_cast<float>(exact) == -INFINITY;
      const bool none = std::fabs(exact) < 0x1p-126;  // subnormal
      expect(vast ? std::isinf(value) : std::fabs(value - (none ? 0 : exact)) <= std::fabs(exact) * allowed, name);
      expect(std::signbit(value) == std::signbit(exact), name);
      inexact += std::fabs(value - exact) > std::fabs(exact) * allowed / 4;
    }
    expect(inexact > 60, name);
  };
  check(0, [](double x) { return std::tanh(x); }, 0x1p-11, "approximate tanh");
  for (size_t i = 0; i < n; ++i) expect(!(std::fabs(out[i]) > 1), "range of the approximate tanh");
  // a result in float adds its own rounding
  check(n, [](double x) { return std::exp2(x); }, 0x1p-22 + 0x1p-24, "approximate exp2");
  check(2 * n, [](double x) { return 1 / x; }, 0x1p-23 + 0x1p-24, "approximate reciprocal");
}

void check_passing_on(unsigned seed) {
  auto in = noises(32);
  for (const bool positive : {false, true}) {
    std::vector<float> out(4 * 32);
    std::vector<Vector<float, 4>> box(32);
    std::vector<Vector<float, 2>> small_box(32);
    if (positive)
      for (float& value : in) value = std::fabs(value) + 1;
    launch({{1}, {32}, 32 * sizeof(float), seed}, pass_on, in.data(), box.data(), small_box.data(), out.data());
    for (int i = 0; i < 32; ++i) {
      expect(out[i] == 4 * in[31 - i], "message of 16 bytes");
      expect(out[96 + i] == 2 * in[31 - i], "message of 8 bytes");
      expect(out[32 + i] == in[i], "load_shared");
      expect(out[64 + i] == positive, "__all_sync");
    }
  }
}

void check_words_of_messages(unsigned seed) {
  const std::vector<Words<4>> in{{0xffffffff, 0xffff0000, 0x0000ffff, 0x7fffffff}, {0xffffffff, 0, 1, 0xfffffffe}};
  std::vector<Words<4>> out(in.size());
  launch({{1}, {static_cast<unsigned>(in.size())}, 0, seed}, make_sendable, in.data(), out.data());
  for (size_t i = 0; i < in.size(); ++i) {
    expect(is_whole(out[i]) && !is_whole(in[i]), "message that has come");
    for (int j = 0; j < 4; ++j) {
      const uint32_t word = out[i].values[j];
      if (in[i].values[j] != no_message) expect(word == in[i].values[j], "word that is no NaN");
      if (in[i].values[j] != no_message) continue;
      expect(std::isnan(__builtin_bit_cast(float, word)), "NaN as a float");
      expect(std::isnan(low_of<BFloat16>(word)) && std::isnan(high_of<BFloat16>(word)), "NaN in bfloat16");
      expect(std::isnan(low_of<Half>(word)) && std::isnan(high_of<Half>(word)), "NaN in float16");
    }
  }
}

// A launch of some clusters.
host_shim::Launch clusters(unsigned count, unsigned size, unsigned threads, size_t shared_bytes, unsigned seed) {
  host_shim::Launch shape{{count * size}, {threads}, shared_bytes, seed};
  shape.cluster = size;
  return shape;
}

void check_cluster_sums(unsigned seed) {
  constexpr unsigned count = 2, threads = 40;
  for (const unsigned size : {1u, 2u, 5u, 16u}) {
    std::vector<unsigned> in(count * size * threads), sums(in.size());
    for (unsigned i = 0; i < in.size(); ++i) in[i] = i * 7919;
    launch(clusters(count, size, threads, threads * sizeof(unsigned), seed), add_over_cluster, in.data(), sums.data());
    for (unsigned i = 0; i < in.size(); ++i) {
      const unsigned rank = i / threads % size;
      unsigned sum = rank;
      for (unsigned other = 0; other < size; ++other) sum += in[i - rank * threads + other * threads];
      expect(sums[i] == sum, "sum over a cluster");
    }
  }
}

template <int words>
void check_gathering(unsigned size, unsigned seed) {
  constexpr unsigned threads = 24, steps = 7;
  const unsigned all = size * threads;
  std::vector<uint32_t> numbers(steps * all);
  unsigned failed = 0;
  launch(clusters(1, size, threads, 2 * all * 4 * words + 16, seed), gather<words>,
         Gathering<words>{steps, numbers.data(), &failed});
  expect(failed == 0, "flag of failure");
  uint32_t sum = 0;
  for (unsigned t = 0; t < steps; ++t) {
    uint32_t next = 0;
    for (unsigned i = 0; i < all; ++i) {
      expect(numbers[t * all + i] == next_number(sum, i, t), "number gathered");
      next += numbers[t * all + i] + i % words;
    }
    sum = next;
  }
}

void check_gathering(unsigned seed) {
  check_gathering<4>(4, seed);
  check_gathering<2>(3, seed);
  check_gathering<2>(1, seed);
}

void check_bounded_phase(unsigned seed) {
  unsigned failed = 0, gave_up[2 * 4] = {};
  host_shim::Launch shape{{2}, {4}, 16, seed};
  shape.gives_up = true;
  launch(shape, wait_for_nothing, &failed, gave_up);
  expect(failed == 1, "flag of failure");
  for (const unsigned given_up : gave_up) expect(given_up, "result of wait_for_phase");
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

// The positive number with these bits, by the definition of the format, as if its exponents had no end.
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

// Every number keeps its value, and rounding turns in the middle between a number and the next.
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
  for (const unsigned earlier : {0u, ~0u - 4}) {  // the fifth of the arrivals after the latter would wrap around
    unsigned arrivals = earlier, failed = 0, gave_up[4] = {};
    launch({{4}, {1}, 0, seed}, wait_in_vain, earlier, &arrivals, &failed, gave_up);
    expect(failed == 1, "flag of failure");
    expect(gave_up[0] == 0, "result of the block that does not wait");
    for (int block = 1; block < 4; ++block) expect(gave_up[block] == 1, "result of wait_for");
  }
}

void check_exchange(unsigned seed) {
  check_exchange<Half>(seed);
  check_exchange<float>(seed);
  check_exchange<double>(seed);
  check_exchange<Vector<BFloat16, 8>>(seed);
}

const std::map<std::string, void (*)(unsigned seed)> checks = {
    {"recurrence", check_recurrence},
    {"product_bfloat16", check_product<BFloat16>},
    {"product_half", check_product<Half>},
    {"shuffles", check_shuffles},
    {"exchange", check_exchange},
    {"conversions", check_conversions},
    {"indices", check_indices},
    {"bounded_wait", check_bounded_wait},
    {"hand_over", check_hand_over},
    {"transposition", check_transposition},
    {"stored_matrices", check_stored_matrices},
    {"approximations", check_approximations},
    {"passing_on", check_passing_on},
    {"words_of_messages", check_words_of_messages},
    {"cluster_sums", check_cluster_sums},
    {"gathering", check_gathering},
    {"bounded_phase", check_bounded_phase},
};

// Kernels that the shim must end with a message.
struct Misuse {
  void (*kernel)();
  unsigned threads;
};

const std::map<std::string, Misuse> misuses = {
    {"return_early", {return_early, 4}},
    {"meet_apart", {meet_apart, 4}},
    {"arrive_twice", {arrive_twice, 64}},
    {"expect_others", {expect_others, 64}},
    {"arrive_at_no_barrier", {arrive_at_no_barrier, 64}},
    {"arrive_and_leave", {arrive_and_leave, 64}},
    {"arrive_twice_in_cluster", {arrive_twice_in_cluster, 4}},
    {"leave_others_in_cluster", {leave_others_in_cluster, 4}},
    {"push_nowhere", {push_nowhere, 1}},
    {"map_beyond_the_cluster", {map_beyond_the_cluster, 1}},
    {"expect_twice", {expect_twice, 1}},
    {"expect_too_much", {expect_too_much, 1}},
    {"expect_in_vain", {expect_in_vain, 1}},
};

void check(const std::string& name, unsigned seed) {
  const unsigned never = 0;
  alignas(16) const float numbers[8] = {};
  float number;
  if (checks.count(name)) return checks.at(name)(seed);
  if (name == "spin") return launch({{2}, {4}, 0, seed, 100}, spin, &never);
  if (name == "load_misaligned") return launch({{1}, {1}, 0, seed}, load_misaligned, numbers, &number);
  if (misuses.count(name)) return launch(clusters(1, 2, misuses.at(name).threads, 64, seed), misuses.at(name).kernel);
  throw std::runtime_error("unknown check " + name);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  fused_rnn::cuda::seeded_fault = argv[3];
  try {
    check(argv[1], static_cast<unsigned>(std::atoi(argv[2])));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}

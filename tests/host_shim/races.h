// Calls, forward and backward, that a sanitizer watches, with operands of their own.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <vector>

#include "calls.h"

namespace fused_rnn::cuda {

// Arrays of a run, with small numbers in them.
template <typename S>
class Memory {
 public:
  S* array(size_t size) {
    kept_.emplace_back(size);
    for (S& value : kept_.back()) value = narrow<S>(static_cast<float>(++drawn_ * 7919 % 101) / 101.0f - 0.5f);
    return kept_.back().data();
  }
  const std::vector<std::vector<S> >& all() const { return kept_; }
  bool finite() const {
    for (const auto& array : kept_)
      for (const S value : array)
        if (!std::isfinite(widen(value))) return false;
    return true;
  }

 private:
  std::vector<std::vector<S> > kept_;
  size_t drawn_ = 0;
};

struct Options {
  int64_t T, B, H;
  bool regularised = true;  // with zoneout and clipping
  bool resets = false;
};

// Run one layer forward and backward and return the bits of all arrays. `prepare` plans either call, and S is the type
// of the tensors.
template <typename S, typename F>
std::vector<unsigned char> run_layer(Modulates modulates, const Options& options, unsigned seed, const F& prepare) {
  const auto [T, B, H, regularised, resets] = options;
  const int64_t I = modulates == Modulates::hidden ? H : H % 8 == 0 ? 24 : 3, G = 4, saved = 4 * H + I;
  Memory<S> m;
  std::vector<int64_t> lengths(B, T);
  // the first tile of 8 ends before the second, which the same team may run
  std::fill(lengths.begin(), lengths.end() - 1, T - 1), lengths[0] = 1;
  unsigned timed_out = 0;
  // of every kind of step some: the first and the last, some sequences and all
  const auto begins = std::make_unique<bool[]>(T * B);
  for (int64_t i = 0; i < T * B; ++i) begins[i] = i % 3 == 0 || i / B == T - 1;
  std::vector<double> of_h(B * H), of_c(B * H);  // large enough for the sums of any type
  Beginnings<void> beginnings{};
  if (resets) beginnings = {begins.get(), m.array(B * H), m.array(B * H), of_h.data(), of_c.data()};
  const Layer layer{.modulates = modulates,
                    .reverse = seed % 2 == 1,
                    .T = T,
                    .B = B,
                    .I = I,
                    .H = H,
                    .lengths = lengths.data(),
                    .timed_out = &timed_out,
                    .beginnings = beginnings};
  ForwardCall forward_call{layer, {}};
  auto& f = forward_call.arrays;
  if (regularised) f.keep_h = m.array(T * B * H), f.keep_c = m.array(T * B * H);
  f.projected = m.array(T * B * (G * H + I)), f.input = m.array(T * B * I);
  f.h_0 = m.array(B * H), f.c_0 = m.array(B * H);
  f.weight_ih = m.array(G * H * I), f.weight_hh = m.array(G * H * H), f.weight_mhh = m.array(I * H);
  f.bias_m = m.array(I), f.bias_ih = m.array(G * H), f.bias_hh = m.array(G * H);
  f.output = m.array(T * B * H), f.h_n = m.array(B * H), f.c_n = m.array(B * H);
  f.cells = m.array(T * B * H), f.saved = m.array(T * B * saved);
  BackwardCall backward_call{layer, {}, regularised ? 0.01 : INFINITY};
  auto& b = backward_call.arrays;
  b.keep_h = f.keep_h, b.keep_c = f.keep_c;
  b.d_output = m.array(T * B * H), b.d_h_n = m.array(B * H), b.d_c_n = m.array(B * H);
  b.d_cells = m.array(T * B * H);
  b.output = f.output, b.cells = f.cells, b.saved = f.saved, b.input = f.input, b.h_0 = f.h_0, b.c_0 = f.c_0;
  b.weight_ih = f.weight_ih, b.weight_hh = f.weight_hh, b.weight_mhh = f.weight_mhh;
  b.d_h_0 = m.array(B * H), b.d_c_0 = m.array(B * H), b.d = m.array(T * B * (G * H + I));
  b.d_input = m.array(T * B * I);
  const auto run = [&](const auto& call) { return run_in_workspace(prepare(call)); };
  std::string error = run(forward_call);
  if (error.empty()) error = run(backward_call);
  if (error.empty() && timed_out) error = "a block did not come in time";
  if (error.empty() && !m.finite()) error = "NaN among the results";
  if (!error.empty()) throw std::runtime_error(error);
  std::vector<unsigned char> bits;
  for (const auto& array : m.all()) {
    const auto* const begin = reinterpret_cast<const unsigned char*>(array.data());
    bits.insert(bits.end(), begin, begin + array.size() * sizeof(S));
  }
  return bits;
}

// The main function of a program. Its arguments are the members of Chip in order and a seed for the order of threads;
// `run` gets them, with `clusters` clusters of any size.
template <typename F>
int run_program(char** arguments, int clusters, const F& run) {
  const auto argument = [&](int i) { return std::atoi(arguments[i]); };
  Chip chip{argument(1), argument(2)};
  std::fill(std::begin(chip.clusters), std::end(chip.clusters), clusters);
  try {
    run(chip, static_cast<unsigned>(argument(3)));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}

}  // namespace fused_rnn::cuda

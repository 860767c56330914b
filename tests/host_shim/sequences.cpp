// The calls of csrc/cuda/api.h on the host shim, as a library for tests/test_cuda_kernels.py. Built with -DRACES it is
// a program instead, which runs every cell on operands of its own for a sanitizer to watch. FUSED_RNN_CUDA_PLAN forces
// a plan, as it does on a GPU.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "launcher.h"

using namespace fused_rnn;
using namespace fused_rnn::cuda;

namespace {

// The workspace is full of NaN, because nobody promises the kernels a clean one.
std::string run_in_workspace(const Prepared& call) {
  if (!call.refusal.empty()) return call.refusal;
  const auto bytes = static_cast<size_t>(round_up(call.plan.workspace_bytes, 256));
  const std::unique_ptr<void, void (*)(void*)> workspace(std::aligned_alloc(256, bytes), std::free);
  std::memset(workspace.get(), 0xff, bytes);
  return call.run(workspace.get(), nullptr);
}

}  // namespace

#ifndef RACES

namespace {

template <typename S, typename Call>
Prepared prepare_on_host(const Call& call, const Chip& chip, HostLauncher launcher) {
  try {
    return prepare_as<S>(call, chip, forced_division(), launcher);
  } catch (const std::exception& error) {
    return {error.what(), {}, nullptr};
  }
}

template <typename Call>
Prepared prepared(const Call& call, const Chip& chip, HostLauncher launcher) {
  switch (call.type) {
    case Type::float32:
      return prepare_on_host<float>(call, chip, launcher);
    case Type::float64:
      return prepare_on_host<double>(call, chip, launcher);
    case Type::bfloat16:
      return prepare_on_host<BFloat16>(call, chip, launcher);
    case Type::float16:
      return prepare_on_host<Half>(call, chip, launcher);
  }
  return {"unknown type", {}, nullptr};
}

// An empty string or what went wrong, which the next call overwrites.
const char* keep(const std::string& error) {
  static std::string message;
  return (message = error).c_str();
}

template <typename Call>
const char* plan_call(const Call& call, const Chip& chip, Plan& plan) {
  const Prepared ready = prepared(call, chip, {});
  plan = ready.plan;
  return keep(ready.refusal);
}

}  // namespace

#  pragma GCC visibility push(default)
extern "C" {

// Fill in the plan of a call, or return why it cannot run.
const char* plan_forward_call(const ForwardCall* call, const Chip* chip, Plan* plan) {
  return plan_call(*call, *chip, *plan);
}
const char* plan_backward_call(const BackwardCall* call, const Chip* chip, Plan* plan) {
  return plan_call(*call, *chip, *plan);
}

// Run a call, or return what went wrong. The last `missing` blocks of a grid whose blocks wait for each other do not
// come.
const char* run_forward_call(const ForwardCall* call, const Chip* chip, unsigned seed, int missing) {
  return keep(run_in_workspace(prepared(*call, *chip, {seed, missing})));
}
const char* run_backward_call(const BackwardCall* call, const Chip* chip, unsigned seed, int missing) {
  return keep(run_in_workspace(prepared(*call, *chip, {seed, missing})));
}

}  // extern "C"
#  pragma GCC visibility pop

#else

namespace {

// Arrays of a run, with small numbers in them.
template <typename S>
class Memory {
 public:
  S* array(size_t size) {
    kept_.emplace_back(size);
    for (S& value : kept_.back()) value = narrow<S>(static_cast<float>(++drawn_ * 7919 % 101) / 101.0f - 0.5f);
    return kept_.back().data();
  }
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

template <typename Cell, Modulates modulates, typename S>
void run_cell(const Chip& chip, unsigned seed) {
  constexpr int64_t T = 3, B = 9, H = 21, I = modulates == Modulates::hidden ? H : 3, G = 4, saved = 4 * H + I;
  Memory<S> m;
  std::vector<int64_t> lengths(B, T);
  // the first tile of 8 ends before the second, which the same team may run
  std::fill(lengths.begin(), lengths.end() - 1, T - 1), lengths[0] = 1;
  unsigned timed_out = 0;
  const Layer layer{.modulates = modulates,
                    .reverse = seed % 2 == 1,
                    .T = T,
                    .B = B,
                    .I = I,
                    .H = H,
                    .lengths = lengths.data(),
                    .timed_out = &timed_out};
  ForwardCall forward_call{layer, {}};
  auto& f = forward_call.arrays;
  f.keep_h = m.array(T * B * H), f.keep_c = m.array(T * B * H);
  f.projected = m.array(T * B * (G * H + I)), f.input = m.array(T * B * I);
  f.h_0 = m.array(B * H), f.c_0 = m.array(B * H);
  f.weight_ih = m.array(G * H * I), f.weight_hh = m.array(G * H * H), f.weight_mhh = m.array(I * H);
  f.bias_m = m.array(I), f.bias_ih = m.array(G * H), f.bias_hh = m.array(G * H);
  f.output = m.array(T * B * H), f.h_n = m.array(B * H), f.c_n = m.array(B * H);
  f.cells = m.array(T * B * H), f.saved = m.array(T * B * saved);
  BackwardCall backward_call{layer, {}, 0.01};
  auto& b = backward_call.arrays;
  b.keep_h = f.keep_h, b.keep_c = f.keep_c;
  b.d_output = m.array(T * B * H), b.d_h_n = m.array(B * H), b.d_c_n = m.array(B * H);
  b.d_cells = m.array(T * B * H);
  b.output = f.output, b.cells = f.cells, b.saved = f.saved, b.input = f.input, b.h_0 = f.h_0, b.c_0 = f.c_0;
  b.weight_ih = f.weight_ih, b.weight_hh = f.weight_hh, b.weight_mhh = f.weight_mhh;
  b.d_h_0 = m.array(B * H), b.d_c_0 = m.array(B * H), b.d = m.array(T * B * (G * H + I));
  b.d_input = m.array(T * B * I);
  const auto run = [&](const auto& call) {
    return run_in_workspace(
        prepare_for<Cell, modulates, S, ChosenExchange>(call, chip, forced_division(), HostLauncher{seed}));
  };
  std::string error = run(forward_call);
  if (error.empty()) error = run(backward_call);
  if (error.empty() && timed_out) error = "a block did not come in time";
  if (error.empty() && !m.finite()) error = "NaN among the results";
  if (!error.empty()) throw std::runtime_error(error);
}

}  // namespace

// Arguments: the members of Chip in order, and a seed for the order of threads. -DRACES=1 runs an LSTM only.
int main(int, char** arguments) try {
  const auto argument = [&](int i) { return std::atoi(arguments[i]); };
  const Chip chip{argument(1), argument(2)};
  const auto seed = static_cast<unsigned>(argument(3));
  run_cell<Lstm, Modulates::nothing, float>(chip, seed);
#  if RACES > 1
  run_cell<Lstm, Modulates::nothing, BFloat16>(chip, seed);
  run_cell<Lstm, Modulates::input, float>(chip, seed);
  run_cell<Lstm, Modulates::hidden, BFloat16>(chip, seed);
  run_cell<Gru, Modulates::nothing, float>(chip, seed);
  run_cell<Gru, Modulates::input, BFloat16>(chip, seed);
  run_cell<GruResetAfter, Modulates::nothing, BFloat16>(chip, seed);
  run_cell<Rnn<Relu>, Modulates::nothing, float>(chip, seed);
#  endif
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}

#endif

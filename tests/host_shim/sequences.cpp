// The calls of csrc/cuda/api.h on the host shim, as a library for tests/test_cuda_kernels.py. Built with -DRACES it is
// a program instead, which runs every cell on operands of its own for a sanitizer to watch.

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "../../csrc/cuda/sequence.h"

using namespace fused_rnn;
using namespace fused_rnn::cuda;

namespace {

struct HostLauncher {
  unsigned seed;
  int missing = 0;  // blocks that do not come, of those that should run together

  template <typename Operands>
  std::string launch(void (*kernel)(const Operands), int64_t blocks, int64_t shared_bytes, bool together,
                     const Operands& q) {
    try {
      const host_shim::Launch shape{{static_cast<unsigned>(blocks - (together ? missing : 0))},
                                    {threads},
                                    static_cast<size_t>(shared_bytes),
                                    seed,
                                    uint64_t{1} << 24};
      host_shim::launch(shape, kernel, q);
      return "";
    } catch (const std::exception& error) {
      return error.what();
    }
  }
};

// The workspace is full of NaN, because nobody promises the kernels a clean one.
template <typename Planner, typename Kernel>
std::string run_in_workspace(Planner planner, Kernel kernel, const Layer& layer, const Chip& chip,
                             HostLauncher launcher) {
  const auto bytes = static_cast<size_t>(round_up(workspace_bytes_of(planner, layer, chip), 256));
  const std::unique_ptr<void, void (*)(void*)> workspace(std::aligned_alloc(256, bytes), std::free);
  std::memset(workspace.get(), 0xff, bytes);
  return run_plan(planner, kernel, layer, chip, workspace.get(), launcher);
}

}  // namespace

#ifndef RACES

namespace {

// What a plan comes to: sequences of a tile, teams, parts of a team, most segments of a state, and whether a part of
// the weights is streamed.
struct Summary {
  int sequences, teams, parts, segments, streams, possible;
};

template <typename S, typename Call>
std::string run_on_host_as(const Call& call, const Chip& chip, HostLauncher launcher) {
  return dispatch_plan<S>(
      call, chip)([&](auto planner, auto kernel) { return run_in_workspace(planner, kernel, call, chip, launcher); });
}

template <typename Call>
std::string run_on_host(const Call& call, const Chip& chip, HostLauncher launcher) {
  switch (call.type) {
    case Type::float32:
      return run_on_host_as<float>(call, chip, launcher);
    case Type::float64:
      return run_on_host_as<double>(call, chip, launcher);
    case Type::bfloat16:
      return run_on_host_as<BFloat16>(call, chip, launcher);
    case Type::float16:
      return run_on_host_as<Half>(call, chip, launcher);
  }
  return "unknown type";
}

template <typename Call>
Summary summary(const Call& call, const Chip& chip) {
  return dispatch_plan<double>(call, chip)([&](auto planner, auto) {
    const auto q = planner.plan(nullptr).q;
    int segments;
    if constexpr (std::is_same_v<Call, ForwardCall>)
      segments = q.h.segments;
    else
      segments = q.d_gates.segments;
    return Summary{q.sequences, q.teams, q.parts, segments, planner.streams(), planner.possible()};
  });
}

}  // namespace

extern "C" {

// For calls in float64.
Summary plan_forward_call(const ForwardCall* call, const Chip* chip) { return summary(*call, *chip); }
Summary plan_backward_call(const BackwardCall* call, const Chip* chip) { return summary(*call, *chip); }

// Returns an empty string or what went wrong, which the next call overwrites. The last `missing` blocks of a grid whose
// blocks wait for each other do not come.
const char* run_forward_call(const ForwardCall* call, const Chip* chip, unsigned seed, int missing) {
  static std::string message;
  return (message = run_on_host(*call, *chip, {seed, missing})).c_str();
}

const char* run_backward_call(const BackwardCall* call, const Chip* chip, unsigned seed, int missing) {
  static std::string message;
  return (message = run_on_host(*call, *chip, {seed, missing})).c_str();
}

}  // extern "C"

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
  lengths[0] = 1, lengths[B - 1] = 2;
  unsigned timed_out = 0;
  const Layer layer{
      {}, modulates, {}, seed % 2 == 1, T, B, I, H, lengths.data(), &timed_out, m.array(T * B * H), m.array(T * B * H)};
  ForwardCall f{layer};
  f.projected = m.array(T * B * (G * H + I)), f.input = m.array(T * B * I);
  f.h_0 = m.array(B * H), f.c_0 = m.array(B * H);
  f.weight_ih = m.array(G * H * I), f.weight_hh = m.array(G * H * H), f.weight_mhh = m.array(I * H);
  f.bias_m = m.array(I), f.bias_ih = m.array(G * H), f.bias_hh = m.array(G * H);
  f.output = m.array(T * B * H), f.h_n = m.array(B * H), f.c_n = m.array(B * H);
  f.cells = m.array(T * B * H), f.saved = m.array(T * B * saved);
  BackwardCall b{layer};
  b.d_output = m.array(T * B * H), b.d_h_n = m.array(B * H), b.d_c_n = m.array(B * H);
  b.d_cells = m.array(T * B * H);
  b.output = f.output, b.cells = f.cells, b.saved = f.saved, b.input = f.input, b.h_0 = f.h_0, b.c_0 = f.c_0;
  b.weight_ih = f.weight_ih, b.weight_hh = f.weight_hh, b.weight_mhh = f.weight_mhh;
  b.d_h_0 = m.array(B * H), b.d_c_0 = m.array(B * H), b.d = m.array(T * B * (G * H + I));
  b.d_input = m.array(T * B * I);
  b.gradient_clip = 0.01;
  const ForwardPlanner<Cell, modulates, S> forward(f, chip);
  const BackwardPlanner<Cell, modulates, S> backward(b, chip);
  std::string error = run_in_workspace(forward, run_forward<Cell, modulates, S>, layer, chip, {seed});
  if (error.empty()) error = run_in_workspace(backward, run_backward<Cell, modulates, S>, layer, chip, {seed});
  if (error.empty() && timed_out) error = "a block did not come in time";
  if (error.empty() && !m.finite()) error = "NaN among the results";
  if (!error.empty()) throw std::runtime_error(error);
}

}  // namespace

// Arguments: the members of Chip in order, and a seed for the order of threads. -DRACES=1 runs an LSTM only.
int main(int, char** arguments) try {
  const auto argument = [&](int i) { return std::atoi(arguments[i]); };
  const Chip chip{argument(1), argument(2), argument(3), argument(4)};
  const auto seed = static_cast<unsigned>(argument(5));
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

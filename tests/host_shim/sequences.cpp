// The calls of csrc/cuda/api.h on the host shim, as a library for tests/test_cuda_kernels.py. Built with -DRACES it is
// a program instead, which runs every cell on operands of its own for a sanitizer to watch.

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

  template <typename Operands>
  std::string launch(void (*kernel)(const Operands), int64_t blocks, int64_t shared_bytes, bool, const Operands& q) {
    try {
      const host_shim::Launch shape{
          {static_cast<unsigned>(blocks)}, {threads}, static_cast<size_t>(shared_bytes), seed, uint64_t{1} << 24};
      host_shim::launch(shape, kernel, q);
      return "";
    } catch (const std::exception& error) {
      return error.what();
    }
  }
};

// The workspace is full of NaN, because nobody promises the kernels a clean one.
template <typename S, typename Call>
std::string run_in_workspace(const Call& call, const Chip& chip, unsigned seed) {
  const auto bytes = static_cast<size_t>(round_up(workspace_bytes_as<S>(call, chip), 256));
  const std::unique_ptr<void, void (*)(void*)> workspace(std::aligned_alloc(256, bytes), std::free);
  std::memset(workspace.get(), 0xff, bytes);
  HostLauncher launcher{seed};
  return run_as<S>(call, chip, workspace.get(), launcher);
}

template <typename Call>
std::string run_on_host(const Call& call, const Chip& chip, unsigned seed) {
  switch (call.type) {
    case Type::float32:
      return run_in_workspace<float>(call, chip, seed);
    case Type::bfloat16:
      return run_in_workspace<BFloat16>(call, chip, seed);
#ifndef RACES
    case Type::float64:
      return run_in_workspace<double>(call, chip, seed);
    case Type::float16:
      return run_in_workspace<Half>(call, chip, seed);
#endif
    default:
      return "not built for this type";
  }
}

}  // namespace

#ifndef RACES

namespace {

// What a plan comes to: sequences of a tile, teams, parts of a team, most segments of a state, and blocks of weights of
// a warp in shared memory.
struct Summary {
  int sequences, teams, parts, segments, resident;
};

template <typename Call>
Summary summary(const Call& call, const Chip& chip) {
  return dispatch_plan<double>(call, chip)([&](auto planner, auto) {
    const auto q = planner.plan(nullptr).q;
    if constexpr (std::is_same_v<Call, ForwardCall>)
      return Summary{q.sequences, q.teams, q.parts, q.h.segments, q.recurrent.resident};
    else
      return Summary{q.sequences, q.teams, q.parts, q.d_gates.segments, q.recurrent.resident};
  });
}

}  // namespace

extern "C" {

// For calls in float64.
Summary plan_forward_call(const ForwardCall* call, const Chip* chip) { return summary(*call, *chip); }
Summary plan_backward_call(const BackwardCall* call, const Chip* chip) { return summary(*call, *chip); }

// Returns an empty string or what went wrong, which the next call overwrites.
const char* run_forward_call(const ForwardCall* call, const Chip* chip, unsigned seed) {
  static std::string message;
  return (message = run_on_host(*call, *chip, seed)).c_str();
}

const char* run_backward_call(const BackwardCall* call, const Chip* chip, unsigned seed) {
  static std::string message;
  return (message = run_on_host(*call, *chip, seed)).c_str();
}

}  // extern "C"

#else

namespace {

// Arrays of a run, with small numbers in them.
class Memory {
 public:
  explicit Memory(bool wide) : wide_(wide) {}

  void* array(size_t size) {
    kept_.emplace_back(size);
    for (size_t i = 0; i < size; ++i) {
      const float value = static_cast<float>(++drawn_ * 7919 % 101) / 101.0f - 0.5f;
      const BFloat16 narrow = float_to_bfloat16(value);
      if (wide_)
        kept_.back()[i] = value;
      else
        std::memcpy(reinterpret_cast<char*>(kept_.back().data()) + 2 * i, &narrow, 2);
    }
    return kept_.back().data();
  }

 private:
  bool wide_;
  std::vector<std::vector<float> > kept_;
  size_t drawn_ = 0;
};

void run_cell(CellId cell, bool multiplicative, Type type, const Chip& chip, unsigned seed) {
  constexpr int64_t T = 3, B = 9, I = 3, H = 21, G = 4, saved = 5 * H + I;
  Memory m(type == Type::float32);
  std::vector<int64_t> lengths(B, T);
  lengths[0] = 1, lengths[B - 1] = 2;
  unsigned timed_out = 0;
  const Layer layer{cell, multiplicative, type, seed % 2 == 1, T, B, I, H, lengths.data(), &timed_out};
  ForwardCall f{layer};
  f.projected = m.array(T * B * (G * H + I)), f.input = m.array(T * B * I);
  f.h_0 = m.array(B * H), f.c_0 = m.array(B * H);
  f.weight_ih = m.array(G * H * I), f.weight_hh = m.array(G * H * H), f.weight_mhh = m.array(I * H);
  f.bias_m = m.array(I), f.bias_ih = m.array(G * H), f.bias_hh = m.array(G * H);
  f.output = m.array(T * B * H), f.h_n = m.array(B * H), f.c_n = m.array(B * H), f.saved = m.array(T * B * saved);
  BackwardCall b{layer};
  b.d_output = m.array(T * B * H), b.d_h_n = m.array(B * H), b.d_c_n = m.array(B * H);
  b.output = f.output, b.saved = f.saved, b.input = f.input, b.h_0 = f.h_0, b.c_0 = f.c_0;
  b.weight_ih = f.weight_ih, b.weight_hh = f.weight_hh, b.weight_mhh = f.weight_mhh;
  b.d_h_0 = m.array(B * H), b.d_c_0 = m.array(B * H), b.d = m.array(T * B * (G * H + I));
  b.d_input = m.array(T * B * I);
  std::string error = run_on_host(f, chip, seed);
  if (error.empty()) error = run_on_host(b, chip, seed);
  if (error.empty() && timed_out) error = "a block did not come in time";
  if (!error.empty()) throw std::runtime_error(error);
}

}  // namespace

// Arguments: multiprocessors, bytes of shared memory, seed. Few of either make teams of several blocks, in which part
// of the weights is streamed.
int main(int, char** arguments) try {
  const Chip chip{std::atoi(arguments[1]), std::atoi(arguments[2])};
  const auto seed = static_cast<unsigned>(std::atoi(arguments[3]));
  for (const CellId cell : {CellId::rnn_tanh, CellId::rnn_relu, CellId::lstm, CellId::gru, CellId::gru_reset_after})
    for (const bool multiplicative : {false, true})
      for (const Type type : {Type::float32, Type::bfloat16}) run_cell(cell, multiplicative, type, chip, seed);
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}

#endif

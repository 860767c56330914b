// The calls of csrc/cuda/api.h by all kernels: a library for tests/test_cuda_kernels.py; with -DRACES a program, which
// runs every cell with the block kernels.

#ifndef RACES

#  include "calls.h"

namespace {

template <typename Call>
Prepared prepared(const Call& call, const Chip& chip, const Division& forced, const HostLauncher& launcher) {
  switch (call.type) {
    case Type::float32:
      return prepare_as<float>(call, chip, forced, launcher);
    case Type::float64:
      return prepare_as<double>(call, chip, forced, launcher);
    case Type::bfloat16:
      return prepare_as<BFloat16>(call, chip, forced, launcher);
    case Type::float16:
      return prepare_as<Half>(call, chip, forced, launcher);
  }
  return {"unknown type", {}, nullptr};
}

}  // namespace

#else

#  include "races.h"

using namespace fused_rnn;
using namespace fused_rnn::cuda;

namespace {

template <typename Cell, Modulates modulates, typename S>
void run_cell(const Chip& chip, unsigned seed) {
  for (const bool resets : {false, true})
    run_layer<S>(modulates, {.T = 3, .B = 9, .H = 21, .resets = resets}, seed, [&](const auto& call) {
      return prepare_for<Cell, modulates, S, ChosenExchange>(call, chip, forced_division(), HostLauncher{seed});
    });
}

}  // namespace

// -DRACES=1 runs an LSTM only.
int main(int, char** arguments) {
  return run_program(arguments, 0, [](const Chip& chip, unsigned seed) {
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
  });
}

#endif

// One kernel of csrc/cuda behind a C interface, for benchmarks.gpu.kernel. Macros choose it: KERNEL_CELL, KERNEL_TYPE
// (types), KERNEL_MODULATES (of Modulates), KERNEL_EXCHANGE and KERNEL_FORWARD (1 or 0). With KERNEL_IN_CLUSTERS it is
// the kernel of warps, in all its sizes; without KERNEL_CELL those of all cells, for benchmarks.gpu.choice. nvcc makes
// a library of it that runs on a GPU; any other compiler, with tests/host_shim on its include path, one that runs on
// the CPU.

#include <exception>
#include <string>
#include <type_traits>

#ifdef __CUDACC__
#  include "../../../csrc/cuda/launch.h"
#else
#  include "launcher.h"
#endif

namespace fused_rnn::cuda {
namespace {

#ifdef __CUDACC__
StreamLauncher launcher_on(const Chip& chip) { return StreamLauncher(chip); }
#else
HostLauncher launcher_on(const Chip&) { return {}; }
#endif

using Call = std::conditional_t<KERNEL_FORWARD, ForwardCall, BackwardCall>;

}  // namespace

#if defined(__CUDACC__) && !defined(KERNEL_CELL)
FUSED_RNN_INSTANTIATE_CLUSTER(template, Call, KERNEL_TYPE);  // which launch.h says is elsewhere
#endif

namespace {

// By the division that the environment forces.
Prepared prepared(const Call& call, const Chip& chip) {
#if !defined(KERNEL_CELL)
  return cluster::prepare_as<KERNEL_TYPE>(call, chip, forced_division(), launcher_on(chip));
#elif KERNEL_IN_CLUSTERS
  using Modulated = cluster::Modulated<KERNEL_CELL, Modulates::KERNEL_MODULATES>;
  using Cell = std::conditional_t<Modulates::KERNEL_MODULATES == Modulates::nothing, KERNEL_CELL, Modulated>;
  return cluster::prepare_for<Cell, KERNEL_TYPE>(call, chip, forced_division(), launcher_on(chip));
#else
  return prepare_for<KERNEL_CELL, Modulates::KERNEL_MODULATES, KERNEL_TYPE, KERNEL_EXCHANGE>(
      call, chip, forced_division(), launcher_on(chip));
#endif
}

// An empty string or what went wrong in f, until the next call.
template <typename F>
const char* message_of(const F& f) {
  static std::string message;
  try {
    message = f();
  } catch (const std::exception& error) {
    message = error.what();
  }
  return message.c_str();
}

}  // namespace
}  // namespace fused_rnn::cuda

using namespace fused_rnn::cuda;

#pragma GCC visibility push(default)
extern "C" {

// Fill in the plan of a call, or return why it cannot run.
const char* plan_call(const Call* call, const Chip* chip, Plan* plan) {
  return message_of([&] {
    const Prepared ready = prepared(*call, *chip);
    *plan = ready.plan;
    return ready.refusal;
  });
}

// Queue a call that has a plan on a stream, in a workspace of the plan's size, aligned to 256 bytes.
const char* run_call(const Call* call, const Chip* chip, void* workspace, void* stream) {
  return message_of([&] { return prepared(*call, *chip).run(workspace, stream); });
}

}  // extern "C"
#pragma GCC visibility pop

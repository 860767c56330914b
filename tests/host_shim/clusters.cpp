// The calls of csrc/cuda/api.h by the kernels of warps alone, on the host shim, as a library for
// tests/test_cluster_kernels.py: the same functions as those of sequences.cpp.

#include <stdexcept>
#include <string>

#include "launcher.h"

using namespace fused_rnn;
using namespace fused_rnn::cuda;

namespace {

template <typename Call>
Prepared prepared(const Call& call, const Chip& chip, HostLauncher launcher) {
  try {
    return call.type == Type::bfloat16 ? prepare_in_clusters<BFloat16>(call, chip, forced_division(), launcher)
                                       : prepare_in_clusters<Half>(call, chip, forced_division(), launcher);
  } catch (const std::exception& error) {
    return {error.what(), {}, nullptr};
  }
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

template <typename Call>
const char* run_call(const Call& call, const Chip& chip, HostLauncher launcher) {
  const Prepared ready = prepared(call, chip, launcher);
  return keep(ready.refusal.empty() ? ready.run(nullptr, nullptr) : ready.refusal);
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

const char* plan_forward_call(const ForwardCall* call, const Chip* chip, Plan* plan) {
  return plan_call(*call, *chip, *plan);
}
const char* plan_backward_call(const BackwardCall* call, const Chip* chip, Plan* plan) {
  return plan_call(*call, *chip, *plan);
}
const char* run_forward_call(const ForwardCall* call, const Chip* chip, unsigned seed, int missing) {
  return run_call(*call, *chip, {seed, missing});
}
const char* run_backward_call(const BackwardCall* call, const Chip* chip, unsigned seed, int missing) {
  return run_call(*call, *chip, {seed, missing});
}

}  // extern "C"
#pragma GCC visibility pop

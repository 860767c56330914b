// The calls of csrc/cuda/api.h on the host shim, for tests/host_kernels.py: the functions of a library in C or, with
// -DRACES, a program that sanitizers watch (races.h). The file that includes this one defines `prepared`.
// FUSED_RNN_CUDA_PLAN forces a plan, as it does on a GPU.
#pragma once

#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>

#include "launcher.h"

namespace fused_rnn::cuda {

// The workspace is full of NaN, because kernels are not promised a clean one.
inline std::string run_in_workspace(const Prepared& call) {
  if (!call.refusal.empty()) return call.refusal;
  const auto bytes = static_cast<size_t>(round_up(call.plan.workspace_bytes, 256));
  const std::unique_ptr<void, void (*)(void*)> workspace(std::aligned_alloc(256, bytes), std::free);
  if (bytes > 0) std::memset(workspace.get(), 0xff, bytes);
  return call.run(workspace.get(), nullptr);
}

}  // namespace fused_rnn::cuda

#ifndef RACES

namespace {

using namespace fused_rnn;
using namespace fused_rnn::cuda;

// The call, planned for a kernel of the library; an exception becomes its refusal.
template <typename Call>
Prepared prepared(const Call&, const Chip&, const Division& forced, const HostLauncher&);

template <typename Call>
Prepared prepared_or_refused(const Call& call, const Chip& chip, const HostLauncher& launcher) {
  try {
    return prepared(call, chip, forced_division(), launcher);
  } catch (const std::exception& error) {
    return {error.what(), {}, nullptr};
  }
}

// An empty string or what went wrong; the next call overwrites it.
const char* keep(const std::string& error) {
  static std::string message;
  return (message = error).c_str();
}

template <typename Call>
const char* plan_call(const Call& call, const Chip& chip, Plan& plan) {
  const Prepared ready = prepared_or_refused(call, chip, {});
  plan = ready.plan;
  return keep(ready.refusal);
}

template <typename Call>
const char* run_call(const Call& call, const Chip& chip, HostLauncher launcher) {
  return keep(run_in_workspace(prepared_or_refused(call, chip, launcher)));
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

// Run a call, or return what went wrong. If the blocks of a grid wait for each other, the last `missing` of them do not
// come; in clusters, store number `missing` between blocks gets lost.
const char* run_forward_call(const ForwardCall* call, const Chip* chip, unsigned seed, int missing) {
  return run_call(*call, *chip, {seed, missing});
}
const char* run_backward_call(const BackwardCall* call, const Chip* chip, unsigned seed, int missing) {
  return run_call(*call, *chip, {seed, missing});
}

}  // extern "C"
#  pragma GCC visibility pop

#endif

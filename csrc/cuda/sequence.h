// The calls of api.h for one type of tensors: the choice of a kernel by cell, and its launch. Whoever launches (the
// CUDA runtime, or the host shim of the tests) passes a Launcher with
//   std::string launch(void (*kernel)(P), int64_t blocks, int64_t shared_bytes, bool together, const P&)
// where `together` asks that all blocks run at the same time, and the result is empty or says what went wrong.
#pragma once

#include "plan.h"

namespace fused_rnn::cuda {

// f with a value of the cell's type and with what the multiplicative modifier acts on, as a type. Kernels are compiled
// for the pairs that have a name, which are not all: see CELLS in fused_rnn/cells.py.
template <typename F>
auto dispatch_kernel(const Layer& layer, const F& f) {
  using Nothing = std::integral_constant<Modulates, Modulates::nothing>;
  using Input = std::integral_constant<Modulates, Modulates::input>;
  using Hidden = std::integral_constant<Modulates, Modulates::hidden>;
  if (layer.modulates == Modulates::hidden) return f(Lstm(), Hidden());
  if (layer.modulates == Modulates::input) return layer.cell == CellId::lstm ? f(Lstm(), Input()) : f(Gru(), Input());
  return dispatch_cell(layer.cell, [&](auto cell) { return f(cell, Nothing()); });
}

template <typename S>
auto dispatch_plan(const ForwardCall& call, const Chip& chip) {
  return [&](const auto& f) {
    return dispatch_kernel(call, [&](auto base, auto modified) {
      using Cell = decltype(base);
      constexpr Modulates modulates = decltype(modified)::value;
      return f(ForwardPlanner<Cell, modulates, S>(call, chip), run_forward<Cell, modulates, S>);
    });
  };
}

template <typename S>
auto dispatch_plan(const BackwardCall& call, const Chip& chip) {
  return [&](const auto& f) {
    return dispatch_kernel(call, [&](auto base, auto modified) {
      using Cell = decltype(base);
      constexpr Modulates modulates = decltype(modified)::value;
      return f(BackwardPlanner<Cell, modulates, S>(call, chip), run_backward<Cell, modulates, S>);
    });
  };
}

// Why a plan cannot run, or an empty string.
template <typename Planner>
std::string refusal(const Planner& planner, const Layer& layer, const Chip& chip) {
  for (const int64_t size : {layer.T, layer.B, layer.I, layer.H})
    if (size > largest_size)
      return "T, B, I or H is " + std::to_string(size) + ", and must be at most " + std::to_string(largest_size);
  if (planner.possible()) return "";
  return "the layer is too large for this device: its " + std::to_string(chip.shared_bytes) +
         " bytes of shared memory per block do not hold the states of H = " + std::to_string(layer.H) +
         " and I = " + std::to_string(layer.I) + " shared among " + std::to_string(chip.multiprocessors) +
         " multiprocessors";
}

// Nothing for a plan that cannot run.
template <typename Planner>
int64_t workspace_bytes_of(Planner& planner, const Layer& layer, const Chip& chip) {
  return refusal(planner, layer, chip).empty() ? planner.plan(nullptr).workspace_bytes : 0;
}

// Prepare and run a plan.
template <typename Planner, typename Kernel, typename Launcher>
std::string run_plan(Planner& planner, Kernel kernel, const Layer& layer, const Chip& chip, void* workspace,
                     Launcher& launcher) {
  std::string error = refusal(planner, layer, chip);
  if (!error.empty()) return error;
  const auto plan = planner.plan(workspace);
  error = launcher.launch(prepare<typename Planner::Stored>, chip.multiprocessors, 0, false, plan.preparation);
  if (!error.empty()) return error;
  return launcher.launch(kernel, plan.blocks, plan.shared_bytes, plan.q.parts > 1, plan.q);
}

template <typename S, typename Call>
int64_t workspace_bytes_as(const Call& call, const Chip& chip) {
  return dispatch_plan<S>(call, chip)([&](auto planner, auto) { return workspace_bytes_of(planner, call, chip); });
}

template <typename S, typename Call, typename Launcher>
std::string run_as(const Call& call, const Chip& chip, void* workspace, Launcher& launcher) {
  return dispatch_plan<S>(call, chip)(
      [&](auto planner, auto kernel) { return run_plan(planner, kernel, call, chip, workspace, launcher); });
}

}  // namespace fused_rnn::cuda

// The calls of api.h for one type of tensors: the choice of a kernel by cell, its plan, and its launch. Whoever
// launches (the CUDA runtime, or the host shim of the tests) passes a Launcher with
//   std::string launch(void (*kernel)(P), int64_t blocks, int64_t shared_bytes, bool together, const P&, void* stream)
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

// f with the planner of a call and the kernel that runs the plan.
template <typename S, typename F>
auto dispatch_planner(const ForwardCall& call, const Chip& chip, const Division& forced, const F& f) {
  return dispatch_kernel(call, [&](auto base, auto modified) {
    using Cell = decltype(base);
    constexpr Modulates modulates = decltype(modified)::value;
    return f(ForwardPlanner<Cell, modulates, S>(call, chip, forced), run_forward<Cell, modulates, S>);
  });
}

template <typename S, typename F>
auto dispatch_planner(const BackwardCall& call, const Chip& chip, const Division& forced, const F& f) {
  return dispatch_kernel(call, [&](auto base, auto modified) {
    using Cell = decltype(base);
    constexpr Modulates modulates = decltype(modified)::value;
    return f(BackwardPlanner<Cell, modulates, S>(call, chip, forced), run_backward<Cell, modulates, S>);
  });
}

// Why a plan cannot run, or an empty string.
template <typename Planner>
std::string refusal(const Planner& planner, const Layer& layer, const Chip& chip, const Division& forced) {
  for (const int64_t size : {layer.T, layer.B, layer.I, layer.H})
    if (size > largest_size)
      return "T, B, I or H is " + std::to_string(size) + ", and must be at most " + std::to_string(largest_size);
  if (planner.possible()) return "";
  const std::string features = layer.modulates == Modulates::nothing ? "" : " and I = " + std::to_string(layer.I);
  const std::string sizes = "H = " + std::to_string(layer.H) + features;
  const std::string bytes = std::to_string(chip.shared_bytes), blocks = std::to_string(chip.multiprocessors);
  if (forced == Division())
    return "the layer is too large for this device: its " + bytes +
           " bytes of shared memory per block do not hold the states of " + sizes + " shared among " + blocks +
           " multiprocessors";
  const std::string needed = planner.blocks() > chip.multiprocessors
                                 ? std::to_string(planner.blocks()) + " blocks at the same time, and this device has " +
                                       blocks + " multiprocessors"
                                 : std::to_string(planner.shared_bytes()) +
                                       " bytes of shared memory in each block, and this device has " + bytes;
  return "the plan " + text(forced) + ", which FUSED_RNN_CUDA_PLAN forces, does not fit: with " + sizes +
         " it needs at least " + needed;
}

// A call whose plan is made, for the kernel that runs it.
template <typename Planner, typename Kernel, typename Launcher>
Planned planned(Planner planner, Kernel kernel, const Layer& layer, const Chip& chip, const Division& forced,
                const Launcher& launcher) {
  const std::string refused = refusal(planner, layer, chip, forced);
  if (!refused.empty()) return {refused, {}, nullptr};
  const auto run = [planner, kernel, launcher, everywhere = chip.multiprocessors](void* workspace,
                                                                                  void* stream) mutable {
    const auto work = planner.launch(workspace);
    const auto prepared = prepare<typename Planner::Stored>;
    const std::string error = launcher.launch(prepared, everywhere, 0, false, work.preparation, stream);
    if (!error.empty()) return error;
    return launcher.launch(kernel, work.blocks, work.shared_bytes, work.q.parts > 1, work.q, stream);
  };
  return {"", planner.plan(), run};
}

template <typename S, typename Call, typename Launcher>
Planned plan_as(const Call& call, const Chip& chip, const Division& forced, const Launcher& launcher) {
  return dispatch_planner<S>(call, chip, forced, [&](auto planner, auto kernel) {
    return planned(planner, kernel, call, chip, forced, launcher);
  });
}

}  // namespace fused_rnn::cuda

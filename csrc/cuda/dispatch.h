// The calls of api.h for one type of tensors: the choice of a kernel by cell, its plan, and its launch. The caller that
// launches (the CUDA runtime, or the host shim of the tests) passes a Launcher with
//   std::string launch(void (*kernel)(P), int64_t blocks, int64_t shared_bytes, const Attributes&, const P&, void*
//   stream)
// whose result is empty, or an error message.
#pragma once

#include <limits>

#include "backward.h"
#include "cluster/dispatch.h"
#include "cluster/measured.h"
#include "forward.h"
#include "pack.h"
#include "planner.h"

namespace fused_rnn::cuda {

// The limit of T, B, I and H: kernels count up to 8 values per unit in 32 bits.
constexpr int64_t largest_size = std::numeric_limits<int>::max() / 8;

// Return why a size is refused, or an empty string.
inline std::string refused_size(const Layer& layer) {
  for (const int64_t size : {layer.T, layer.B, layer.I, layer.H})
    if (size > largest_size)
      return "T, B, I or H is " + std::to_string(size) + ", and must be at most " + std::to_string(largest_size);
  return "";
}

// The types that the two directions have in common, by the type of the call.
template <typename Call>
struct Direction;

template <>
struct Direction<ForwardCall> {
  static constexpr auto describe = describe_forward;
  template <typename S>
  using Arrays = ForwardArrays<S>;
  template <typename Cell, Modulates modulates, typename S, typename Exchange>
  static constexpr auto kernel = run_forward<Cell, modulates, S, Exchange>;
  static double gradient_clip(const ForwardCall&) { return std::numeric_limits<double>::infinity(); }
};

template <>
struct Direction<BackwardCall> {
  static constexpr auto describe = describe_backward;
  template <typename S>
  using Arrays = BackwardArrays<S>;
  template <typename Cell, Modulates modulates, typename S, typename Exchange>
  static constexpr auto kernel = run_backward<Cell, modulates, S, Exchange>;
  static double gradient_clip(const BackwardCall& call) { return call.gradient_clip; }
};

// The weights to pack and the words to clear in a workspace.
template <typename S, typename Arrays>
Preparation<S> preparation(const Planned& plan, const Arrays& arrays, unsigned char* workspace) {
  using Weight = ProductShape::Weight;
  const Layout& layout = plan.layout;
  Preparation<S> result{};
  for (int i = 0; i < most_products; ++i) {
    const ProductShape& shape = plan.description.products[i];
    if (shape.gates == 0) continue;
    const S* const weights = shape.weight == Weight::ih   ? arrays.weight_ih
                             : shape.weight == Weight::hh ? arrays.weight_hh
                                                          : arrays.weight_mhh;
    result.packings[result.count++] = {
        .from = weights + shape.offset,
        .to = reinterpret_cast<S*>(workspace + layout.products[i].packed),
        .parts = layout.division.parts,
        .gates = shape.gates,
        .units = static_cast<int>(shape.features ? plan.description.I : plan.description.H),
        .own = shape.features ? layout.features : layout.units,
        .k = layout.states[shape.state].k,
        .gate_stride = shape.gate_stride,
        .unit_stride = shape.unit_stride,
        .k_stride = shape.k_stride,
    };
  }
  result.cleared = reinterpret_cast<uint32_t*>(workspace + layout.cleared);
  result.words = (layout.workspace_bytes - layout.cleared) / 4;
  return result;
}

// Queue the launches of a planned call.
template <typename Cell, Modulates modulates, typename S, typename Exchange, typename Call, typename Launcher>
std::string run(const Planned& plan, const Call& call, const Chip& chip, const Launcher& launcher, void* memory,
                void* stream) {
  using Way = Direction<Call>;
  using Arrays = typename Way::template Arrays<S>;
  const Layout& layout = plan.layout;
  auto* const workspace = static_cast<unsigned char*>(memory);
  const auto arrays = __builtin_bit_cast(Arrays, call.arrays);
  const std::string error = launcher.launch(prepare_workspace<S>, chip.multiprocessors, 0, Attributes{},
                                            preparation<S>(plan, arrays, workspace), stream);
  if (!error.empty()) return error;
  const Operands<S, Exchange, Way::template Arrays> operands{
      .T = static_cast<int>(call.T),
      .B = static_cast<int>(call.B),
      .I = static_cast<int>(call.I),
      .H = static_cast<int>(call.H),
      .reverse = call.reverse,
      .lengths = call.lengths,
      .arrays = arrays,
      .beginnings = __builtin_bit_cast(Beginnings<S>, call.beginnings),
      .gradient_clip = static_cast<Computed<S>>(Way::gradient_clip(call)),
      .workspace = workspace,
      .layout = layout,
      .exchange = Exchange::template operands<S>(layout, workspace, call.timed_out),
  };
  return launcher.launch(Way::template kernel<Cell, modulates, S, Exchange>, layout.blocks(), layout.shared_bytes,
                         Exchange::attributes(layout.division), operands, stream);
}

// Plan a call for one kernel.
template <typename Cell, Modulates modulates, typename S, typename Exchange, typename Call, typename Launcher>
Prepared prepare_for(const Call& call, const Chip& chip, const Division& forced, const Launcher& launcher) {
  const std::string refused = refused_size(call);
  if (!refused.empty()) return {refused, {}, nullptr};
  const Planned& plan =
      planned(Direction<Call>::describe(shape_of<Cell, modulates>, number_of<S>, call.B, call.I, call.H), chip, forced);
  if (!plan.refusal.empty()) return {plan.refusal, {}, nullptr};
  return {"", plan.plan, [&plan, call, chip, launcher](void* workspace, void* stream) {
            return run<Cell, modulates, S, Exchange>(plan, call, chip, launcher, workspace, stream);
          }};
}

// Return the forced choices that concern block kernels.
inline Division of_blocks(Division forced) {
  if (forced.exchange == ExchangeId::blocks) forced.exchange = ExchangeId::chosen;
  return forced;
}

// Whether warp kernels were measured ahead of block kernels for such a call.
inline bool clusters_are_ahead(const Layer& layer, const Chip& chip) {
  return refused_size(layer).empty() && cluster::measured_ahead(cluster::measured, layer, chip.name);
}

// Plan a call for a warp kernel.
template <typename S, typename Call, typename Launcher>
Prepared prepare_in_clusters(const Call& call, const Chip& chip, const Division& forced, const Launcher& launcher) {
  if (call.beginnings.resets)
    return {"kernels of clusters and messages take no resets; kernels of blocks do", {}, nullptr};
  if constexpr (!std::is_same_v<S, double>) return cluster::prepare_as<S>(call, chip, forced, launcher);
  return {"kernels in clusters are for float32, bfloat16 and float16, not for float64", {}, nullptr};
}

// Plan a call for a forced warp kernel.
template <typename S, typename Call, typename Launcher>
Prepared prepare_forced_clusters(const Call& call, const Chip& chip, const Division& forced, const Launcher& launcher) {
  const std::string refused = refused_size(call);
  if (!refused.empty()) return {refused, {}, nullptr};
  Prepared ready = prepare_in_clusters<S>(call, chip, forced, launcher);
  if (!ready.refusal.empty())
    ready.refusal = "the plan " + text(forced) + ", which FUSED_RNN_CUDA_PLAN forces, cannot be: " + ready.refusal;
  return ready;
}

template <typename S, typename Call, typename Launcher>
Prepared prepare_as(const Call& call, const Chip& chip, const Division& forced, const Launcher& launcher) {
  if (of_warps(forced.exchange)) return prepare_forced_clusters<S>(call, chip, forced, launcher);
  if constexpr (!std::is_same_v<S, double>) {
    if (forced == Division() && clusters_are_ahead(call, chip)) {
      const Prepared ready = prepare_in_clusters<S>(call, chip, forced, launcher);
      if (ready.refusal.empty()) return ready;  // otherwise the device has no room for them, or the call has resets
    }
  }
  return dispatch_named_cell(call.cell, call.modulates, [&](auto cell, auto modulates) {
    return prepare_for<decltype(cell), decltype(modulates)::value, S, ChosenExchange>(call, chip, of_blocks(forced),
                                                                                      launcher);
  });
}

}  // namespace fused_rnn::cuda

// The calls of api.h that kernels of warps can run: the choice of one by cell and size, and its launch. See
// ../dispatch.h, which asks here first, for what a Launcher is.
#pragma once

#include <initializer_list>
#include <string>
#include <vector>

#include "backward.h"
#include "forward.h"
#include "plan.h"

namespace fused_rnn::cuda::cluster {

template <typename... Each>
struct Sizes {};

// Of an LSTM all weights stay on the chip. Tests on the host take smaller ones.
#ifndef FUSED_RNN_CLUSTER_SIZES
using Compiled = Sizes<Size<128, 1, 1, 1>, Size<128, 4, 1, 1>, Size<256, 8, 2, 1>, Size<256, 8, 2, 2>,
                       Size<384, 8, 2, 1>, Size<512, 16, 2, 1>, Size<512, 16, 2, 2>, Size<768, 16, 2, 1>>;
#else
using Compiled = Sizes<FUSED_RNN_CLUSTER_SIZES>;
#endif

// Cells of one phase have such kernels.
constexpr bool has_kernels(const Layer& layer) {
  return layer.modulates == Modulates::nothing && layer.cell != CellId::gru;
}

// f with a value of the type of a cell that has kernels.
template <typename F>
auto with_cell(CellId id, const F& f) {
  switch (id) {
    case CellId::rnn_tanh:
      return f(Rnn<Tanh>());
    case CellId::rnn_relu:
      return f(Rnn<Relu>());
    case CellId::lstm:
      return f(Lstm());
    default:
      return f(GruResetAfter());
  }
}

template <typename S, template <typename> class Arrays>
struct Kernel {
  Candidate candidate;
  void (*run)(const Operands<S, Arrays>);
};

// What the two directions have in common, by the type of the call.
template <typename Call>
struct Direction;

template <>
struct Direction<ForwardCall> {
  template <typename S>
  using Arrays = ForwardArrays<S>;
  template <typename Cell, typename S, typename Size>
  static Kernel<S, ForwardArrays> kernel() {
    using Shape = ForwardShape<Cell, S, Size>;
    return {{.K = Size::K,
             .blocks = Size::blocks,
             .octets = Size::octets,
             .threads = Shape::threads,
             .shared_bytes = Forward<Cell, S, Size>::shared_bytes,
             .registers = 4 * Shape::held * Shape::matrices + 96,
             .held = Shape::held * Shape::matrices,
             .resident = (Shape::k_steps - Shape::held) * Shape::matrices,
             .received = Size::K * 8 * Size::octets * int{sizeof(S)}},
            run_forward<Cell, S, Size>};
  }
  static double gradient_clip(const ForwardCall&) { return 0; }
};

template <>
struct Direction<BackwardCall> {
  template <typename S>
  using Arrays = BackwardArrays<S>;
  template <typename Cell, typename S, typename Size>
  static Kernel<S, BackwardArrays> kernel() {
    using Shape = BackwardShape<Cell, S, Size>;
    return {{.K = Size::K,
             .blocks = Size::blocks,
             .octets = Size::octets,
             .threads = Shape::threads,
             .shared_bytes = Backward<Cell, S, Size>::shared_bytes,
             .registers = 4 * Shape::held + 96,
             .held = Shape::held,
             .resident = Shape::own_tiles * Shape::k_steps - Shape::held,
             .received = Size::K * 8 * Size::octets * int{sizeof(typename Shape::Travelling)}},
            run_backward<Cell, S, Size>};
  }
  static double gradient_clip(const BackwardCall& call) { return call.gradient_clip; }
};

template <typename Cell, typename S, typename Call, typename... Each>
auto kernels_of(Sizes<Each...>) {
  return std::vector{Direction<Call>::template kernel<Cell, S, Each>()...};
}

// Whether every 8th unit of these arrays stands at a multiple of 16 bytes.
inline bool have_whole_rows(int64_t H, std::initializer_list<const void*> arrays) {
  uint64_t places = 0;
  for (const void* const array : arrays) places |= reinterpret_cast<uint64_t>(array);
  return H % 8 == 0 && places % row_bytes == 0;
}
template <typename S>
bool have_whole_rows(int64_t H, const ForwardArrays<S>& a) {
  return have_whole_rows(H, {a.keep_h, a.keep_c, a.projected, a.output, a.cells, a.saved});
}
template <typename S>
bool have_whole_rows(int64_t H, const BackwardArrays<S>& a) {
  return have_whole_rows(H, {a.keep_h, a.keep_c, a.d_output, a.d_cells, a.output, a.cells, a.saved, a.d});
}

// Fragments as the plans of all kernels count them: 16 outputs x 64 values of K.
constexpr int in_plan(int fragments) { return static_cast<int>(divide_up(fragments, fragment_k / 16)); }

// A call of a cell that has kernels.
template <typename Cell, typename S, typename Call, typename Launcher>
Prepared prepare_for(const Call& call, const Chip& chip, const Division& forced, const Launcher& launcher) {
  using Way = Direction<Call>;
  static const auto kernels = kernels_of<Cell, S, Call>(Compiled());
  std::vector<Candidate> candidates;
  for (const auto& kernel : kernels) candidates.push_back(kernel.candidate);
  const Choice choice = choose(candidates, call.H, call.B, chip, forced);
  if (choice.index < 0) return {choice.refusal, {}, {}};
  const auto& [candidate, kernel] = kernels[choice.index];
  Plan plan{};
  plan.division = {8 * candidate.octets, candidate.blocks, 1, ExchangeId::cluster};
  plan.teams = choice.clusters;
  plan.held = in_plan(candidate.held);
  plan.resident = in_plan(candidate.resident);
  plan.shared_bytes = candidate.shared_bytes;
  plan.nanoseconds = choice.nanoseconds;
  const int64_t blocks = int64_t{choice.clusters} * candidate.blocks;
  return {"", plan, [=, &candidate = candidate, &kernel = kernel](void* /*workspace*/, void* stream) {
            using Arrays = typename Way::template Arrays<S>;
            const auto arrays = __builtin_bit_cast(Arrays, call.arrays);
            const Operands<S, Way::template Arrays> operands{
                .T = static_cast<int>(call.T),
                .B = static_cast<int>(call.B),
                .H = static_cast<int>(call.H),
                .reverse = call.reverse,
                .whole_rows = have_whole_rows(call.H, arrays),
                .lengths = call.lengths,
                .arrays = arrays,
                .gradient_clip = static_cast<float>(Way::gradient_clip(call)),
                .timed_out = call.timed_out};
            return launcher.launch(kernel, blocks, candidate.shared_bytes,
                                   ClusterExchange::attributes(candidate.blocks, candidate.threads), operands, stream);
          }};
}

template <typename S, typename Call, typename Launcher>
Prepared prepare_as(const Call& call, const Chip& chip, const Division& forced, const Launcher& launcher) {
  if (!has_kernels(call))
    return {"kernels in clusters are for the LSTM, the reset-after GRU and the RNN, without multiplicative modifier",
            {},
            {}};
  return with_cell(call.cell, [&](auto cell) { return prepare_for<decltype(cell), S>(call, chip, forced, launcher); });
}

}  // namespace fused_rnn::cuda::cluster

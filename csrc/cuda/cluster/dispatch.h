// The calls of api.h that warp kernels can run: the choice of a kernel by cell and size, and its launch. ../dispatch.h,
// which asks here first, says what a Launcher is.
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

// The compiled sizes. They keep all weights of an LSTM on the chip. Sizes with features are for cells whose input is
// modulated. Tests on the host use smaller ones.
#ifndef FUSED_RNN_CLUSTER_SIZES
using CompiledShort =
    Sizes<Size<128, 1, 1, 1>, Size<128, 4, 1, 1>, Size<256, 8, 2, 1>, Size<256, 8, 2, 2>, Size<384, 8, 2, 1>,
          Size<512, 16, 2, 1>, Size<512, 16, 2, 2>, Size<768, 16, 2, 1>, Size<128, 4, 1, 1, 128>,
          Size<256, 8, 2, 1, 128>, Size<256, 8, 2, 2, 128>, Size<384, 8, 2, 1, 128>, Size<512, 16, 2, 1, 128>,
          Size<512, 16, 2, 2, 128>, Size<256, 8, 2, 1, 256>, TeamSize<1024, 64, 8, 1>, TeamSize<2048, 128, 4, 1>>;
using CompiledFloat = Sizes<Size<64, 1, 1, 1>, Size<64, 4, 2, 1>, Size<128, 4, 2, 1>, Size<128, 4, 2, 2>,
                            Size<128, 8, 2, 1>, Size<256, 8, 2, 1>, Size<256, 8, 2, 2>, Size<256, 16, 4, 1>,
                            Size<128, 8, 4, 1, 128>, Size<256, 16, 4, 1, 128>, TeamSize<512, 32, 4, 1>>;
#else
using CompiledShort = Sizes<FUSED_RNN_CLUSTER_SIZES>;
using CompiledFloat = CompiledShort;
#endif

// The sizes for a tensor type.
template <typename S>
using Compiled = std::conditional_t<std::is_same_v<S, float>, CompiledFloat, CompiledShort>;

// A size as it is compiled for a cell, or void. Where h₋ is modulated, x̂ has as many features as there are units. Cells
// of several phases need registers for more than weights: where there are many warps, none share K, unless weights
// would not fit then.
template <typename Cell, typename Size>
struct For;
template <typename Cell, int K, int blocks, int shares, int octets, int features>
struct For<Cell, Size<K, blocks, shares, octets, features>> {
  static constexpr Modulates modulates = modulates_of<Cell>;
  static constexpr bool has_few_warps = phases_of<Cell> == 1 || K / blocks / 8 * shares <= 8 || K > 512;
  using Type = std::conditional_t<
      (modulates == Modulates::input) == (features > 0),
      Size<K, blocks, has_few_warps ? shares : 1, octets, modulates == Modulates::hidden ? K : features>, void>;
};

// Messages serve only cells of one phase.
template <typename Cell, int K, int blocks, int shares, int octets>
struct For<Cell, TeamSize<K, blocks, shares, octets>> {
  using Type = std::conditional_t<phases_of<Cell> == 1, TeamSize<K, blocks, shares, octets>, void>;
};

template <typename S, template <typename> class Arrays>
struct Kernel {
  Candidate candidate;
  void (*run)(const Operands<S, Arrays>);
};

template <typename Cell, typename Size, typename Shape>
Candidate candidate_of(int shared_bytes) {
  return {.K = Size::K,
          .features = Size::features,
          .blocks = Size::blocks,
          .octets = Size::octets,
          .own_octets = Shape::own_octets,
          .threads = Shape::threads,
          .shared_bytes = shared_bytes,
          .registers = Shape::held_registers + 96,
          .held = Shape::held_fragments,
          .resident = Shape::resident_fragments,
          .phases = phases_of<Cell>,
          .terms = Shape::terms,
          .received = Shape::received_bytes,
          .exchange = Size::Exchange::id,
          .places = Shape::places_bytes};
}

// The interface that both directions have in common, by the type of the call.
template <typename Call>
struct Direction;

template <>
struct Direction<ForwardCall> {
  template <typename S>
  using Arrays = ForwardArrays<S>;
  template <typename Cell, typename S, typename Size>
  using Shape = ForwardShape<Cell, S, Size>;
  template <typename Cell, typename S, typename Size>
  static constexpr int shared_bytes = Forward<Cell, S, Size>::shared_bytes;
  template <typename Cell, typename S, typename Size>
  static constexpr auto kernel = run_forward<Cell, S, Size>;
  static double gradient_clip(const ForwardCall&) { return 0; }
};

template <>
struct Direction<BackwardCall> {
  template <typename S>
  using Arrays = BackwardArrays<S>;
  template <typename Cell, typename S, typename Size>
  using Shape = BackwardShape<Cell, S, Size>;
  template <typename Cell, typename S, typename Size>
  static constexpr int shared_bytes = Backward<Cell, S, Size>::shared_bytes;
  template <typename Cell, typename S, typename Size>
  static constexpr auto kernel = run_backward<Cell, S, Size>;
  static double gradient_clip(const BackwardCall& call) { return call.gradient_clip; }
};

// The kernels of a cell, and the same ones as candidates.
template <typename Cell, typename S, typename Call>
struct Kernels {
  std::vector<Kernel<S, Direction<Call>::template Arrays>> all;
  std::vector<Candidate> candidates;

  template <typename... Each>
  explicit Kernels(Sizes<Each...>) {
    (add<typename For<Cell, Each>::Type>(), ...);
  }

 private:
  // Adds a kernel if an SM has room for it.
  template <typename Size>
  void add() {
    if constexpr (!std::is_void_v<Size>) {
      using Way = Direction<Call>;
      using Shape = typename Way::template Shape<Cell, S, Size>;
      constexpr int shared_bytes = Way::template shared_bytes<Cell, S, Size>;
      if constexpr (Shape::fits && shared_bytes <= most_shared_bytes) {
        candidates.push_back(candidate_of<Cell, Size, Shape>(shared_bytes));
        all.push_back({candidates.back(), Way::template kernel<Cell, S, Size>});
      }
    }
  }
};

// Whether every 8th unit and feature of these arrays is aligned to 16 bytes.
inline bool have_whole_rows(int64_t H, int64_t features, std::initializer_list<const void*> arrays) {
  uint64_t places = 0;
  for (const void* const array : arrays) places |= reinterpret_cast<uint64_t>(array);
  return H % 8 == 0 && features % 8 == 0 && places % row_bytes == 0;
}
template <typename S>
bool have_whole_rows(int64_t H, int64_t features, const ForwardArrays<S>& a) {
  return have_whole_rows(H, features, {a.keep_h, a.keep_c, a.projected, a.input, a.output, a.cells, a.saved});
}
template <typename S>
bool have_whole_rows(int64_t H, int64_t features, const BackwardArrays<S>& a) {
  return have_whole_rows(
      H, features, {a.keep_h, a.keep_c, a.d_output, a.d_cells, a.output, a.cells, a.saved, a.input, a.d, a.d_input});
}

// A number of fragments as plans count them, 16 outputs x 64 values of K.
constexpr int in_plan(int fragments) { return static_cast<int>(divide_up(fragments, fragment_k / 16)); }

// The messages of `teams` teams in a workspace: their counters, then their places.
inline Messages messages_at(void* workspace, int64_t teams) {
  auto* const memory = static_cast<unsigned char*>(workspace);
  return {memory + teams * MessageExchange::counter_bytes, reinterpret_cast<unsigned*>(memory)};
}

inline Attributes attributes_of(const Candidate& candidate) {
  return candidate.exchange == ExchangeId::messages ? MessageExchange::attributes(candidate.threads)
                                                    : ClusterExchange::attributes(candidate.blocks, candidate.threads);
}

// Prepares a call of one cell.
template <typename Cell, typename S, typename Call, typename Launcher>
Prepared prepare_for(const Call& call, const Chip& chip, const Division& forced, const Launcher& launcher) {
  using Way = Direction<Call>;
  static const Kernels<Cell, S, Call> kernels{Compiled<S>()};
  const int64_t features = is_multiplicative<Cell> ? call.I : 0;
  const Choice choice = choose(kernels.candidates, call.H, features, call.B, chip, forced);
  if (choice.index < 0) return {choice.refusal, {}, {}};
  const auto& [candidate, kernel] = kernels.all[choice.index];
  Plan plan{};
  plan.division = {8 * candidate.octets, candidate.blocks, 1, candidate.exchange};
  plan.teams = choice.clusters;
  plan.held = in_plan(candidate.held);
  plan.resident = in_plan(candidate.resident);
  plan.shared_bytes = candidate.shared_bytes;
  const int64_t teams = choice.clusters;
  const bool by_messages = candidate.exchange == ExchangeId::messages;
  plan.workspace_bytes = by_messages ? teams * (MessageExchange::counter_bytes + candidate.places) : 0;
  plan.nanoseconds = choice.nanoseconds;
  const int64_t blocks = teams * candidate.blocks;
  return {"", plan, [=, &candidate = candidate, &kernel = kernel](void* workspace, void* stream) {
            using Arrays = typename Way::template Arrays<S>;
            const auto arrays = __builtin_bit_cast(Arrays, call.arrays);
            const Messages messages = by_messages ? messages_at(workspace, teams) : Messages{};
            if (by_messages) {
              const std::string error =
                  launcher.launch(prepare_messages<S>, chip.multiprocessors, 0, Attributes{},
                                  MessagePreparation{messages, teams * candidate.places / int64_t{sizeof(uint32_t)},
                                                     static_cast<int>(teams)},
                                  stream);
              if (!error.empty()) return error;
            }
            const Operands<S, Way::template Arrays> operands{
                .T = static_cast<int>(call.T),
                .B = static_cast<int>(call.B),
                .H = static_cast<int>(call.H),
                .reverse = call.reverse,
                .whole_rows = have_whole_rows(call.H, features, arrays),
                .lengths = call.lengths,
                .arrays = arrays,
                .gradient_clip = static_cast<float>(Way::gradient_clip(call)),
                .timed_out = call.timed_out,
                .I = static_cast<int>(features),
                .messages = messages};
            return launcher.launch(kernel, blocks, candidate.shared_bytes, attributes_of(candidate), operands, stream);
          }};
}

template <typename S, typename Call, typename Launcher>
Prepared prepare_as(const Call& call, const Chip& chip, const Division& forced, const Launcher& launcher) {
  return dispatch_named_cell(call.cell, call.modulates, [&](auto cell, auto modulates) {
    using Base = decltype(cell);
    using Cell = std::conditional_t<decltype(modulates)::value == Modulates::nothing, Base,
                                    Modulated<Base, decltype(modulates)::value>>;
    return prepare_for<Cell, S>(call, chip, forced, launcher);
  });
}

}  // namespace fused_rnn::cuda::cluster

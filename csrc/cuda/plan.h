// From a call to its plan, for each direction: the operands of its kernel, its states and products, and what it keeps
// in shared memory beside them. Runs on the host.
#pragma once

#include <algorithm>
#include <vector>

#include "backward.h"
#include "forward.h"
#include "planner.h"

namespace fused_rnn::cuda {

template <typename T>
int64_t sums_size(const T& q, int parts, int outputs) {
  return int64_t{parts} * q.sequences * sums_stride(outputs);
}

template <typename Cell, Modulates modulates, typename S>
class ForwardPlanner final : public Planner<ForwardSequence<S>, S> {
  using Base = Planner<ForwardSequence<S>, S>;
  using Weights = typename Base::Weights;
  using C = Computed<S>;
  using Base::q_;
  static constexpr bool multiplicative = modulates != Modulates::nothing, of_input = modulates == Modulates::input;

 public:
  ForwardPlanner(const ForwardCall& call, const Chip& chip, const Division& forced)
      : Base(call, chip, {1 + Cell::reset_before + multiplicative, Cell::gates, 2 * multiplicative}), call_(call) {
    const auto array = [](const void* p) { return static_cast<const S*>(p); };
    q_.projected = array(call.projected), q_.x = array(call.input);
    q_.h_0 = array(call.h_0), q_.c_0 = array(call.c_0);
    q_.bias_ih = array(call.bias_ih), q_.bias_hh = array(call.bias_hh), q_.bias_m = array(call.bias_m);
    q_.output = static_cast<S*>(call.output), q_.h_n = static_cast<S*>(call.h_n);
    q_.c_n = static_cast<S*>(call.c_n);
    q_.cells = static_cast<S*>(call.cells), q_.saved = static_cast<S*>(call.saved);
    static typename Base::Known known;
    this->choose(divide_up(q_.H, divide_up(block_outputs, Cell::gates)), forced, known);
  }

 private:
  std::vector<State<S>*> states() override {
    std::vector<State<S>*> all{&q_.h};
    if (Cell::reset_before) all.push_back(&q_.s);
    if (multiplicative) all.push_back(&q_.x_hat);
    return all;
  }

  void set_depths() override {
    q_.h.depth = q_.s.depth = q_.H;
    q_.x_hat.depth = q_.I;
  }

  std::vector<Weights> weights() override {
    const auto array = [](const void* p) { return static_cast<const S*>(p); };
    const int G = Cell::reset_before ? 2 : Cell::gates, units = q_.units;
    const int64_t H = q_.H, I = q_.I;
    const S* const U = array(call_.weight_hh);
    State<S>* const state = modulates == Modulates::hidden ? &q_.x_hat : &q_.h;
    std::vector<Weights> all{{&q_.recurrent, state, {U, nullptr, 0, G, q_.H, units, 0, H * H, H, 1}}};
    if (Cell::reset_before)
      all.push_back({&q_.candidate, &q_.s, {U + 2 * H * H, nullptr, 0, 1, q_.H, units, 0, 0, H, 1}});
    if (of_input) {
      const S* const W = array(call_.weight_ih);
      all.push_back({&q_.input, &q_.x_hat, {W, nullptr, 0, Cell::gates, q_.H, units, 0, H * I, I, 1}});
    }
    if (multiplicative) {
      const S* const U_m = array(call_.weight_mhh);
      all.push_back({&q_.modulation, &q_.h, {U_m, nullptr, 0, 1, q_.I, q_.features, 0, 0, H, 1}});
    }
    return all;
  }

  void place(Arena& arena) override {
    const int64_t n = q_.sequences, units = q_.units;
    const int columns = staged_stride<S>(of_input ? q_.features : q_.units);
    const auto sums = [&](const ProductPlan<S>& p) { return sums_size(q_, p.parts, p.outputs); };
    q_.limits = static_cast<int>(arena.take<int>(n));
    q_.states = static_cast<int>(arena.take<C>(n * units * (1 + Cell::has_cell_state + Cell::reset_before)));
    q_.staged = static_cast<int>(arena.take<S>(2 * forward_staged<Cell, modulates> * n * columns));
    q_.biases = static_cast<int>(arena.take<C>(2 * Cell::gates * units + q_.features));
    // of an absent product the sums take nothing
    q_.sums = static_cast<int>(arena.take<C>(std::max({sums(q_.recurrent), sums(q_.candidate), sums(q_.modulation)})));
    q_.more_sums = static_cast<int>(arena.take<C>(sums(q_.input)));
  }

  const ForwardCall call_;
};

template <typename Cell, Modulates modulates, typename S>
class BackwardPlanner final : public Planner<BackwardSequence<S>, S> {
  using Base = Planner<BackwardSequence<S>, S>;
  using Weights = typename Base::Weights;
  using C = Computed<S>;
  using Base::q_;
  static constexpr bool multiplicative = modulates != Modulates::nothing, of_hidden = modulates == Modulates::hidden;

 public:
  BackwardPlanner(const BackwardCall& call, const Chip& chip, const Division& forced)
      : Base(call, chip, {1 + Cell::reset_before + multiplicative, Cell::gradients, 2 * multiplicative}), call_(call) {
    const auto array = [](const void* p) { return static_cast<const S*>(p); };
    q_.x = array(call.input), q_.h_0 = array(call.h_0), q_.c_0 = array(call.c_0);
    q_.output = array(call.output), q_.cells = array(call.cells), q_.saved = array(call.saved);
    q_.d_output = array(call.d_output), q_.d_h_n = array(call.d_h_n), q_.d_c_n = array(call.d_c_n);
    q_.d_cells = array(call.d_cells);
    q_.d_h_0 = static_cast<S*>(call.d_h_0), q_.d_c_0 = static_cast<S*>(call.d_c_0);
    q_.d = static_cast<S*>(call.d), q_.d_x = static_cast<S*>(call.d_input);
    q_.gradient_clip = static_cast<C>(call.gradient_clip);
    static typename Base::Known known;
    this->choose(divide_up(q_.H, block_outputs), forced, known);
  }

 private:
  std::vector<State<S>*> states() override {
    std::vector<State<S>*> all{&q_.d_gates};
    if (Cell::reset_before || (Cell::n_apart && multiplicative)) all.push_back(&q_.d_n);
    if (has_q<Cell>) all.push_back(&q_.d_q);
    if (multiplicative) all.push_back(&q_.d_m);
    return all;
  }

  void set_depths() override {
    q_.d_gates.depth = gates_together<Cell> * q_.H;
    q_.d_n.depth = q_.d_q.depth = q_.H;
    q_.d_m.depth = q_.I;
  }

  std::vector<Weights> weights() override {
    const auto array = [](const void* p) { return static_cast<const S*>(p); };
    const int64_t H = q_.H, I = q_.I;
    const S* const U = array(call_.weight_hh);
    const auto of_units = [&](const S* from) { return Packing<S>{from, nullptr, 0, 1, q_.H, q_.units, 0, 0, 1, H}; };
    const auto of_features = [&](const S* from) {
      return Packing<S>{from, nullptr, 0, 1, q_.I, q_.features, 0, 0, 1, I};
    };
    std::vector<Weights> all;
    if (!of_hidden) all.push_back({&q_.recurrent, &q_.d_gates, of_units(U)});
    if (Cell::n_apart) all.push_back({&q_.recurrent_n, has_q<Cell> ? &q_.d_q : &q_.d_n, of_units(U + 2 * H * H)});
    if (multiplicative) {
      const S* const W = of_hidden ? U : array(call_.weight_ih);
      all.push_back({&q_.input, &q_.d_gates, of_features(W)});
      if (Cell::n_apart) all.push_back({&q_.input_n, &q_.d_n, of_features(W + 2 * H * I)});
      all.push_back({&q_.modulation, &q_.d_m, of_units(array(call_.weight_mhh))});
    }
    return all;
  }

  void place(Arena& arena) override {
    const int64_t n = q_.sequences, units = q_.units;
    q_.limits = static_cast<int>(arena.take<int>(n));
    q_.states = static_cast<int>(arena.take<C>(n * units * (1 + Cell::has_cell_state)));
    q_.staged = static_cast<int>(arena.take<S>(2 * backward_staged<Cell> * n * staged_stride<S>(q_.units)));
    const int parts = q_.recurrent.parts + q_.recurrent_n.parts + q_.modulation.parts;
    q_.sums = static_cast<int>(arena.take<C>(sums_size(q_, parts, q_.units)));
    q_.more_sums = static_cast<int>(arena.take<C>(sums_size(q_, q_.input.parts + q_.input_n.parts, q_.input.outputs)));
  }

  const BackwardCall call_;
};

}  // namespace fused_rnn::cuda

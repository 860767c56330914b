// The forward block kernel: a whole sequence in one launch, for every cell. The library projects x before it (see
// CellShape in shape.h).
//
// Each phase of a step ends with the team's exchange of its results: multiplicative cells compute m and x̂ first; the
// reset-before GRU computes its gates and s = r⊙h₋; the last phase computes h. So RNN, LSTM and reset-after GRU have
// one phase, the reset-before GRU and the multiplicative LSTMs two, and the multiplicative GRU three. In Krause's mLSTM
// U multiplies x̂.
#pragma once

#include "block.h"

namespace fused_rnn::cuda {

template <typename Cell, Modulates modulates, typename S, typename Exchange>
class ForwardBlock : Block<S, Exchange, ForwardArrays> {
  using Base = Block<S, Exchange, ForwardArrays>;
  using C = Computed<S>;
  using State = ForwardState;
  using Name = ForwardProduct;
  using Base::active, Base::any_active, Base::arrays_, Base::beginning, Base::begins, Base::exchange_, Base::features_,
      Base::for_features, Base::for_tiles, Base::for_units, Base::layout_, Base::layout_of, Base::multiply, Base::part_,
      Base::pass, Base::place, Base::prefetch_beginnings, Base::q_, Base::row, Base::rows_, Base::sequences_,
      Base::shared_, Base::sums_at, Base::time, Base::units_;
  static constexpr CellShape shape = shape_of<Cell, modulates>;
  static constexpr int G = Cell::gates;
  static constexpr bool multiplicative = shape.multiplicative(), of_input = shape.of_input();
  static constexpr int x_run = of_input ? 1 : G, runs = forward_staged(shape);
  template <Name name>
  using P = std::conditional_t<exists(shape, name), Product<S, held_fragments(number_of<S>, shape, name)>, NoProduct>;

 public:
  FUSED_RNN_DEVICE ForwardBlock(const typename Base::Q& q, unsigned char* shared)
      : Base(q, shared),
        h_(at<C>(shared_, layout_.carried)),
        c_(h_ + sequences_ * layout_.units),
        z_(c_ + (Cell::has_cell_state ? sequences_ * layout_.units : 0)),
        bias_(at<C>(shared_, layout_.biases)),
        pieces_(Spread::over((of_input ? features_.count : units_.count) * int{sizeof(S)} / 16)),
        recurrent_(layout_of(Name::recurrent), q.workspace, part_, shared),
        candidate_(layout_of(Name::candidate), q.workspace, part_, shared),
        input_(layout_of(Name::input), q.workspace, part_, shared),
        modulation_(layout_of(Name::modulation), q.workspace, part_, shared) {
    const int units = layout_.units;
    for (int i = threadIdx.x; i < G * units_.count; i += threads) {
      const int64_t column = int64_t{i / units_.count} * q.H + units_.first + i % units_.count;
      bias_[i] = arrays_.bias_ih ? C(widen(arrays_.bias_ih[column])) : C(0);
      bias_[G * units + i] = arrays_.bias_hh ? C(widen(arrays_.bias_hh[column])) : C(0);
    }
    for (int i = threadIdx.x; multiplicative && i < features_.count; i += threads)
      bias_[2 * G * units + i] = arrays_.bias_m ? C(widen(arrays_.bias_m[features_.first + i])) : C(0);
  }

  FUSED_RNN_DEVICE void run() {
    for_tiles([&] { run_tile(); });
  }

 private:
  FUSED_RNN_DEVICE void run_tile() {
    for_units([&](int i, int r, int u) {
      h_[i] = widen(arrays_.h_0[place(r, u)]);
      if constexpr (Cell::has_cell_state) c_[i] = widen(arrays_.c_0[place(r, u)]);
      if (begins(r, time(0))) begin_anew(i, r, u);
      exchange_.put(State::h, r, units_.first + u, h_[i]);
    });
    alive_ = alive_ && pass(State::h);
    stage(0);
    copy_async_commit();
    for (step_ = 0; step_ < q_.T; ++step_) {
      t_ = time(step_);
      if (any_active(t_) && alive_) {
        alive_ = advance();
        if (alive_) continue;
      }
      stage(step_ + 1);
      copy_async_commit();
      for_units([&](int, int r, int u) {
        const S nothing = narrow<S>(alive_ ? C(0) : not_a_number<C>());
        arrays_.output[result(r, u)] = nothing;
        if constexpr (Cell::has_cell_state)
          if (arrays_.cells) arrays_.cells[result(r, u)] = nothing;
      });
    }
    copy_async_wait<0>();
    for_units([&](int i, int r, int u) {
      arrays_.h_n[place(r, u)] = narrow<S>(alive_ ? h_[i] : not_a_number<C>());
      if constexpr (Cell::has_cell_state) arrays_.c_n[place(r, u)] = narrow<S>(alive_ ? c_[i] : not_a_number<C>());
    });
  }

  // Run all phases of a step; false if a block of the team timed out.
  FUSED_RNN_DEVICE bool advance() {
    const auto stage_next = [&] { stage(step_ + 1); };
    prefetch_beginnings(time(step_ + 1));
    if constexpr (multiplicative) {
      multiply(modulation_, State::h, sums(Name::modulation), 0, stage_next);
      make_input();
      exchange_.close();
      // this product needs no x̂, and so fills the time until the others have sent theirs
      if constexpr (of_input) multiply(recurrent_, State::h, sums(Name::recurrent));
      if (!exchange_.wait(State::x_hat)) return false;
      if constexpr (of_input)
        multiply(input_, State::x_hat, sums_x());
      else
        multiply(recurrent_, State::x_hat, sums(Name::recurrent));
    } else {
      multiply(recurrent_, State::h, sums(Name::recurrent), 0, stage_next);
    }
    if constexpr (Cell::reset_before) {
      make_gates();
      if (!pass(State::s)) return false;
      multiply(candidate_, State::s, sums(Name::candidate));
      make_candidate();
    } else {
      make_state();
    }
    return pass(State::h);
  }

  // Inputs of a step, fetched during the step before -----------------------------------------------------------------

  FUSED_RNN_DEVICE S* staged(int step, int run) const {
    const int stride = staged_stride(sizeof(S), of_input ? layout_.features : layout_.units);
    return at<S>(shared_, layout_.staged) + (step % 2 * runs + run) * sequences_ * stride;
  }

  FUSED_RNN_DEVICE void stage(int step) const {
    if (step >= q_.T || !any_active(time(step))) return;
    if constexpr (multiplicative) {
      const int64_t first = row(0, time(step)) * q_.I + features_.first;
      if constexpr (of_input)
        copy_rows(staged(step, 0), arrays_.projected + first, q_.I, rows_, features_.count, pieces_);
      copy_rows(staged(step, x_run), arrays_.input + first, q_.I, rows_, features_.count, pieces_);
    }
    if constexpr (!of_input) {
      const S* const first = arrays_.projected + row(0, time(step)) * G * q_.H + units_.first;
      for (int g = 0; g < G; ++g)
        copy_rows(staged(step, g), first + int64_t{g} * q_.H, int64_t{G} * q_.H, rows_, units_.count, pieces_);
    }
  }

  FUSED_RNN_DEVICE C staged_at(int run, int r, int column) const {
    const int stride = staged_stride(sizeof(S), of_input ? features_.count : units_.count);
    return widen(staged(step_, run)[r * stride + column]);
  }

  // Parts of the equations ----------------------------------------------------------------------------------------

  FUSED_RNN_DEVICE Sums<C> sums(Name product) const { return sums_at(0, layout_of(product).outputs); }
  FUSED_RNN_DEVICE Sums<C> sums_x() const { return sums_at(1, layout_of(Name::input).outputs); }

  // Return W x + b of n gates from `first` on.
  template <int n>
  FUSED_RNN_DEVICE void projections(int r, int u, int first, C (&wx)[n]) const {
    if constexpr (of_input)
      sums_x().totals(layout_of(Name::input).splits, r, first * layout_.units + u, layout_.units, wx);
    FUSED_RNN_UNROLL
    for (int g = 0; g < n; ++g) {
      const C bias = bias_[(first + g) * units_.count + u];
      wx[g] = bias + (of_input ? wx[g] : staged_at(first + g, r, u));
    }
  }

  // Return U h₋ + b' of n gates from `first` on, all from one product.
  template <int n>
  FUSED_RNN_DEVICE void recurrences(Name product, int r, int u, int first, C (&uh)[n]) const {
    sums(product).totals(layout_of(product).splits, r, u, layout_.units, uh);
    FUSED_RNN_UNROLL
    for (int g = 0; g < n; ++g) uh[g] += bias_[G * layout_.units + (first + g) * units_.count + u];
  }

  FUSED_RNN_DEVICE void make_input() {
    for_features([&](int, int r, int j) {
      C m, x_hat;
      const C uh =
          sums(Name::modulation).total(layout_of(Name::modulation).splits, r, j) + bias_[2 * G * layout_.units + j];
      Multiplicative::forward(of_input ? staged_at(0, r, j) : C(0), uh, staged_at(x_run, r, j), m, x_hat);
      exchange_.put(State::x_hat, r, features_.first + j, x_hat);
      save(r, Cell::saved, features_.first + j, m);
    });
  }

  FUSED_RNN_DEVICE void make_state() {
    for_units([&](int i, int r, int u) {
      C wx[G], uh[G], saved[Cell::saved], h, c = C(0);
      projections(r, u, 0, wx);
      recurrences(Name::recurrent, r, u, 0, uh);
      if constexpr (Cell::has_cell_state) c = c_[i];
      Cell::forward(wx, uh, h_[i], c, h, saved);
      FUSED_RNN_UNROLL
      for (int k = 0; k < Cell::saved; ++k) save(r, k, units_.first + u, saved[k]);
      if constexpr (Cell::has_cell_state) {
        c = zone_out(arrays_.keep_c, r, u, c_[i], c);
        if (active(r, t_)) c_[i] = c;
        if (arrays_.cells) arrays_.cells[result(r, u)] = narrow<S>(active(r, t_) ? c : C(0));
      }
      finish(i, r, u, h);
    });
  }

  FUSED_RNN_DEVICE void make_gates() {
    for_units([&](int i, int r, int u) {
      C wx[2], uh[2], reset, s;
      projections(r, u, 0, wx);
      recurrences(Name::recurrent, r, u, 0, uh);
      Cell::forward_gates(wx, uh, h_[i], reset, z_[i], s);
      exchange_.put(State::s, r, units_.first + u, s);
      save(r, 0, units_.first + u, reset);
      save(r, 1, units_.first + u, z_[i]);
    });
  }

  FUSED_RNN_DEVICE void make_candidate() {
    for_units([&](int i, int r, int u) {
      C wx[1], us[1], n, h;
      projections(r, u, 2, wx);
      recurrences(Name::candidate, r, u, 2, us);
      Cell::forward_candidate(wx[0], us[0], z_[i], h_[i], n, h);
      save(r, 2, units_.first + u, n);
      finish(i, r, u, h);
    });
  }

  // Results -------------------------------------------------------------------------------------------------------

  // Return the index of a unit in a [T, B, H] array at the current step.
  FUSED_RNN_DEVICE int64_t result(int r, int u) const { return row(r, t_) * q_.H + units_.first + u; }

  // Save a value for backward: slot `slot` of a unit, or m of a feature behind all slots.
  FUSED_RNN_DEVICE void save(int r, int slot, int column, C value) const {
    if (!arrays_.saved || !active(r, t_)) return;
    const int64_t width = int64_t{Cell::saved} * q_.H + (multiplicative ? q_.I : 0);
    arrays_.saved[row(r, t_) * width + int64_t{slot} * q_.H + column] = narrow<S>(value);
  }

  // Apply zoneout to a state.
  FUSED_RNN_DEVICE C zone_out(const S* keep, int r, int u, C before, C after) const {
    return keep ? Zoneout::forward(C(widen(keep[result(r, u)])), before, after) : after;
  }

  // Pass on the state of a unit, or the initial state if the next step begins anew, and write its output.
  FUSED_RNN_DEVICE void finish(int i, int r, int u, C h) {
    h = zone_out(arrays_.keep_h, r, u, h_[i], h);
    if (active(r, t_)) h_[i] = h;
    if (step_ + 1 < q_.T && begins(r, time(step_ + 1))) begin_anew(i, r, u);
    exchange_.put(State::h, r, units_.first + u, h_[i]);
    arrays_.output[result(r, u)] = narrow<S>(active(r, t_) ? h : C(0));
  }

  FUSED_RNN_DEVICE void begin_anew(int i, int r, int u) {
    h_[i] = beginning(q_.beginnings.h_reset, r, u);
    if constexpr (Cell::has_cell_state) c_[i] = beginning(q_.beginnings.c_reset, r, u);
  }

  int step_ = 0, t_ = 0;
  bool alive_ = true;    // false after a block of the team timed out; then results are NaN
  C *h_, *c_, *z_;       // [sequences, units]
  C* bias_;              // b and b' [G, units], b_m [features]
  const Spread pieces_;  // of the prefetched inputs
  P<Name::recurrent> recurrent_;
  P<Name::candidate> candidate_;
  P<Name::input> input_;
  P<Name::modulation> modulation_;
};

template <typename Cell, Modulates modulates, typename S, typename Exchange>
FUSED_RNN_KERNEL __launch_bounds__(threads, 1) run_forward(FUSED_RNN_PARAMETER Operands<S, Exchange, ForwardArrays> q) {
  FUSED_RNN_DYNAMIC_SHARED(shared);
  ForwardBlock<Cell, modulates, S, Exchange>(q, shared).run();
}

}  // namespace fused_rnn::cuda

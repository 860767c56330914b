// The forward kernel: a whole sequence in one launch, for every cell. W x (W_m x where x is modulated, both where h₋
// is) is computed before it, by the library.
//
// Phases of a step, each ended by a meeting of the team: multiplicative cells make m and x̂; the reset-before GRU makes
// its gates and s = r⊙h₋; the last phase makes h. So one phase for RNN, LSTM and reset-after GRU, two for the
// reset-before GRU and the multiplicative LSTMs, three for the multiplicative GRU. Where h₋ is modulated, x̂ is what U
// multiplies. h is exchanged in two copies that take turns, because a block may write h while a slower one still reads
// h₋.
#pragma once

#include "block.h"

namespace fused_rnn::cuda {

template <typename S>
struct ForwardSequence : Sequence<S> {
  const S* projected;                                      // [T, B, G*H] W x; where x is modulated [T, B, I] W_m x
  const S* x;                                              // [T, B, I] multiplicative; where h₋ is modulated W_m x
  const S *h_0, *c_0;                                      // [B, H]; c_0 in cells with a cell state
  const S *bias_ih, *bias_hh, *bias_m;                     // [G*H], [G*H], [I]; or null
  S *output, *h_n, *c_n;                                   // [T, B, H], [B, H], [B, H]
  S* cells;                                                // [T, B, H] the cell states of all steps, or null
  S* saved;                                                // [T, B, ...], or null
  int biases;                                              // offset
  State<S> h, s, x_hat;                                    // s: reset-before GRU; x_hat: multiplicative
  ProductPlan<S> recurrent, candidate, input, modulation;  // candidate: U_n of the reset-before GRU
};

// Products of the kernel, and runs of columns that a step fetches ahead: W x of the gates, or W_m x and x; where h₋ is
// modulated W x and W_m x.
template <typename Cell, Modulates modulates>
constexpr int forward_products =
    1 + Cell::reset_before + (modulates != Modulates::nothing) + (modulates == Modulates::input);
template <typename Cell, Modulates modulates>
constexpr int forward_staged = modulates == Modulates::input ? 2 : Cell::gates + (modulates == Modulates::hidden);

template <typename Cell, Modulates modulates, typename S>
class ForwardBlock : Block<ForwardSequence<S>, S> {
  using Base = Block<ForwardSequence<S>, S>;
  using C = Computed<S>;
  using Base::active, Base::any_active, Base::clear, Base::features_, Base::for_features, Base::for_tiles,
      Base::for_units, Base::multiply, Base::part_, Base::place, Base::publish, Base::q_, Base::row, Base::rows_,
      Base::shared_, Base::team_, Base::time, Base::units_;
  template <bool exists, int nth>
  using P = std::conditional_t<exists, Product<S, held_blocks<S>(forward_products<Cell, modulates>, nth)>, NoProduct>;
  static constexpr int G = Cell::gates;
  static constexpr bool multiplicative = modulates != Modulates::nothing, of_input = modulates == Modulates::input;
  static constexpr int x_run = of_input ? 1 : G;

 public:
  FUSED_RNN_DEVICE ForwardBlock(const ForwardSequence<S>& q, unsigned char* shared)
      : Base(q, shared),
        h_(at<C>(shared_, q.states)),
        c_(h_ + q.sequences * q.units),
        z_(c_ + (Cell::has_cell_state ? q.sequences * q.units : 0)),
        bias_(at<C>(shared_, q.biases)),
        pieces_(Spread::over((of_input ? features_.count : units_.count) * int{sizeof(S)} / 16)),
        recurrent_(q.recurrent, part_, shared),
        candidate_(q.candidate, part_, shared),
        input_(q.input, part_, shared),
        modulation_(q.modulation, part_, shared) {
    for (int i = threadIdx.x; i < G * units_.count; i += threads) {
      const int64_t column = int64_t{i / units_.count} * q.H + units_.first + i % units_.count;
      bias_[i] = q.bias_ih ? C(widen(q.bias_ih[column])) : C(0);
      bias_[G * q.units + i] = q.bias_hh ? C(widen(q.bias_hh[column])) : C(0);
    }
    for (int i = threadIdx.x; multiplicative && i < features_.count; i += threads)
      bias_[2 * G * q.units + i] = q.bias_m ? C(widen(q.bias_m[features_.first + i])) : C(0);
    clear(q.h);
    if constexpr (Cell::reset_before) clear(q.s);
    if constexpr (multiplicative) clear(q.x_hat);
  }

  FUSED_RNN_DEVICE void run() {
    for_tiles([&] { run_tile(); });
  }

 private:
  FUSED_RNN_DEVICE void run_tile() {
    for_units([&](int i, int r, int u) {
      h_[i] = widen(q_.h_0[place(r, u)]);
      publish(q_.h, turn_, r, units_.first + u, h_[i]);
      if constexpr (Cell::has_cell_state) c_[i] = widen(q_.c_0[place(r, u)]);
    });
    alive_ = alive_ && team_.meet();
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
        q_.output[result(r, u)] = nothing;
        if constexpr (Cell::has_cell_state)
          if (q_.cells) q_.cells[result(r, u)] = nothing;
      });
    }
    copy_async_wait<0>();
    for_units([&](int i, int r, int u) {
      q_.h_n[place(r, u)] = narrow<S>(alive_ ? h_[i] : not_a_number<C>());
      if constexpr (Cell::has_cell_state) q_.c_n[place(r, u)] = narrow<S>(alive_ ? c_[i] : not_a_number<C>());
    });
  }

  // All phases of a step; false if a block of the team did not come in time.
  FUSED_RNN_DEVICE bool advance() {
    const auto stage_next = [&] { stage(step_ + 1); };
    if constexpr (multiplicative) {
      multiply(modulation_, q_.h, turn_, sums(q_.modulation), 0, stage_next);
      make_input();
      team_.arrive();
      // needs no x̂, and so fills the time until the others come
      if constexpr (of_input) multiply(recurrent_, q_.h, turn_, sums(q_.recurrent));
      if (!team_.wait()) return false;
      if constexpr (of_input)
        multiply(input_, q_.x_hat, 0, sums_x());
      else
        multiply(recurrent_, q_.x_hat, 0, sums(q_.recurrent));
    } else {
      multiply(recurrent_, q_.h, turn_, sums(q_.recurrent), 0, stage_next);
    }
    if constexpr (Cell::reset_before) {
      make_gates();
      if (!team_.meet()) return false;
      multiply(candidate_, q_.s, 0, sums(q_.candidate));
      make_candidate();
    } else {
      make_state();
    }
    turn_ = 1 - turn_;
    return team_.meet();
  }

  // Inputs of a step, fetched during the step before -----------------------------------------------------------------

  FUSED_RNN_DEVICE S* staged(int step, int run) const {
    const int stride = staged_stride<S>(of_input ? q_.features : q_.units);
    return at<S>(shared_, q_.staged) + (step % 2 * forward_staged<Cell, modulates> + run) * q_.sequences * stride;
  }

  FUSED_RNN_DEVICE void stage(int step) const {
    if (step >= q_.T || !any_active(time(step))) return;
    if constexpr (multiplicative) {
      const int64_t first = row(0, time(step)) * q_.I + features_.first;
      if constexpr (of_input) copy_rows(staged(step, 0), q_.projected + first, q_.I, rows_, features_.count, pieces_);
      copy_rows(staged(step, x_run), q_.x + first, q_.I, rows_, features_.count, pieces_);
    }
    if constexpr (!of_input) {
      const S* const first = q_.projected + row(0, time(step)) * G * q_.H + units_.first;
      for (int g = 0; g < G; ++g)
        copy_rows(staged(step, g), first + int64_t{g} * q_.H, int64_t{G} * q_.H, rows_, units_.count, pieces_);
    }
  }

  FUSED_RNN_DEVICE C staged_at(int run, int r, int column) const {
    const int stride = staged_stride<S>(of_input ? features_.count : units_.count);
    return widen(staged(step_, run)[r * stride + column]);
  }

  // Parts of the equations ----------------------------------------------------------------------------------------

  FUSED_RNN_DEVICE Sums<C> sums(const ProductPlan<S>& p) const {
    return {at<C>(shared_, q_.sums), sums_stride(p.outputs), q_.sequences};
  }
  FUSED_RNN_DEVICE Sums<C> sums_x() const {
    return {at<C>(shared_, q_.more_sums), sums_stride(q_.input.outputs), q_.sequences};
  }

  // W x + b of n gates from `first` on.
  template <int n>
  FUSED_RNN_DEVICE void projections(int r, int u, int first, C (&wx)[n]) const {
    if constexpr (of_input) sums_x().totals(q_.input.parts, r, first * q_.units + u, q_.units, wx);
    FUSED_RNN_UNROLL
    for (int g = 0; g < n; ++g) {
      const C bias = bias_[(first + g) * units_.count + u];
      wx[g] = bias + (of_input ? wx[g] : staged_at(first + g, r, u));
    }
  }

  // U h₋ + b' of n gates from `first` on, which are those of a product.
  template <int n>
  FUSED_RNN_DEVICE void recurrences(const ProductPlan<S>& p, int r, int u, int first, C (&uh)[n]) const {
    sums(p).totals(p.parts, r, u, q_.units, uh);
    FUSED_RNN_UNROLL
    for (int g = 0; g < n; ++g) uh[g] += bias_[G * q_.units + (first + g) * units_.count + u];
  }

  FUSED_RNN_DEVICE void make_input() {
    for_features([&](int, int r, int j) {
      C m, x_hat;
      const C uh = sums(q_.modulation).total(q_.modulation.parts, r, j) + bias_[2 * G * q_.units + j];
      Multiplicative::forward(of_input ? staged_at(0, r, j) : C(0), uh, staged_at(x_run, r, j), m, x_hat);
      publish(q_.x_hat, 0, r, features_.first + j, x_hat);
      save(r, Cell::saved, features_.first + j, m);
    });
  }

  FUSED_RNN_DEVICE void make_state() {
    for_units([&](int i, int r, int u) {
      C wx[G], uh[G], saved[Cell::saved], h, c = C(0);
      projections(r, u, 0, wx);
      recurrences(q_.recurrent, r, u, 0, uh);
      if constexpr (Cell::has_cell_state) c = c_[i];
      Cell::forward(wx, uh, h_[i], c, h, saved);
      FUSED_RNN_UNROLL
      for (int k = 0; k < Cell::saved; ++k) save(r, k, units_.first + u, saved[k]);
      if constexpr (Cell::has_cell_state) {
        c = zone_out(q_.keep_c, r, u, c_[i], c);
        if (active(r, t_)) c_[i] = c;
        if (q_.cells) q_.cells[result(r, u)] = narrow<S>(active(r, t_) ? c : C(0));
      }
      finish(i, r, u, h);
    });
  }

  FUSED_RNN_DEVICE void make_gates() {
    for_units([&](int i, int r, int u) {
      C wx[2], uh[2], reset, s;
      projections(r, u, 0, wx);
      recurrences(q_.recurrent, r, u, 0, uh);
      Cell::forward_gates(wx, uh, h_[i], reset, z_[i], s);
      publish(q_.s, 0, r, units_.first + u, s);
      save(r, 0, units_.first + u, reset);
      save(r, 1, units_.first + u, z_[i]);
    });
  }

  FUSED_RNN_DEVICE void make_candidate() {
    for_units([&](int i, int r, int u) {
      C wx[1], us[1], n, h;
      projections(r, u, 2, wx);
      recurrences(q_.candidate, r, u, 2, us);
      Cell::forward_candidate(wx[0], us[0], z_[i], h_[i], n, h);
      save(r, 2, units_.first + u, n);
      finish(i, r, u, h);
    });
  }

  // Results -------------------------------------------------------------------------------------------------------

  // Where a unit of the step stands in a [T, B, H] array.
  FUSED_RNN_DEVICE int64_t result(int r, int u) const { return row(r, t_) * q_.H + units_.first + u; }

  // A value that backward reads: the `slot` of a unit, or after all slots m of a feature.
  FUSED_RNN_DEVICE void save(int r, int slot, int column, C value) const {
    if (!q_.saved || !active(r, t_)) return;
    const int64_t width = int64_t{Cell::saved} * q_.H + (multiplicative ? q_.I : 0);
    q_.saved[row(r, t_) * width + int64_t{slot} * q_.H + column] = narrow<S>(value);
  }

  // What zoneout makes of a state that the cell changed.
  FUSED_RNN_DEVICE C zone_out(const S* keep, int r, int u, C before, C after) const {
    return keep ? Zoneout::forward(C(widen(keep[result(r, u)])), before, after) : after;
  }

  // Hand on the state of a unit, and put out its output.
  FUSED_RNN_DEVICE void finish(int i, int r, int u, C h) {
    h = zone_out(q_.keep_h, r, u, h_[i], h);
    if (active(r, t_)) h_[i] = h;
    publish(q_.h, 1 - turn_, r, units_.first + u, h_[i]);
    q_.output[result(r, u)] = narrow<S>(active(r, t_) ? h : C(0));
  }

  int step_ = 0, t_ = 0, turn_ = 0;  // turn_: which of the two copies is h₋
  bool alive_ = true;                // until a block of the team does not come; then results are NaN
  C *h_, *c_, *z_;                   // [sequences, units]
  C* bias_;                          // b and b' [G, units], b_m [features]
  const Spread pieces_;              // of what is fetched ahead
  // numbered as the planner lists them
  P<true, 0> recurrent_;
  P<Cell::reset_before, 1> candidate_;
  P<of_input, 1 + Cell::reset_before> input_;
  P<multiplicative, 1 + Cell::reset_before + of_input> modulation_;
};

template <typename Cell, Modulates modulates, typename S>
FUSED_RNN_KERNEL __launch_bounds__(threads, 1) run_forward(FUSED_RNN_PARAMETER ForwardSequence<S> q) {
  FUSED_RNN_DYNAMIC_SHARED(shared);
  ForwardBlock<Cell, modulates, S>(q, shared).run();
}

}  // namespace fused_rnn::cuda

// The backward kernel: a whole sequence in one launch, against the order of the forward steps. It leaves the gradients
// of all pre-activations in one matrix, from which the library makes every weight gradient and δx afterwards.
//
// Phases of a step: the cell's pointwise backward; in the reset-before GRU the product with U_nᵀ and the reset gate;
// in multiplicative cells the product with Wᵀ (where h₋ is modulated, Uᵀ) and δm; then δh₋ = Uᵀδ + U_mᵀδm (where h₋ is
// modulated, U_mᵀδm alone). A team meets before each product, because a product reads gradients of all units. They are
// exchanged in two copies that take turns from step to step, because a block may write those of a step while a slower
// one still reads those of the step before.
#pragma once

#include "block.h"

namespace fused_rnn::cuda {

template <typename S>
struct BackwardSequence : Sequence<S> {
  const S* x;                                   // [T, B, I] multiplicative; where h₋ is modulated W_m x
  const S *h_0, *c_0;                           // [B, H]; c_0 in cells with a cell state
  const S *output, *cells, *saved;              // of the forward pass; cells in cells with a cell state
  const S *d_output, *d_h_n, *d_c_n, *d_cells;  // gradients of the results; null for zeros
  S *d_h_0, *d_c_0;                             // [B, H]; d_c_0 in cells with a cell state
  S* d;                                         // [T, B, Cell::gradients * H (+ I)] of the pre-activations, then δm
  S* d_x;                     // [T, B, I] multiplicative: the part of δx that does not pass through W_m
  Computed<S> gradient_clip;  // the largest magnitude of a gradient of a pre-activation
  // What products read: δ of the gates that U multiplies alone; of n, beside W and beside U; δm.
  State<S> d_gates, d_n, d_q, d_m;
  // Uᵀ and Wᵀ, without their columns for n where these multiply something of their own, and those; U_mᵀ. Where h₋ is
  // modulated, `input` is Uᵀ, and there is no `recurrent`
  ProductPlan<S> recurrent, recurrent_n, input, input_n, modulation;
};

// Products of the kernel, and runs of columns that a step fetches ahead: what was saved, δ output, h₋, and in cells
// with a cell state, which do not read h₋, in its place c, then c₋ and δ of c.
template <typename Cell, Modulates modulates>
constexpr int backward_products = modulates == Modulates::nothing ? 1 + Cell::n_apart
                                  : modulates == Modulates::input ? 2 * (1 + Cell::n_apart) + 1
                                                                  : 2;
template <typename Cell>
constexpr int backward_staged = Cell::saved + 3 + Cell::has_cell_state;

// Gates whose δ products read side by side, and whether U_n reads δq where W_n reads δa_n.
template <typename Cell>
constexpr int gates_together = Cell::n_apart ? 2 : Cell::gates;
template <typename Cell>
constexpr bool has_q = Cell::n_apart && !Cell::reset_before;

template <typename Cell, Modulates modulates, typename S>
class BackwardBlock : Block<BackwardSequence<S>, S> {
  using Base = Block<BackwardSequence<S>, S>;
  using C = Computed<S>;
  using Base::active, Base::any_active, Base::clear, Base::features_, Base::for_features, Base::for_tiles,
      Base::for_units, Base::multiply, Base::part_, Base::place, Base::publish, Base::q_, Base::row, Base::rows_,
      Base::shared_, Base::team_, Base::time, Base::units_;
  template <bool exists, int nth>
  using P = std::conditional_t<exists, Product<S, held_blocks<S>(backward_products<Cell, modulates>, nth)>, NoProduct>;
  static constexpr bool multiplicative = modulates != Modulates::nothing, of_hidden = modulates == Modulates::hidden;
  static constexpr int d_output_run = Cell::saved, h_run = Cell::saved + 1, c_run = h_run, c_prev_run = Cell::saved + 2,
                       d_cells_run = Cell::saved + 3;
  static_assert(!(Cell::has_cell_state && Cell::bypasses_product), "h₋ and c stand in the same place");

 public:
  FUSED_RNN_DEVICE BackwardBlock(const BackwardSequence<S>& q, unsigned char* shared)
      : Base(q, shared),
        dh_(at<C>(shared_, q.states)),
        dc_(dh_ + q.sequences * q.units),
        pieces_(Spread::over(units_.count * int{sizeof(S)} / 16)),
        recurrent_(q.recurrent, part_, shared),
        recurrent_n_(q.recurrent_n, part_, shared),
        input_(q.input, part_, shared),
        input_n_(q.input_n, part_, shared),
        modulation_(q.modulation, part_, shared) {
    clear(q.d_gates);
    if constexpr (Cell::n_apart) clear(q.d_n);
    if constexpr (has_q<Cell>) clear(q.d_q);
    if constexpr (multiplicative) clear(q.d_m);
  }

  FUSED_RNN_DEVICE void run() {
    for_tiles([&] { run_tile(); });
  }

 private:
  FUSED_RNN_DEVICE void run_tile() {
    for_units([&](int i, int r, int u) {
      dh_[i] = q_.d_h_n ? C(widen(q_.d_h_n[place(r, u)])) : C(0);
      if constexpr (Cell::has_cell_state) dc_[i] = q_.d_c_n ? C(widen(q_.d_c_n[place(r, u)])) : C(0);
    });
    stage(q_.T - 1);
    finish_copies();
    for (step_ = q_.T - 1; step_ >= 0; --step_) {
      t_ = time(step_);
      stage(step_ - 1);
      copy_async_commit();
      make_gradients();
      if constexpr (multiplicative) clear_idle_features();
      if (any_active(t_) && alive_) alive_ = hand_back();
      finish_copies();
      turn_ = 1 - turn_;
    }
    for_units([&](int i, int r, int u) {
      q_.d_h_0[place(r, u)] = narrow<S>(alive_ ? dh_[i] : not_a_number<C>());
      if constexpr (Cell::has_cell_state) q_.d_c_0[place(r, u)] = narrow<S>(alive_ ? dc_[i] : not_a_number<C>());
    });
  }

  // The phases that follow; false if a block of the team did not come in time.
  FUSED_RNN_DEVICE bool hand_back() {
    if (!team_.meet()) return false;
    if constexpr (Cell::reset_before) {
      multiply(recurrent_n_, q_.d_n, turn_, sums());
      reset();
      if (!team_.meet()) return false;
    }
    if constexpr (multiplicative) {
      multiply(input_, q_.d_gates, turn_, sums_x());
      if constexpr (Cell::n_apart) multiply(input_n_, q_.d_n, turn_, sums_x(), q_.input.parts);
      modulate();
      team_.arrive();
    }
    // fills the time until the others come with δm
    if constexpr (!of_hidden) multiply(recurrent_, q_.d_gates, turn_, sums());
    if constexpr (has_q<Cell>) multiply(recurrent_n_, q_.d_q, turn_, sums(), q_.recurrent.parts);
    if constexpr (multiplicative) {
      if (!team_.wait()) return false;
      multiply(modulation_, q_.d_m, turn_, sums(), recurrent_parts());
    }
    recur();
    return true;
  }

  // What the forward pass left, fetched during the step before -------------------------------------------------------

  FUSED_RNN_DEVICE S* staged(int step, int run) const {
    return at<S>(shared_, q_.staged) +
           ((step & 1) * backward_staged<Cell> + run) * q_.sequences * staged_stride<S>(q_.units);
  }

  FUSED_RNN_DEVICE void stage(int step) const {
    if (step < 0 || !any_active(time(step))) return;
    const int64_t first = row(0, time(step)), before = row(0, time(step - 1)), H = q_.H;
    const auto fetch = [&](int run, const S* from, int64_t stride) {
      copy_rows(staged(step, run), from + units_.first, stride, rows_, units_.count, pieces_);
    };
    for (int k = 0; k < Cell::saved; ++k) fetch(k, q_.saved + first * saved_width() + k * H, saved_width());
    if (q_.d_output) fetch(d_output_run, q_.d_output + first * H, H);
    if constexpr (Cell::has_cell_state) {
      fetch(c_run, q_.cells + first * H, H);
      if (q_.d_cells) fetch(d_cells_run, q_.d_cells + first * H, H);
    }
    if (step == 0 || !any_active(time(step - 1))) return;
    if constexpr (Cell::bypasses_product) fetch(h_run, q_.output + before * H, H);
    if constexpr (Cell::has_cell_state) fetch(c_prev_run, q_.cells + before * H, H);
  }

  FUSED_RNN_DEVICE static void finish_copies() {
    copy_async_commit();
    copy_async_wait<0>();
    __syncthreads();
  }

  FUSED_RNN_DEVICE C staged_at(int run, int r, int u) const {
    return widen(staged(step_, run)[r * staged_stride<S>(units_.count) + u]);
  }

  // Whether this is the first step of a sequence, so that h₋ and c₋ are its initial state.
  FUSED_RNN_DEVICE bool first(int r) const { return step_ == 0 || !active(r, time(step_ - 1)); }
  FUSED_RNN_DEVICE C h_prev(int r, int u) const {
    if constexpr (!Cell::bypasses_product) return C(0);  // not used
    return first(r) ? C(widen(q_.h_0[place(r, u)])) : staged_at(h_run, r, u);
  }
  FUSED_RNN_DEVICE C c_prev(int r, int u) const {
    return first(r) ? C(widen(q_.c_0[place(r, u)])) : staged_at(c_prev_run, r, u);
  }

  // Parts of the equations ----------------------------------------------------------------------------------------

  FUSED_RNN_DEVICE int64_t saved_width() const { return int64_t{Cell::saved} * q_.H + (multiplicative ? q_.I : 0); }
  FUSED_RNN_DEVICE int64_t d_width() const { return int64_t{Cell::gradients} * q_.H + (multiplicative ? q_.I : 0); }

  FUSED_RNN_DEVICE Sums<C> sums() const {
    return {at<C>(shared_, q_.sums), sums_stride((of_hidden ? q_.modulation : q_.recurrent).outputs), q_.sequences};
  }
  FUSED_RNN_DEVICE Sums<C> sums_x() const {
    return {at<C>(shared_, q_.more_sums), sums_stride(q_.input.outputs), q_.sequences};
  }
  FUSED_RNN_DEVICE int recurrent_parts() const {
    return of_hidden ? 0 : q_.recurrent.parts + (has_q<Cell> ? q_.recurrent_n.parts : 0);
  }

  // Clip the gradient of a pre-activation, put it out, and hand it to the products that read it.
  FUSED_RNN_DEVICE void put(int r, int gate, int u, C value) const {
    const int unit = units_.first + u;
    value = clip(value, q_.gradient_clip);
    q_.d[row(r, t_) * d_width() + int64_t{gate} * q_.H + unit] = narrow<S>(value);
    if (gate < gates_together<Cell>)
      publish(q_.d_gates, turn_, r, gate * q_.H + unit, value);
    else if (gate == Cell::gates)
      publish(q_.d_q, turn_, r, unit, value);
    else if (Cell::reset_before || multiplicative)
      publish(q_.d_n, turn_, r, unit, value);
  }

  // What goes past the cell, by zoneout, of the gradient of a state; d becomes what goes through it.
  FUSED_RNN_DEVICE C kept(const S* keep, int r, int u, C& d) const {
    return keep ? Zoneout::backward(C(widen(keep[row(r, t_) * q_.H + units_.first + u])), d) : C(0);
  }

  // Zoneout, and the cell's pointwise backward: all of it, or up to the reset gate.
  FUSED_RNN_DEVICE void make_gradients() {
    for_units([&](int i, int r, int u) {
      C d[Cell::gradients] = {};
      if (active(r, t_)) {
        C dh = dh_[i], dc = C(0);
        if (q_.d_output) dh += staged_at(d_output_run, r, u);
        const C kept_dh = kept(q_.keep_h, r, u, dh);
        if constexpr (Cell::reset_before) {
          Cell::backward_candidate(staged_at(1, r, u), staged_at(2, r, u), h_prev(r, u), dh, d[1], d[2]);
        } else {
          C values[Cell::saved], before = C(0), c = C(0), kept_dc = C(0);
          FUSED_RNN_UNROLL
          for (int k = 0; k < Cell::saved; ++k) values[k] = staged_at(k, r, u);
          if constexpr (Cell::has_cell_state) {
            before = c_prev(r, u);
            c = staged_at(c_run, r, u);
            dc = dc_[i];
            if (q_.d_cells) dc += staged_at(d_cells_run, r, u);
            kept_dc = kept(q_.keep_c, r, u, dc);
            if (q_.keep_c) c = Cell::cell_state(values, before);  // that which the cell made
          }
          Cell::backward(values, h_prev(r, u), before, c, dh, dc, d);
          if constexpr (Cell::has_cell_state) dc_[i] = dc + kept_dc;
        }
        dh_[i] = (Cell::bypasses_product ? dh : C(0)) + kept_dh;
      }
      FUSED_RNN_UNROLL
      for (int g = 0; g < Cell::gradients; ++g) put(r, g, u, alive_ ? d[g] : not_a_number<C>());
    });
  }

  // ds = U_nᵀ δa_n
  FUSED_RNN_DEVICE void reset() {
    for_units([&](int i, int r, int u) {
      if (!active(r, t_)) return;
      C da_r;
      const C ds = sums().total(q_.recurrent_n.parts, r, u);
      Cell::backward_reset(ds, staged_at(0, r, u), h_prev(r, u), dh_[i], da_r);
      put(r, 0, u, da_r);
    });
  }

  // δx̂ = Wᵀ δ, or Uᵀ δ where it takes the place of h₋
  FUSED_RNN_DEVICE void modulate() {
    for_features([&](int, int r, int j) {
      if (!active(r, t_)) return;
      const int feature = features_.first + j;
      const C dx_hat = sums_x().total(q_.input.parts + (Cell::n_apart ? q_.input_n.parts : 0), r, j);
      const C m = widen(q_.saved[row(r, t_) * saved_width() + int64_t{Cell::saved} * q_.H + feature]);
      C dm, dx;
      Multiplicative::backward(dx_hat, C(widen(q_.x[row(r, t_) * q_.I + feature])), m, dm, dx);
      dm = clip(dm, q_.gradient_clip);
      if (of_hidden) dx = clip(dx, q_.gradient_clip);  // of W_m x, a pre-activation too
      put_feature(r, feature, dm, dx);
      publish(q_.d_m, turn_, r, feature, dm);
    });
  }

  FUSED_RNN_DEVICE void put_feature(int r, int feature, C dm, C dx) const {
    q_.d[row(r, t_) * d_width() + int64_t{Cell::gradients} * q_.H + feature] = narrow<S>(dm);
    q_.d_x[row(r, t_) * q_.I + feature] = narrow<S>(dx);
  }

  FUSED_RNN_DEVICE void clear_idle_features() const {
    for_features([&](int, int r, int j) {
      const C value = alive_ ? C(0) : not_a_number<C>();
      if (!alive_ || !active(r, t_)) put_feature(r, features_.first + j, value, value);
    });
  }

  // δh₋ = what bypassed the product, in the cell or by zoneout, + Uᵀ δ + U_mᵀ δm
  FUSED_RNN_DEVICE void recur() {
    const int parts = recurrent_parts() + (multiplicative ? q_.modulation.parts : 0);
    for_units([&](int i, int r, int u) {
      if (!active(r, t_)) return;
      dh_[i] += sums().total(parts, r, u);
    });
  }

  int step_ = 0, t_ = 0, turn_ = 0;  // turn_: which of the two copies this step writes
  bool alive_ = true;                // until a block of the team does not come; then results are NaN
  C *dh_, *dc_;                      // [sequences, units]
  const Spread pieces_;              // of what is fetched ahead
  // numbered as the planner lists them
  P<!of_hidden, 0> recurrent_;
  P<Cell::n_apart, 1> recurrent_n_;
  P<multiplicative, of_hidden ? 0 : 1 + Cell::n_apart> input_;
  P<multiplicative && Cell::n_apart, 3> input_n_;
  P<multiplicative, of_hidden ? 1 : 2 + 2 * Cell::n_apart> modulation_;
};

template <typename Cell, Modulates modulates, typename S>
FUSED_RNN_KERNEL __launch_bounds__(threads, 1) run_backward(FUSED_RNN_PARAMETER BackwardSequence<S> q) {
  FUSED_RNN_DYNAMIC_SHARED(shared);
  BackwardBlock<Cell, modulates, S>(q, shared).run();
}

}  // namespace fused_rnn::cuda

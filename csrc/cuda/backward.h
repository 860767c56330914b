// The backward block kernel: a whole sequence in one launch, against the order of the forward steps. It writes the
// gradients of all pre-activations to one matrix, from which the library computes every weight gradient and δx
// afterwards.
//
// Phases of a step: the cell's pointwise backward; in the reset-before GRU the product with U_nᵀ and the reset gate;
// in multiplicative cells the product with Wᵀ (in Krause's mLSTM Uᵀ) and δm; then δh₋ = Uᵀδ + U_mᵀδm (in Krause's mLSTM
// U_mᵀδm alone). The team exchanges results before each product, because a product reads the gradients of all units.
#pragma once

#include "block.h"

namespace fused_rnn::cuda {

template <typename Cell, Modulates modulates, typename S, typename Exchange>
class BackwardBlock : Block<S, Exchange, BackwardArrays> {
  using Base = Block<S, Exchange, BackwardArrays>;
  using C = Computed<S>;
  using State = BackwardState;
  using Name = BackwardProduct;
  using Base::active, Base::any_active, Base::arrays_, Base::beginning, Base::begins, Base::exchange_, Base::features_,
      Base::for_features, Base::for_tiles, Base::for_units, Base::layout_, Base::layout_of, Base::multiply, Base::part_,
      Base::pass, Base::place, Base::prefetch_beginnings, Base::q_, Base::row, Base::rows_, Base::sequences_,
      Base::shared_, Base::sums_at, Base::time, Base::units_;
  static constexpr CellShape shape = shape_of<Cell, modulates>;
  static constexpr bool multiplicative = shape.multiplicative(), of_hidden = shape.of_hidden();
  static constexpr bool has_n = exists(shape, State::n), has_q = shape.has_q();
  static constexpr int gates_together = shape.gates_together(), runs = backward_staged(shape);
  static constexpr int d_output_run = Cell::saved, h_run = Cell::saved + 1, c_run = h_run, c_prev_run = Cell::saved + 2,
                       d_cells_run = Cell::saved + 3;
  static_assert(!(Cell::has_cell_state && Cell::bypasses_product), "h₋ and c stand in the same place");
  template <Name name>
  using P = std::conditional_t<exists(shape, name), Product<S, held_fragments(number_of<S>, shape, name)>, NoProduct>;

 public:
  FUSED_RNN_DEVICE BackwardBlock(const typename Base::Q& q, unsigned char* shared)
      : Base(q, shared),
        dh_(at<C>(shared_, layout_.carried)),
        dc_(dh_ + sequences_ * layout_.units),
        pieces_(Spread::over(units_.count * int{sizeof(S)} / 16)),
        recurrent_(layout_of(Name::recurrent), q.workspace, part_, shared),
        recurrent_n_(layout_of(Name::recurrent_n), q.workspace, part_, shared),
        input_(layout_of(Name::input), q.workspace, part_, shared),
        input_n_(layout_of(Name::input_n), q.workspace, part_, shared),
        modulation_(layout_of(Name::modulation), q.workspace, part_, shared) {}

  FUSED_RNN_DEVICE void run() {
    for_tiles([&] { run_tile(); });
  }

 private:
  FUSED_RNN_DEVICE void run_tile() {
    for_units([&](int i, int r, int u) {
      dh_[i] = arrays_.d_h_n ? C(widen(arrays_.d_h_n[place(r, u)])) : C(0);
      if constexpr (Cell::has_cell_state) dc_[i] = arrays_.d_c_n ? C(widen(arrays_.d_c_n[place(r, u)])) : C(0);
      set(q_.beginnings.d_h_reset, r, u, C(0));
      set(q_.beginnings.d_c_reset, r, u, C(0));
    });
    stage(q_.T - 1);
    finish_copies();
    for (step_ = q_.T - 1; step_ >= 0; --step_) {
      t_ = time(step_);
      stage(step_ - 1);
      copy_async_commit();
      make_gradients();
      if constexpr (multiplicative) clear_idle_features();
      if (any_active(t_) && alive_ && !hand_back()) give_up();
      finish_copies();
    }
    for_units([&](int i, int r, int u) {
      arrays_.d_h_0[place(r, u)] = narrow<S>(alive_ ? dh_[i] : not_a_number<C>());
      if constexpr (Cell::has_cell_state) arrays_.d_c_0[place(r, u)] = narrow<S>(alive_ ? dc_[i] : not_a_number<C>());
      if (alive_) return;
      set(q_.beginnings.d_h_reset, r, u, not_a_number<C>());
      set(q_.beginnings.d_c_reset, r, u, not_a_number<C>());
    });
  }

  // Make this step's gradients NaN after a block of the team timed out; those of later steps will be, too.
  FUSED_RNN_DEVICE void give_up() {
    alive_ = false;
    for_units([&](int, int r, int u) {
      for (int g = 0; g < Cell::gradients; ++g) put(r, g, u, not_a_number<C>());
    });
    if constexpr (multiplicative) clear_idle_features();
  }

  // Run the phases that follow; false if a block of the team timed out.
  FUSED_RNN_DEVICE bool hand_back() {
    if constexpr (Cell::reset_before) {
      if (!pass(State::n)) return false;
      multiply(recurrent_n_, State::n, sums());
      reset();
    }
    // these include states that the cell may lack
    if (!(Cell::reset_before ? pass(State::gates) : pass(State::gates, State::n, State::q))) return false;
    if constexpr (multiplicative) {
      multiply(input_, State::gates, sums_x());
      if constexpr (Cell::n_apart) multiply(input_n_, State::n, sums_x(), splits(Name::input));
      modulate();
      exchange_.close();
    }
    // this product fills the time until the others have sent δm
    if constexpr (!of_hidden) multiply(recurrent_, State::gates, sums());
    if constexpr (has_q) multiply(recurrent_n_, State::q, sums(), splits(Name::recurrent));
    if constexpr (multiplicative) {
      if (!exchange_.wait(State::m)) return false;
      multiply(modulation_, State::m, sums(), recurrent_splits());
    }
    recur();
    return true;
  }

  // What the forward pass left, fetched during the step before -------------------------------------------------------

  FUSED_RNN_DEVICE S* staged(int step, int run) const {
    return at<S>(shared_, layout_.staged) +
           ((step & 1) * runs + run) * sequences_ * staged_stride(sizeof(S), layout_.units);
  }

  FUSED_RNN_DEVICE void stage(int step) const {
    if (step < 0 || !any_active(time(step))) return;
    prefetch_beginnings(time(step));
    const int64_t first = row(0, time(step)), before = row(0, time(step - 1)), H = q_.H;
    const auto fetch = [&](int run, const S* from, int64_t stride) {
      copy_rows(staged(step, run), from + units_.first, stride, rows_, units_.count, pieces_);
    };
    for (int k = 0; k < Cell::saved; ++k) fetch(k, arrays_.saved + first * saved_width() + k * H, saved_width());
    if (arrays_.d_output) fetch(d_output_run, arrays_.d_output + first * H, H);
    if constexpr (Cell::has_cell_state) {
      fetch(c_run, arrays_.cells + first * H, H);
      if (arrays_.d_cells) fetch(d_cells_run, arrays_.d_cells + first * H, H);
    }
    if (step == 0 || !any_active(time(step - 1))) return;
    if constexpr (Cell::bypasses_product) fetch(h_run, arrays_.output + before * H, H);
    if constexpr (Cell::has_cell_state) fetch(c_prev_run, arrays_.cells + before * H, H);
  }

  FUSED_RNN_DEVICE static void finish_copies() {
    copy_async_commit();
    copy_async_wait<0>();
    __syncthreads();
  }

  FUSED_RNN_DEVICE C staged_at(int run, int r, int u) const {
    return widen(staged(step_, run)[r * staged_stride(sizeof(S), units_.count) + u]);
  }

  // Whether this is the first step of a sequence, so that h₋ and c₋ are its initial state.
  FUSED_RNN_DEVICE bool first(int r) const { return step_ == 0 || !active(r, time(step_ - 1)); }
  FUSED_RNN_DEVICE C h_prev(int r, int u) const {
    if constexpr (!Cell::bypasses_product) return C(0);  // unused
    if (begins(r, t_)) return beginning(q_.beginnings.h_reset, r, u);
    return first(r) ? C(widen(arrays_.h_0[place(r, u)])) : staged_at(h_run, r, u);
  }
  FUSED_RNN_DEVICE C c_prev(int r, int u) const {
    if (begins(r, t_)) return beginning(q_.beginnings.c_reset, r, u);
    return first(r) ? C(widen(arrays_.c_0[place(r, u)])) : staged_at(c_prev_run, r, u);
  }

  // Parts of the equations ----------------------------------------------------------------------------------------

  FUSED_RNN_DEVICE int64_t saved_width() const { return int64_t{Cell::saved} * q_.H + (multiplicative ? q_.I : 0); }
  FUSED_RNN_DEVICE int64_t d_width() const { return int64_t{Cell::gradients} * q_.H + (multiplicative ? q_.I : 0); }

  FUSED_RNN_DEVICE int splits(Name product) const { return layout_of(product).splits; }
  FUSED_RNN_DEVICE Sums<C> sums() const {
    return sums_at(0, layout_of(of_hidden ? Name::modulation : Name::recurrent).outputs);
  }
  FUSED_RNN_DEVICE Sums<C> sums_x() const { return sums_at(1, layout_of(Name::input).outputs); }
  FUSED_RNN_DEVICE int recurrent_splits() const {
    return of_hidden ? 0 : splits(Name::recurrent) + (has_q ? splits(Name::recurrent_n) : 0);
  }

  // Clip the gradient of a pre-activation, write it, and pass it to the products that read it.
  FUSED_RNN_DEVICE void put(int r, int gate, int u, C value) const {
    const int unit = units_.first + u;
    value = clip(value, q_.gradient_clip);
    arrays_.d[row(r, t_) * d_width() + int64_t{gate} * q_.H + unit] = narrow<S>(value);
    if (gate < gates_together)
      exchange_.put(State::gates, r, gate * q_.H + unit, value);
    else if (gate == Cell::gates)
      exchange_.put(State::q, r, unit, value);
    else if (has_n)
      exchange_.put(State::n, r, unit, value);
  }

  // Return the part of a state's gradient that bypasses the cell, by zoneout; d becomes the part through the cell.
  FUSED_RNN_DEVICE C kept(const S* keep, int r, int u, C& d) const {
    return keep ? Zoneout::backward(C(widen(keep[row(r, t_) * q_.H + units_.first + u])), d) : C(0);
  }

  // Run zoneout, and the cell's pointwise backward: all of it, or up to the reset gate.
  FUSED_RNN_DEVICE void make_gradients() {
    for_units([&](int i, int r, int u) {
      C d[Cell::gradients] = {};
      if (active(r, t_)) {
        C dh = dh_[i], dc = C(0);
        if (arrays_.d_output) dh += staged_at(d_output_run, r, u);
        const C kept_dh = kept(arrays_.keep_h, r, u, dh);
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
            if (arrays_.d_cells) dc += staged_at(d_cells_run, r, u);
            kept_dc = kept(arrays_.keep_c, r, u, dc);
            if (arrays_.keep_c) c = Cell::cell_state(values, before);  // c before zoneout
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
      const C ds = sums().total(splits(Name::recurrent_n), r, u);
      Cell::backward_reset(ds, staged_at(0, r, u), h_prev(r, u), dh_[i], da_r);
      put(r, 0, u, da_r);
    });
  }

  // δx̂ = Wᵀ δ, or Uᵀ δ if x̂ replaces h₋
  FUSED_RNN_DEVICE void modulate() {
    for_features([&](int, int r, int j) {
      if (!active(r, t_)) return;
      const int feature = features_.first + j;
      const C dx_hat = sums_x().total(splits(Name::input) + (Cell::n_apart ? splits(Name::input_n) : 0), r, j);
      const C m = widen(arrays_.saved[row(r, t_) * saved_width() + int64_t{Cell::saved} * q_.H + feature]);
      C dm, dx;
      Multiplicative::backward(dx_hat, C(widen(arrays_.input[row(r, t_) * q_.I + feature])), m, dm, dx);
      dm = clip(dm, q_.gradient_clip);
      if (of_hidden) dx = clip(dx, q_.gradient_clip);  // δ(W_m x), also the gradient of a pre-activation
      put_feature(r, feature, dm, dx);
      exchange_.put(State::m, r, feature, dm);
    });
  }

  FUSED_RNN_DEVICE void put_feature(int r, int feature, C dm, C dx) const {
    arrays_.d[row(r, t_) * d_width() + int64_t{Cell::gradients} * q_.H + feature] = narrow<S>(dm);
    arrays_.d_input[row(r, t_) * q_.I + feature] = narrow<S>(dx);
  }

  FUSED_RNN_DEVICE void clear_idle_features() const {
    for_features([&](int, int r, int j) {
      const C value = alive_ ? C(0) : not_a_number<C>();
      if (!alive_ || !active(r, t_)) put_feature(r, features_.first + j, value, value);
    });
  }

  // δh₋ = the part that bypassed the product, in the cell or by zoneout, + Uᵀ δ + U_mᵀ δm
  FUSED_RNN_DEVICE void recur() {
    const int all = recurrent_splits() + (multiplicative ? splits(Name::modulation) : 0);
    for_units([&](int i, int r, int u) {
      if (!active(r, t_)) return;
      dh_[i] += sums().total(all, r, u);
      if (begins(r, t_)) end_episode(i, r, u);
    });
  }

  // Store the gradient of the initial state of an episode; the step before it receives none.
  FUSED_RNN_DEVICE void end_episode(int i, int r, int u) {
    add(q_.beginnings.d_h_reset, r, u, dh_[i]);
    dh_[i] = C(0);
    if constexpr (Cell::has_cell_state) {
      add(q_.beginnings.d_c_reset, r, u, dc_[i]);
      dc_[i] = C(0);
    }
  }

  // `sums` are [B, H], or null; each value has the same thread in every step.
  FUSED_RNN_DEVICE void set(void* sums, int r, int u, C value) const {
    if (sums) static_cast<C*>(sums)[place(r, u)] = value;
  }
  FUSED_RNN_DEVICE void add(void* sums, int r, int u, C value) const {
    if (sums) static_cast<C*>(sums)[place(r, u)] += value;
  }

  int step_ = 0, t_ = 0;
  bool alive_ = true;    // false after a block of the team timed out; then results are NaN
  C *dh_, *dc_;          // [sequences, units]
  const Spread pieces_;  // of the prefetched inputs
  P<Name::recurrent> recurrent_;
  P<Name::recurrent_n> recurrent_n_;
  P<Name::input> input_;
  P<Name::input_n> input_n_;
  P<Name::modulation> modulation_;
};

template <typename Cell, Modulates modulates, typename S, typename Exchange>
FUSED_RNN_KERNEL __launch_bounds__(threads, 1)
    run_backward(FUSED_RNN_PARAMETER Operands<S, Exchange, BackwardArrays> q) {
  FUSED_RNN_DYNAMIC_SHARED(shared);
  BackwardBlock<Cell, modulates, S, Exchange>(q, shared).run();
}

}  // namespace fused_rnn::cuda

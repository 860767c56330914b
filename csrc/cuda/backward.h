// The backward kernel: a whole sequence in one launch, against the order of the forward steps. It leaves the gradients
// of all pre-activations in one matrix, from which the library makes every weight gradient and δx afterwards.
//
// Phases of a step: the cell's pointwise backward; in the reset-before GRU the product with U_nᵀ and the reset gate;
// in multiplicative cells the product with Wᵀ and δm; then δh₋ = Uᵀδ + U_mᵀδm. A team meets before each product,
// because a product reads gradients of all units. Every step writes rows of its own, so nothing is overwritten while
// a slower block still reads it.
#pragma once

#include "product.h"

namespace fused_rnn::cuda {

// The operands. Arrays are contiguous; weights as the caller has them, so that the inner dimension of a product with
// their transpose comes first.
template <typename C, typename S>
struct BackwardSequence {
  int T, B, I, H;
  bool reverse;
  int parts;               // blocks of a team
  bool resident;           // whether the weights of a block fit its shared memory
  const int64_t* lengths;  // [B] steps of each sequence, or null
  const S* weight_hh;      // [G*H, H]
  const S* weight_ih;      // [G*H, I] multiplicative
  const S* weight_mhh;     // [I, H] multiplicative
  const S* x;              // [T, B, I] multiplicative
  const S* h_0;            // [B, H]
  const S* c_0;            // [B, H] cells with a cell state
  const S* output;         // [T, B, H] of the forward pass
  const S* saved;          // [T, B, Cell::saved * H (+ I)] of the forward pass
  const S* d_output;       // [T, B, H], or null for zeros
  C* dh;                   // [B, H] δh_n on entry, δh_0 on return
  C* dc;                   // [B, H] likewise, cells with a cell state
  C* d;                    // [T, B, Cell::gradients * H (+ I)] out: gradients of the pre-activations, and δm
  C* dx;                   // [T, B, I] out, multiplicative: the part of δx that does not pass through W_m
  unsigned* arrivals;      // [teams] zeros
  unsigned* failed;        // zero; becomes 1 if a block did not come in time
};

// Values of type C that a block keeps in shared memory.
template <typename Cell, bool multiplicative>
int64_t backward_shared_size(int64_t I, int64_t H, int64_t parts, bool resident) {
  const int64_t own = divide_up(H, parts), own_inputs = multiplicative ? divide_up(I, parts) : 0;
  const int64_t states = 2 * tile_rows * own;  // δh, δc
  const int64_t sums = sums_size(own > own_inputs ? own : own_inputs);
  const int64_t weights = Cell::gates * H * (own + own_inputs) + (multiplicative ? I * own : 0);
  return states + tile_rows * chunk_depth + sums + (resident ? weights : 0);
}

// One block's part of the sequence.
template <typename Cell, bool multiplicative, typename C, typename S>
class BackwardBlock : Block<BackwardSequence<C, S>> {
  using Base = Block<BackwardSequence<C, S>>;
  using Base::active, Base::any_active, Base::for_inputs, Base::for_units, Base::inputs_, Base::q_, Base::row,
      Base::rows_, Base::team_, Base::time, Base::units_;

 public:
  FUSED_RNN_DEVICE BackwardBlock(const BackwardSequence<C, S>& q, C* shared) : Base(q) {
    const int rows = Cell::gates * q.H, kept = tile_rows * units_.count;
    dh_ = shared;
    dc_ = dh_ + kept;
    chunk_ = dc_ + kept;
    sums_ = chunk_ + tile_rows * chunk_depth;
    recurrent_ = {q.weight_hh, rows, q.H, 1, units_.first, units_.count, 0, nullptr};
    modulation_ = {q.weight_mhh, q.I, q.H, 1, units_.first, units_.count, 0, nullptr};
    projection_ = {q.weight_ih, rows, q.I, 1, inputs_.first, inputs_.count, 0, nullptr};
    if (q.resident) {
      const int widest = multiplicative && inputs_.count > units_.count ? inputs_.count : units_.count;
      C* memory = make_resident(recurrent_, sums_ + sums_size(widest));
      if (multiplicative) make_resident(projection_, make_resident(modulation_, memory));
    }
    for_units([&](int i, int r, int u) {
      dh_[i] = q_.dh[place(r, u)];
      if constexpr (Cell::has_cell_state) dc_[i] = q_.dc[place(r, u)];
    });
  }

  FUSED_RNN_DEVICE void run() {
    __syncthreads();
    for (step_ = q_.T - 1; step_ >= 0; --step_) {
      t_ = time(step_);
      make_gradients();
      if constexpr (multiplicative) clear_idle_inputs();
      if (any_active(t_) && !hand_back()) return;
    }
    for_units([&](int i, int r, int u) {
      q_.dh[place(r, u)] = dh_[i];
      if constexpr (Cell::has_cell_state) q_.dc[place(r, u)] = dc_[i];
    });
  }

 private:
  // Where a unit of the block stands in a [B, H] array.
  FUSED_RNN_DEVICE int64_t place(int r, int u) const { return row(r) * q_.H + units_.first + u; }

  FUSED_RNN_DEVICE int columns() const { return Cell::gradients * q_.H + (multiplicative ? q_.I : 0); }
  FUSED_RNN_DEVICE C* gradient(int r, int column) const { return q_.d + row(r, t_) * columns() + column; }
  FUSED_RNN_DEVICE Rows<C> gradients_from(int column) const { return {gradient(0, column), columns(), rows_}; }

  FUSED_RNN_DEVICE C saved(int r, int t, int column) const {
    const int64_t width = Cell::saved * q_.H + (multiplicative ? q_.I : 0);
    return widen(q_.saved[row(r, t) * width + column]);
  }

  // Whether this is the first step of a sequence, so that h₋ and c₋ are its initial state.
  FUSED_RNN_DEVICE bool first(int r) const { return step_ == 0 || !active(r, time(step_ - 1)); }
  FUSED_RNN_DEVICE C h_prev(int r, int u) const {
    const S* h = first(r) ? q_.h_0 + place(r, u) : q_.output + row(r, time(step_ - 1)) * q_.H + units_.first + u;
    return widen(*h);
  }
  FUSED_RNN_DEVICE C c_prev(int r, int u) const {
    if (first(r)) return widen(q_.c_0[place(r, u)]);
    return saved(r, time(step_ - 1), (Cell::saved - 1) * q_.H + units_.first + u);
  }

  // The cell's pointwise backward: all of it, or up to the reset gate.
  FUSED_RNN_DEVICE void make_gradients() {
    for_units([&](int i, int r, int u) {
      const int unit = units_.first + u;
      C d[Cell::gradients] = {};
      if (active(r, t_)) {
        C dh = dh_[i], dc = C(0);
        if (q_.d_output) dh += widen(q_.d_output[row(r, t_) * q_.H + unit]);
        if constexpr (Cell::reset_before) {
          Cell::backward_candidate(saved(r, t_, q_.H + unit), saved(r, t_, 2 * q_.H + unit), h_prev(r, u), dh, d[1],
                                   d[2]);
        } else {
          C values[Cell::saved], c = C(0);
          FUSED_RNN_UNROLL
          for (int k = 0; k < Cell::saved; ++k) values[k] = saved(r, t_, k * q_.H + unit);
          if constexpr (Cell::has_cell_state) {
            c = c_prev(r, u);
            dc = dc_[i];
          }
          Cell::backward(values, h_prev(r, u), c, dh, dc, d);
          if constexpr (Cell::has_cell_state) dc_[i] = dc;
        }
        dh_[i] = dh;
      }
      FUSED_RNN_UNROLL
      for (int g = 0; g < Cell::gradients; ++g) store_l2(gradient(r, g * q_.H + unit), d[g]);
    });
  }

  FUSED_RNN_DEVICE void clear_idle_inputs() const {
    for_inputs([&](int r, int j) {
      if (active(r, t_)) return;
      store_l2(gradient(r, Cell::gradients * q_.H + inputs_.first + j), C(0));
      q_.dx[row(r, t_) * q_.I + inputs_.first + j] = C(0);
    });
  }

  // The phases that follow; false if a block of the team did not come in time.
  FUSED_RNN_DEVICE bool hand_back() {
    if constexpr (Cell::reset_before) {
      if (!team_.meet()) return false;
      reset();
    }
    if constexpr (multiplicative) {
      if (!team_.meet()) return false;
      modulate();
    }
    if (!team_.meet()) return false;
    recur();
    return true;
  }

  FUSED_RNN_DEVICE void reset() {
    accumulate(gradients_from(2 * q_.H), recurrent_.rows(2 * q_.H, q_.H), chunk_, sums_);
    for_units([&](int i, int r, int u) {
      if (!active(r, t_)) return;
      C da_r;
      const C ds = sum_at(sums_, units_.count, r, u);
      Cell::backward_reset(ds, saved(r, t_, units_.first + u), h_prev(r, u), dh_[i], da_r);
      store_l2(gradient(r, units_.first + u), da_r);
    });
  }

  FUSED_RNN_DEVICE void modulate() {
    accumulate(gradients_from(0), projection_, chunk_, sums_);
    for_inputs([&](int r, int j) {
      if (!active(r, t_)) return;
      const int feature = inputs_.first + j;
      const int64_t at = row(r, t_) * q_.I + feature;
      C dm, dx;
      const C m = saved(r, t_, Cell::saved * q_.H + feature);
      Multiplicative::backward(sum_at(sums_, inputs_.count, r, j), C(widen(q_.x[at])), m, dm, dx);
      store_l2(gradient(r, Cell::gradients * q_.H + feature), dm);
      q_.dx[at] = dx;
    });
  }

  // δh₋ = what bypassed the product + Uᵀ δ + U_mᵀ δm
  FUSED_RNN_DEVICE void recur() {
    const int H = q_.H;
    accumulate(gradients_from(0), recurrent_.rows(0, Cell::n_apart ? 2 * H : Cell::gates * H), chunk_, sums_);
    if constexpr (Cell::n_apart && !Cell::reset_before)
      accumulate(gradients_from((Cell::gradients - 1) * H), recurrent_.rows(2 * H, H), chunk_, sums_, true);
    if constexpr (multiplicative) accumulate(gradients_from(Cell::gradients * H), modulation_, chunk_, sums_, true);
    for_units([&](int i, int r, int u) {
      if (!active(r, t_)) return;
      const C sum = sum_at(sums_, units_.count, r, u);
      dh_[i] = Cell::bypasses_product ? dh_[i] + sum : sum;
    });
    __syncthreads();
  }

  int step_ = 0, t_ = 0;
  C *dh_, *dc_;       // [tile_rows, own units]
  C *chunk_, *sums_;  // of products
  Columns<C, S> recurrent_, modulation_, projection_;
};

template <typename Cell, bool multiplicative, typename C, typename S>
FUSED_RNN_KERNEL __launch_bounds__(threads, 1) run_backward(const BackwardSequence<C, S> q) {
  FUSED_RNN_DYNAMIC_SHARED(shared);
  BackwardBlock<Cell, multiplicative, C, S>(q, reinterpret_cast<C*>(shared)).run();
}

}  // namespace fused_rnn::cuda

// The forward kernel: a whole sequence in one launch, for every cell, in plain multiply-adds (float or double) with
// tensors of any storage type. W x + b (W_m x + b_m in multiplicative cells) is computed before it, by the library.
//
// Phases of a step, each ended by a meeting of the team: multiplicative cells make m and x̂; the reset-before GRU makes
// its gates and s = r⊙h₋; the last phase makes h. So one phase for RNN, LSTM and reset-after GRU, two for the
// reset-before GRU and the multiplicative LSTM, three for the multiplicative GRU. h is exchanged in two buffers that
// take turns, because a block may write h while a slower one still reads h₋.
#pragma once

#include "product.h"

namespace fused_rnn::cuda {

// The operands. Arrays are contiguous, weights have the inner dimension first.
template <typename C, typename S>
struct ForwardSequence {
  int T, B, I, H;
  bool reverse;
  int parts;               // blocks of a team
  bool resident;           // whether the weights of a block fit its shared memory
  const int64_t* lengths;  // [B] steps of each sequence, or null
  const S* weight_hh;      // [H, G*H]
  const S* bias_hh;        // [G*H] or null
  const S* weight_ih;      // [I, G*H] multiplicative
  const S* bias_ih;        // [G*H] multiplicative, or null
  const S* weight_mhh;     // [H, I] multiplicative
  const C* projected;      // [T, B, G*H] W x + b; multiplicative [T, B, I] W_m x + b_m
  const S* x;              // [T, B, I] multiplicative
  const S* c_0;            // [B, H] cells with a cell state
  C* h;                    // [2, B, H] exchanged; the first is h_0
  C* s;                    // [B, H] exchanged, reset-before GRU
  C* x_hat;                // [B, I] exchanged, multiplicative
  S* output;               // [T, B, H]
  S* h_n;                  // [B, H]
  S* c_n;                  // [B, H] cells with a cell state
  S* saved;                // [T, B, Cell::saved * H (+ I)], or null
  unsigned* arrivals;      // [teams] zeros
  unsigned* failed;        // zero; becomes 1 if a block did not come in time
};

// Values of type C that a block keeps in shared memory.
template <typename Cell, bool multiplicative>
int64_t forward_shared_size(int64_t I, int64_t H, int64_t parts, bool resident) {
  const int64_t own = divide_up(H, parts), columns = Cell::gates * own;
  const int64_t own_inputs = multiplicative ? divide_up(I, parts) : 0;
  const int64_t states = 3 * tile_rows * own;  // h, c, z
  const int64_t sums = (multiplicative ? 2 : 1) * sums_size(columns > own_inputs ? columns : own_inputs);
  const int64_t weights = H * columns + (multiplicative ? I * columns + H * own_inputs : 0);
  return states + tile_rows * chunk_depth + sums + (resident ? weights : 0);
}

// One block's part of the sequence.
template <typename Cell, bool multiplicative, typename C, typename S>
class ForwardBlock : Block<ForwardSequence<C, S>> {
  using Base = Block<ForwardSequence<C, S>>;
  using Base::active, Base::any_active, Base::first_row_, Base::for_inputs, Base::for_units, Base::inputs_, Base::q_,
      Base::row, Base::rows_, Base::team_, Base::time, Base::units_;

 public:
  FUSED_RNN_DEVICE ForwardBlock(const ForwardSequence<C, S>& q, C* shared) : Base(q) {
    const int G = Cell::gates, H = q.H, columns = G * units_.count, kept = tile_rows * units_.count;
    h_ = shared;
    c_ = h_ + kept;
    z_ = c_ + kept;
    chunk_ = z_ + kept;
    sums_ = chunk_ + tile_rows * chunk_depth;
    sums_x_ = sums_ + sums_size(multiplicative && inputs_.count > columns ? inputs_.count : columns);
    recurrent_ = {q.weight_hh, H, G * H, G, units_.first, units_.count, H, nullptr};
    input_ = {q.weight_ih, q.I, G * H, G, units_.first, units_.count, H, nullptr};
    modulation_ = {q.weight_mhh, H, q.I, 1, inputs_.first, inputs_.count, 0, nullptr};
    if (q.resident) {
      C* memory = make_resident(recurrent_, multiplicative ? sums_x_ + sums_size(columns) : sums_x_);
      if (multiplicative) make_resident(modulation_, make_resident(input_, memory));
    }
    for_units([&](int i, int r, int u) {
      h_[i] = load_l2(q_.h + place(r, u));
      if constexpr (Cell::has_cell_state) c_[i] = widen(q_.c_0[place(r, u)]);
    });
  }

  FUSED_RNN_DEVICE void run() {
    __syncthreads();
    for (int step = 0; step < q_.T; ++step) {
      t_ = time(step);
      if (!any_active(t_))
        for_units([&](int, int r, int u) { output(r, u) = narrow<S>(C(0)); });
      else if (!advance())
        return;
    }
    for_units([&](int i, int r, int u) {
      q_.h_n[place(r, u)] = narrow<S>(h_[i]);
      if constexpr (Cell::has_cell_state) q_.c_n[place(r, u)] = narrow<S>(c_[i]);
    });
  }

 private:
  // Where a unit of the block stands in a [B, H] array.
  FUSED_RNN_DEVICE int64_t place(int r, int u) const { return row(r) * q_.H + units_.first + u; }

  FUSED_RNN_DEVICE S& output(int r, int u) const { return q_.output[row(r, t_) * q_.H + units_.first + u]; }

  FUSED_RNN_DEVICE void save(int r, int column, C value) const {
    const int64_t columns = Cell::saved * q_.H + (multiplicative ? q_.I : 0);
    if (q_.saved && active(r, t_)) q_.saved[row(r, t_) * columns + column] = narrow<S>(value);
  }

  FUSED_RNN_DEVICE Rows<C> rows_of(const C* matrix, int width) const { return {matrix + row(0) * width, width, rows_}; }

  FUSED_RNN_DEVICE C* exchanged_h(int turn) const { return q_.h + int64_t{turn} * q_.B * q_.H; }

  // All phases of a step; false if a block of the team did not come in time.
  FUSED_RNN_DEVICE bool advance() {
    const Rows<C> h_prev = rows_of(exchanged_h(turn_), q_.H);
    if constexpr (multiplicative) {
      accumulate(h_prev, modulation_, chunk_, sums_);
      make_input();
      if (!team_.meet()) return false;
      accumulate(rows_of(q_.x_hat, q_.I), input_, chunk_, sums_x_);
    }
    if constexpr (Cell::reset_before) {
      accumulate(h_prev, gates(0, 2), chunk_, sums_);
      make_gates();
      if (!team_.meet()) return false;
      accumulate(rows_of(q_.s, q_.H), gates(2, 1), chunk_, sums_);
      make_candidate();
    } else {
      accumulate(h_prev, recurrent_, chunk_, sums_);
      make_state();
    }
    turn_ = 1 - turn_;
    return team_.meet();
  }

  // The columns of some gates only.
  FUSED_RNN_DEVICE Columns<C, S> gates(int first, int count) const {
    Columns<C, S> m = recurrent_;
    m.skipped = first * units_.count;
    m.gates = count;
    return m;
  }

  // W x + b of a gate.
  FUSED_RNN_DEVICE C projection(int r, int u, int gate) const {
    const int column = gate * q_.H + units_.first + u;
    if constexpr (!multiplicative) return q_.projected[row(r, t_) * Cell::gates * q_.H + column];
    const C sum = sum_at(sums_x_, input_.count(), r, gate * units_.count + u);
    return q_.bias_ih ? sum + C(widen(q_.bias_ih[column])) : sum;
  }

  // U h₋ + b' of a gate, from a product with `count` gates from `first` on.
  FUSED_RNN_DEVICE C recurrence(int r, int u, int gate, int first, int count) const {
    const C sum = sum_at(sums_, count * units_.count, r, (gate - first) * units_.count + u);
    return q_.bias_hh ? sum + C(widen(q_.bias_hh[gate * q_.H + units_.first + u])) : sum;
  }

  FUSED_RNN_DEVICE void make_input() {
    for_inputs([&](int r, int j) {
      const int feature = inputs_.first + j;
      const int64_t at = row(r, t_) * q_.I + feature;
      C m, x_hat;
      Multiplicative::forward(q_.projected[at], sum_at(sums_, inputs_.count, r, j), C(widen(q_.x[at])), m, x_hat);
      store_l2(q_.x_hat + row(r) * q_.I + feature, x_hat);
      save(r, Cell::saved * q_.H + feature, m);
    });
  }

  FUSED_RNN_DEVICE void make_state() {
    for_units([&](int i, int r, int u) {
      C wx[Cell::gates], uh[Cell::gates], saved[Cell::saved], h, c = C(0);
      FUSED_RNN_UNROLL
      for (int g = 0; g < Cell::gates; ++g) {
        wx[g] = projection(r, u, g);
        uh[g] = recurrence(r, u, g, 0, Cell::gates);
      }
      if constexpr (Cell::has_cell_state) c = c_[i];
      Cell::forward(wx, uh, h_[i], c, h, saved);
      if constexpr (Cell::has_cell_state)
        if (active(r, t_)) c_[i] = c;
      FUSED_RNN_UNROLL
      for (int k = 0; k < Cell::saved; ++k) save(r, k * q_.H + units_.first + u, saved[k]);
      finish(i, r, u, h);
    });
  }

  FUSED_RNN_DEVICE void make_gates() {
    for_units([&](int i, int r, int u) {
      const C wx[2] = {projection(r, u, 0), projection(r, u, 1)};
      const C uh[2] = {recurrence(r, u, 0, 0, 2), recurrence(r, u, 1, 0, 2)};
      C reset, s;
      Cell::forward_gates(wx, uh, h_[i], reset, z_[i], s);
      store_l2(q_.s + place(r, u), s);
      save(r, units_.first + u, reset);
      save(r, q_.H + units_.first + u, z_[i]);
    });
  }

  FUSED_RNN_DEVICE void make_candidate() {
    for_units([&](int i, int r, int u) {
      C n, h;
      Cell::forward_candidate(projection(r, u, 2), recurrence(r, u, 2, 2, 1), z_[i], h_[i], n, h);
      save(r, 2 * q_.H + units_.first + u, n);
      finish(i, r, u, h);
    });
  }

  // Hand on the state of a unit, and put out its output.
  FUSED_RNN_DEVICE void finish(int i, int r, int u, C h) {
    if (active(r, t_)) h_[i] = h;
    store_l2(exchanged_h(1 - turn_) + place(r, u), h_[i]);
    output(r, u) = narrow<S>(active(r, t_) ? h : C(0));
  }

  int t_ = 0, turn_ = 0;        // the time, and which of the two exchanged states is h₋
  C *h_, *c_, *z_;              // [tile_rows, own units]
  C *chunk_, *sums_, *sums_x_;  // of products; sums_x_ for W x̂
  Columns<C, S> recurrent_, input_, modulation_;
};

template <typename Cell, bool multiplicative, typename C, typename S>
FUSED_RNN_KERNEL __launch_bounds__(threads, 1) run_forward(const ForwardSequence<C, S> q) {
  FUSED_RNN_DYNAMIC_SHARED(shared);
  ForwardBlock<Cell, multiplicative, C, S>(q, reinterpret_cast<C*>(shared)).run();
}

}  // namespace fused_rnn::cuda

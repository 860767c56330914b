// The pointwise part of the backward kernel of warps: the cell for 8 units and 8 sequences, from the rows that it reads
// of a step to those that it leaves.
#pragma once

#include "backward_shape.h"

namespace fused_rnn::cuda::cluster {

#if FUSED_RNN_SM90

// A thread has unit lane / 4 and two of the sequences.
template <typename Cell, typename S, typename Size>
class BackwardJob {
  using Shape = BackwardShape<Cell, S, Size>;
  using T = Approximate<S>;
  using Q = Operands<S, BackwardArrays>;
  using ThisTile = Tile<S, BackwardArrays, 1>;
  static constexpr bool has_c = Cell::has_cell_state, has_before = Shape::has_before;
  static_assert(!(has_c && Cell::bypasses_product), "h₋ and c stand in the same place");

 public:
  using Ring = RowRing<S, Shape::slots, 1, false, Shape::stages>;
  static_assert(Ring::shared_bytes == Shape::ring_bytes);

  // What it reads of a step.
  struct Rows {
    uint32_t saved[4], more[4], before[1], keep_c[1];
  };

  FUSED_RNN_DEVICE BackwardJob() {}

  // `operand`: of the block, the first one.
  FUSED_RNN_DEVICE BackwardJob(int job, SharedAddress operand, unsigned char* ring)
      : octet_(Size::octets > 1 ? job / Size::groups : 0),
        first_(Size::Exchange::template Team<Size::blocks>::rank() * Size::units + job % Size::groups * 8),
        pair_((job % Size::groups / 2 * Size::octets + octet_) * 64 + lane() * 2 + job % 2),
        row_(kept(operand +
                  ((8 * octet_ + lane() % 8) * Shape::stride + column_of(lane() / 8) + job % Size::groups * 8) *
                      int{sizeof(S)})),
        ring_(ring) {
    static_assert(Size::groups % 2 == 0);
    ring_.clear();
  }

  // Of the tile that begins with sequence `first`.
  FUSED_RNN_DEVICE void begin(const Q& q, int first, int longest) {
    const BackwardArrays<S>& a = q.arrays;
    tile_ = ThisTile(q, first + 8 * octet_, longest);
    float initial[2];
    FUSED_RNN_UNROLL
    for (int j = 0; j < 2; ++j) {
      const auto value = [&](const S* values) { return values && exists(q, j) ? widen(values[place(q, j)]) : 0.0f; };
      dh_[j] = value(a.d_h_n);
      if constexpr (has_c) dc_[j] = value(a.d_c_n);
      initial[j] = has_before ? value(has_c ? a.c_0 : a.h_0) : 0.0f;
    }
    initial_ = narrow_pair<S>(initial[0], initial[1]);
    const auto source = [&](int slot) -> typename Ring::Source {
      if (slot < Cell::saved) return {a.saved + int64_t{slot} * q.H + first_, saved_row<Cell>(q)};
      const S* const values = slot == Shape::d_output_at               ? a.d_output
                              : slot == Shape::keep_h_at               ? a.keep_h
                              : has_c && slot == Shape::d_cells_at     ? a.d_cells
                              : has_before && slot == Shape::before_at ? (has_c ? a.cells : a.output)
                                                                       : a.keep_c;
      return {values ? values + first_ : nullptr, q.H};
    };
    begin_rows(q, columns(q), source);
    sink_ = sink(q, tile_.time(q, tile_.longest() - 1), q.reverse ? 1 : -1);
  }

  FUSED_RNN_DEVICE Rows load(const Q& q) {
    Rows rows;
    ring_.wait();
    ring_.load(rows.saved, 0, 0);
    ring_.load(rows.more, 0, Cell::saved);
    if constexpr (has_c)
      if (q.arrays.keep_c) ring_.load(rows.keep_c, 0, Shape::keep_c_at);
    if constexpr (has_before) ring_.load_following(rows.before, 0, Shape::before_at);
    return rows;
  }

  // Add Uᵀ δ of the step at time t, if there was one, in the parts that the blocks contributed. A sequence that does
  // not have the step gets nothing, also where weights are not finite.
  template <typename Sums>
  FUSED_RNN_DEVICE void add(const Sums& sums, int t, bool there_was) {
    float total[2] = {dh_[0], dh_[1]};
    add_parts(sums, total);
    FUSED_RNN_UNROLL
    for (int j = 0; j < 2; ++j) dh_[j] = there_was && tile_.active(0, j, t) ? total[j] : dh_[j];
  }

  // From here on all gradients of this tile are NaN, but for d_c_0, which end() knows of.
  FUSED_RNN_DEVICE void poison() { dh_[0] = dh_[1] = NAN; }

  // The gradients of a step, in rows, which the block's warps read; where the reset gate acts before, but for that of
  // r. `regularised`: by zoneout or clipping.
  template <bool regularised, typename Sums>
  FUSED_RNN_DEVICE void make(const Q& q, int step, const Rows& rows, const Sums& sums) {
    const int forwards = q.reverse ? -1 : 1, t = tile_.time(q, step), before_t = t - forwards;
    add(sums, t + forwards, step + 1 < tile_.longest());
    const BackwardArrays<S>& a = q.arrays;
    float made[Cell::gradients][2];
    uint32_t active_half[2];
    FUSED_RNN_UNROLL
    for (int j = 0; j < 2; ++j) {
      const bool active = tile_.active(0, j, t), first = step == 0 || !tile_.active(0, j, before_t);
      const auto read = [&](uint32_t pair) { return half_of<S, T>(pair, j); };
      T saved[Cell::saved], d[Cell::gradients], before(0.0f), c(0.0f), dc(0.0f), kept_dh(0.0f), kept_dc(0.0f);
      if constexpr (Cell::reset_before) d[0] = T(0.0f);
      FUSED_RNN_UNROLL
      for (int k = 0; k < Cell::saved; ++k) saved[k] = read(rows.saved[k]);
      if constexpr (has_before) before = read(first ? initial_ : rows.before[0]);
      T dh = T(dh_[j]) + read(rows.more[0]);
      if constexpr (has_c) {
        dc = T(dc_[j]) + read(rows.more[Shape::d_cells_at - Cell::saved]);
        c = read(rows.more[Shape::before_at - Cell::saved]);
      }
      if constexpr (regularised) {
        if (a.keep_h) kept_dh = Zoneout::backward(read(rows.more[Shape::keep_h_at - Cell::saved]), dh);
        if constexpr (has_c) {
          if (a.keep_c) {
            kept_dc = Zoneout::backward(read(rows.keep_c[0]), dc);
            c = Cell::cell_state(saved, before);  // that which the cell made
          }
        }
      }
      if constexpr (Cell::reset_before)
        Cell::backward_candidate(saved[1], saved[2], before, dh, d[1], d[2]);
      else
        Cell::backward(saved, before, before, c, dh, dc, d);
      if constexpr (!Cell::bypasses_product) dh = T(0.0f);
      if constexpr (regularised) {
        dh = dh + kept_dh;
        dc = dc + kept_dc;
        FUSED_RNN_UNROLL
        for (int k = 0; k < Cell::gradients; ++k) d[k] = clip(d[k], T(q.gradient_clip));
      }
      if constexpr (has_c) dc_[j] = active ? dc.value : dc_[j];
      dh_[j] = active ? dh.value : dh_[j];
      FUSED_RNN_UNROLL
      for (int k = 0; k < Cell::gradients; ++k) made[k][j] = d[k].value;
      active_half[j] = active ? 0xffffu << 16 * j : 0u;
    }
    uint32_t pairs[Cell::gradients];
    FUSED_RNN_UNROLL
    for (int k = 0; k < Cell::gradients; ++k)
      pairs[k] = narrow_pair<S>(made[k][0], made[k][1]) & (active_half[0] | active_half[1]);
    if constexpr (Cell::reset_before)
      store_matrices_transposed<2>(row(step) + Size::units * int{sizeof(S)}, {pairs[1], pairs[2]});
    else
      store_matrices_transposed<Cell::gradients>(row(step), pairs);
  }

  // What it reads of the same step for the gradient of r: r, h₋.
  struct ResetRows {
    uint32_t r[1], before[1];
  };

  FUSED_RNN_DEVICE ResetRows load_reset() const {
    ResetRows rows;
    ring_.load(rows.r, 0, 0);
    ring_.load_following(rows.before, 0, Shape::before_at);
    return rows;
  }

  // That gradient, by δs in the parts that the blocks contributed, if they have come.
  template <typename Sums>
  FUSED_RNN_DEVICE void reset(const Q& q, int step, const ResetRows& rows, const Sums& sums, bool come) {
    const int t = tile_.time(q, step), before_t = t - (q.reverse ? -1 : 1);
    float ds[2] = {}, made[2];
    add_parts(sums, ds);
    uint32_t active_half[2];
    FUSED_RNN_UNROLL
    for (int j = 0; j < 2; ++j) {
      const bool active = tile_.active(0, j, t), first = step == 0 || !tile_.active(0, j, before_t);
      const T before = half_of<S, T>(first ? initial_ : rows.before[0], j);
      T dh(dh_[j]), da_r;
      Cell::backward_reset(T(come ? ds[j] : NAN), half_of<S, T>(rows.r[0], j), before, dh, da_r);
      made[j] = clip(da_r, T(q.gradient_clip)).value;
      dh_[j] = active ? dh.value : dh_[j];
      active_half[j] = active ? 0xffffu << 16 * j : 0u;
    }
    store_matrices_transposed<1>(row(step), {narrow_pair<S>(made[0], made[1]) & (active_half[0] | active_half[1])});
  }

  // The same rows to the result, and those of one step more on their way.
  FUSED_RNN_DEVICE void put_out(const Q& q, int step, bool regularised) {
    if (q.whole_rows) {
      sink_.template store<true>(0, row(step), false);
      if (regularised)
        ring_.template fetch<true>();
      else
        ring_.template fetch<true, Shape::keep_c_at>();
    } else {
      sink_.template store<false>(0, row(step), false);
      ring_.template fetch<false>();
    }
    ring_.advance();
    sink_.advance();
  }

  // Gradients of the initial state, and zeros at times that no sequence of the tile reaches.
  FUSED_RNN_DEVICE void end(const Q& q, bool alive) const {
    FUSED_RNN_UNROLL
    for (int j = 0; j < 2; ++j) {
      if (!exists(q, j)) continue;
      q.arrays.d_h_0[place(q, j)] = narrow<S>(dh_[j]);
      if constexpr (has_c) q.arrays.d_c_0[place(q, j)] = narrow<S>(alive ? dc_[j] : NAN);
    }
    clear_rest(q, sink(q, tile_.longest(), 1));
  }

 protected:
  FUSED_RNN_DEVICE static int lane() { return threadIdx.x % 32; }

  template <typename F>
  FUSED_RNN_DEVICE void begin_rows(const Q& q, int columns, const F& source) {
    if (q.whole_rows)
      ring_.template begin<true, Shape::slots>(q, tile_, columns, source);
    else
      ring_.template begin<false, Shape::slots>(q, tile_, columns, source);
  }

  template <typename Sums>
  FUSED_RNN_DEVICE void add_parts(const Sums& sums, float (&total)[2]) const {
    FUSED_RNN_UNROLL
    for (int i = 0; i < Sums::parts; ++i) {
      const auto part = sums.pair(i, pair_);
      FUSED_RNN_UNROLL
      for (int j = 0; j < 2; ++j) total[j] += part.values[j];
    }
  }

  // Zeros at times that no sequence of the tile reaches.
  FUSED_RNN_DEVICE void clear_rest(const Q& q, RowSink<S, 1> rest) const {
    for (int t = tile_.longest(); t < q.T; ++t, rest.advance()) {
      if (q.whole_rows)
        rest.template store<true>(0, row(0), true);
      else
        rest.template store<false>(0, row(0), true);
    }
  }

  FUSED_RNN_DEVICE SharedAddress row(int step) const {
    return Shape::operands > 1 ? row_ + (step & 1) * Shape::operand_bytes : row_;
  }

  int octet_, first_;  // unit or feature
  int pair_;           // of sums
  SharedAddress row_;  // of one gradient and sequence, in the operand
  Ring ring_;
  ThisTile tile_;
  RowSink<S, 1> sink_;  // the same row in the result

 private:
  // Where a gradient begins in the operand: side by side those that U multiplies, of a gate each, then what only the
  // result has: δa_n of the reset-after GRU, where δq takes its place.
  FUSED_RNN_DEVICE static int column_of(int gradient) {
    if (gradient >= Cell::gradients) return 0;  // of a lane that has none
    if (Cell::gradients == Cell::gates || gradient < Cell::gates - 1) return gradient * Size::units;
    return gradient == Cell::gates ? (Cell::gates - 1) * Size::units : Shape::of_gates;
  }

  FUSED_RNN_DEVICE int columns(const Q& q) const { return q.H - first_; }
  FUSED_RNN_DEVICE bool exists(const Q& q, int j) const { return tile_.has(0, j) && lane() / 4 < columns(q); }
  FUSED_RNN_DEVICE RowSink<S, 1> sink(const Q& q, int time, int time_step) const {
    S* const values =
        lane() / 8 < Cell::gradients && tile_.has_row(0) ? q.arrays.d + int64_t{lane() / 8} * q.H + first_ : nullptr;
    return {q, tile_, values, q.arrays.d, gradients_row<Cell>(q), columns(q), time, time_step};
  }
  // Where a unit of the thread stands in a [B, H] array.
  FUSED_RNN_DEVICE int64_t place(const Q& q, int j) const {
    return (int64_t{tile_.first()} + 2 * (lane() % 4) + j) * q.H + first_ + lane() / 4;
  }

  uint32_t initial_;     // h_0 or c_0, of both sequences
  float dh_[2], dc_[2];  // of the state that the step at hand made, as far as they don't come with its output
};

#endif

}  // namespace fused_rnn::cuda::cluster

// The pointwise part of the backward warp kernel: the cell for 8 units and 8 sequences, from the rows that it reads in
// a step to those that it leaves.
#pragma once

#include "backward_shape.h"

namespace fused_rnn::cuda::cluster {

#if FUSED_RNN_SM90

// The gradients that a thread makes in a step, `count` each for its unit in two sequences; zeros for a sequence that
// does not have the step.
template <typename S, int count>
class Made {
 public:
  FUSED_RNN_DEVICE void put(int k, int j, float value, bool active) {
    values_[k][j] = by_values<S> && !active ? 0.0f : value;
    active_half_[j] = active ? 0xffffu << 16 * j : 0u;
  }
  FUSED_RNN_DEVICE void copy(const Made& other, int k) {
    FUSED_RNN_UNROLL
    for (int j = 0; j < 2; ++j) values_[k][j] = other.values_[k][j];
  }

  FUSED_RNN_DEVICE float value(int k, int j) const { return values_[k][j]; }
  FUSED_RNN_DEVICE uint32_t pair(int k) const {
    return narrow_pair<S>(values_[k][0], values_[k][1]) & (active_half_[0] | active_half_[1]);
  }
  FUSED_RNN_DEVICE Terms<uint32_t> terms(int k) const { return split_pair(values_[k][0], values_[k][1]); }

 private:
  float values_[count][2];
  uint32_t active_half_[2];  // masks of the halves of a pair
};

// A number that may carry its tanh, computed ahead, because an exact tanh takes long.
template <typename S>
struct Foreseen : Real<S> {
  float tanh_value = NAN;  // if it is not known

  FUSED_RNN_DEVICE Foreseen() {}
  FUSED_RNN_DEVICE explicit Foreseen(float number) : Real<S>(number) {}
  FUSED_RNN_DEVICE Foreseen(Real<S> number) : Real<S>(number) {}
  FUSED_RNN_DEVICE Foreseen(float number, float its_tanh) : Real<S>(number), tanh_value(its_tanh) {}

  FUSED_RNN_DEVICE friend Foreseen tanh(const Foreseen& x) { return Foreseen(x.tanh_value); }
};

// The pointwise work of a warp for 8 units and 8 sequences; a thread has unit lane / 4 and two of the sequences.
template <typename Cell, typename S, typename Size>
class BackwardJob {
  using Shape = BackwardShape<Cell, S, Size>;
  using T = std::conditional_t<by_values<S>, Foreseen<S>, Real<S>>;
  using Q = Operands<S, BackwardArrays>;
  using ThisTile = Tile<S, BackwardArrays, 1>;
  static constexpr bool has_c = Cell::has_cell_state, has_before = Shape::has_before;
  // The gradient that no product reads, if there is one.
  static constexpr int only_result = Cell::gradients > Cell::gates ? Cell::gates - 1 : -1;
  static_assert(!(has_c && Cell::bypasses_product), "h₋ and c stand in the same place");
  // The length of an array of pairs: matrices are loaded four at a time.
  static constexpr int loaded(int count) { return by_values<S> ? count : 4; }

 public:
  using Ring = cluster::Ring<S, Shape::slots, Cell::saved, 1, false, Shape::stages>;
  using OwnMade = Made<S, Cell::gradients>;
  using Sink = std::conditional_t<by_values<S>, ValueSink<1>, RowSink<S, 1>>;
  static_assert(Ring::shared_bytes == Shape::ring_bytes);

  // What a job reads in a step.
  struct Rows {
    Pair<S> saved[loaded(Cell::saved)], more[loaded(has_c ? 4 : 2)], before[1], keep_c[1];
    float c[2], tanh_c[2];  // see foresee
  };

  FUSED_RNN_DEVICE BackwardJob() {}

  // `operand` is the first one of the block.
  FUSED_RNN_DEVICE BackwardJob(int job, SharedAddress operand, unsigned char* ring)
      : octet_(Size::octets > 1 ? job / Size::groups : 0),
        first_(Size::Exchange::template Team<Size::blocks>::rank() * Size::units + job % Size::groups * 8),
        pair_((job % Size::groups / 2 * Size::octets + octet_) * 64 + lane() * 2 + job % 2),
        row_(kept(operand +
                  ((8 * octet_ + lane() % 8) * Shape::stride + column_of(lane() / 8) + job % Size::groups * 8) *
                      int{sizeof(Term<S>)})),
        ring_(ring) {
    static_assert(Size::groups % 2 == 0);
    ring_.clear();
  }

  // Start with the tile that begins with sequence `first`.
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
    initial_ = pair_of<S>(initial[0], initial[1]);
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

  // Compute c and its tanh ahead of the wait for sums; left alone, the compiler would compute them after it.
  template <bool regularised>
  FUSED_RNN_DEVICE void foresee(const Q& q, int step, Rows& rows) const {
    if constexpr (by_values<S> && has_c) {
      const int t = tile_.time(q, step), before_t = t - (q.reverse ? -1 : 1);
      FUSED_RNN_UNROLL
      for (int j = 0; j < 2; ++j) {
        rows.c[j] = rows.more[Shape::before_at - Cell::saved].values[j];
        if (regularised && q.arrays.keep_c) {
          const bool first = step == 0 || !tile_.active(0, j, before_t);
          T saved[Cell::saved];
          FUSED_RNN_UNROLL
          for (int k = 0; k < Cell::saved; ++k) saved[k] = T(rows.saved[k].values[j]);
          const Pair<S> both = first ? initial_ : rows.before[0];
          rows.c[j] = Cell::cell_state(saved, half_of<S, T>(both, j)).value;
        }
        const float tanh_c = tanh(Real<S>(rows.c[j])).value;
        rows.tanh_c[j] = __builtin_bit_cast(float, kept(__builtin_bit_cast(int, tanh_c)));
      }
    }
  }

  // Add Uᵀ δ of the step at time t, if there was one, from the parts that the blocks contributed. A sequence that does
  // not have the step is left alone, even if weights are not finite.
  template <typename Sums>
  FUSED_RNN_DEVICE void add(const Sums& sums, int t, bool there_was) {
    float total[2] = {dh_[0], dh_[1]};
    add_parts(sums, total);
    FUSED_RNN_UNROLL
    for (int j = 0; j < 2; ++j) dh_[j] = there_was && tile_.active(0, j, t) ? total[j] : dh_[j];
  }

  // Make all further gradients of this tile NaN, but for d_c_0, which end() takes care of.
  FUSED_RNN_DEVICE void poison() { dh_[0] = dh_[1] = NAN; }

  // Make the gradients of a step and hand them over to the block's warps in rows; for the reset-before GRU all but that
  // of r, which reset() makes. `regularised`: there is zoneout or clipping.
  template <bool regularised, typename Sums>
  FUSED_RNN_DEVICE void make(const Q& q, int step, const Rows& rows, const Sums& sums) {
    const int forwards = q.reverse ? -1 : 1, t = tile_.time(q, step), before_t = t - forwards;
    add(sums, t + forwards, step + 1 < tile_.longest());
    const BackwardArrays<S>& a = q.arrays;
    OwnMade made;
    FUSED_RNN_UNROLL
    for (int j = 0; j < 2; ++j) {
      const bool active = tile_.active(0, j, t), first = step == 0 || !tile_.active(0, j, before_t);
      const auto read = [&](Pair<S> pair) { return half_of<S, T>(pair, j); };
      T saved[Cell::saved], d[Cell::gradients], before(0.0f), c(0.0f), dc(0.0f), kept_dh(0.0f), kept_dc(0.0f);
      if constexpr (Cell::reset_before) d[0] = T(0.0f);
      FUSED_RNN_UNROLL
      for (int k = 0; k < Cell::saved; ++k) saved[k] = read(rows.saved[k]);
      if constexpr (has_before) before = read(first ? initial_ : rows.before[0]);
      T dh = T(dh_[j]) + read(rows.more[0]);
      if constexpr (has_c) {
        dc = T(dc_[j]) + read(rows.more[Shape::d_cells_at - Cell::saved]);
        if constexpr (by_values<S>)
          c = T(rows.c[j], rows.tanh_c[j]);
        else
          c = read(rows.more[Shape::before_at - Cell::saved]);
      }
      if constexpr (regularised) {
        if (a.keep_h) kept_dh = Zoneout::backward(read(rows.more[Shape::keep_h_at - Cell::saved]), dh);
        if constexpr (has_c) {
          if (a.keep_c) {
            kept_dc = Zoneout::backward(read(rows.keep_c[0]), dc);
            if constexpr (!by_values<S>) c = Cell::cell_state(saved, before);  // what the cell made, before zoneout
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
      for (int k = 0; k < Cell::gradients; ++k) made.put(k, j, d[k].value, active);
    }
    if constexpr (Cell::reset_before)
      hand_over<1, 2, Size::units>(step, made);
    else
      hand_over<0, Cell::gradients>(step, made);
  }

  // What a job reads in the same step for the gradient of r.
  struct ResetRows {
    Pair<S> r[1], before[1];
  };

  FUSED_RNN_DEVICE ResetRows load_reset() const {
    ResetRows rows;
    ring_.load(rows.r, 0, 0);
    ring_.load_following(rows.before, 0, Shape::before_at);
    return rows;
  }

  // Make the gradient of r from δs, in the parts that the blocks contributed; NaN if they have not come.
  template <typename Sums>
  FUSED_RNN_DEVICE void reset(const Q& q, int step, const ResetRows& rows, const Sums& sums, bool come) {
    const int t = tile_.time(q, step), before_t = t - (q.reverse ? -1 : 1);
    float ds[2] = {};
    OwnMade made;
    add_parts(sums, ds);
    FUSED_RNN_UNROLL
    for (int j = 0; j < 2; ++j) {
      const bool active = tile_.active(0, j, t), first = step == 0 || !tile_.active(0, j, before_t);
      const Pair<S> both = first ? initial_ : rows.before[0];  // a copy: else the compiler keeps both in memory
      const T before = half_of<S, T>(both, j);
      T dh(dh_[j]), da_r;
      Cell::backward_reset(T(come ? ds[j] : NAN), half_of<S, T>(rows.r[0], j), before, dh, da_r);
      made.put(0, j, clip(da_r, T(q.gradient_clip)).value, active);
      dh_[j] = active ? dh.value : dh_[j];
    }
    hand_over<0, 1>(step, made);
  }

  // Store the gradients of the step, and start to fetch the rows of one more step.
  template <int count = Cell::gradients>
  FUSED_RNN_DEVICE void put_out(const Q& q, int step, bool regularised) {
    if constexpr (by_values<S>) {
      put_values<0, count>(q, sink_, made_);
      ring_.template fetch<true>();
    } else if (q.whole_rows) {
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

  // Store the gradients of the initial state, and zeros at times that no sequence of the tile reaches.
  FUSED_RNN_DEVICE void end(const Q& q, bool alive) const {
    FUSED_RNN_UNROLL
    for (int j = 0; j < 2; ++j) {
      if (!exists(q, j)) continue;
      q.arrays.d_h_0[place(q, j)] = narrow<S>(dh_[j]);
      if constexpr (has_c) q.arrays.d_c_0[place(q, j)] = narrow<S>(alive ? dc_[j] : NAN);
    }
    clear_rest<Cell::gradients>(q, sink(q, tile_.longest(), 1));
  }

 protected:
  FUSED_RNN_DEVICE static int lane() { return threadIdx.x % 32; }

  template <typename F>
  FUSED_RNN_DEVICE void begin_rows(const Q& q, int columns, const F& source) {
    if (by_values<S> || q.whole_rows)
      ring_.template begin<true, Shape::slots>(q, tile_, columns, source);
    else
      ring_.template begin<false, Shape::slots>(q, tile_, columns, source);
  }

  template <typename Sums>
  FUSED_RNN_DEVICE void add_parts(const Sums& sums, float (&total)[2]) const {
    constexpr int chains = by_values<S> && Sums::parts > 4 ? 4 : 1;  // independent of each other
    float more[chains][2];                                           // all chains but the first
    FUSED_RNN_UNROLL
    for (int i = 0; i < Sums::parts; ++i) {
      const auto part = sums.pair(i, pair_);
      auto& chain = i % chains == 0 ? total : more[i % chains];
      FUSED_RNN_UNROLL
      for (int j = 0; j < 2; ++j) chain[j] = i > 0 && i < chains ? part.values[j] : chain[j] + part.values[j];
    }
    FUSED_RNN_UNROLL
    for (int chain = 1; chain < chains; ++chain) {
      FUSED_RNN_UNROLL
      for (int j = 0; j < 2; ++j) total[j] += more[chain][j];
    }
  }

  // Put `some` gradients, from `first` on, into the operand, `columns` columns further on, in a plane for each term. By
  // values they are also kept as they were made, for put_out.
  template <int first, int some, int columns = 0, int without = only_result>
  FUSED_RNN_DEVICE void hand_over(int step, const OwnMade& made) {
    constexpr int further = columns * int{sizeof(Term<S>)};
    if constexpr (by_values<S>) {
      uint32_t matrices[Shape::terms][some];
      FUSED_RNN_UNROLL
      for (int k = 0; k < some; ++k) {
        made_.copy(made, first + k);
        const auto terms = first + k == without ? Terms<uint32_t>{} : made.terms(first + k);
        FUSED_RNN_UNROLL
        for (int term = 0; term < Shape::terms; ++term) matrices[term][k] = terms.terms[term];
      }
      FUSED_RNN_UNROLL
      for (int term = 0; term < Shape::terms; ++term)
        store_matrices_transposed(row(step) + further + term * Shape::plane_bytes, matrices[term]);
    } else {
      uint32_t matrices[some];
      FUSED_RNN_UNROLL
      for (int k = 0; k < some; ++k) matrices[k] = made.pair(first + k);
      store_matrices_transposed(row(step) + further, matrices);
    }
  }

  // Store `count` gradients, from `first` on, where the sink is; the columns of one follow those of the other.
  template <int first, int count, int all>
  FUSED_RNN_DEVICE static void put_values(const Q& q, const Sink& sink, const Made<S, all>& made) {
    FUSED_RNN_UNROLL
    for (int i = 0; i < 2 * count; ++i) sink.store(0, i % 2, i / 2 * q.H, made.value(first + i / 2, i % 2));
  }

  // Store zeros at times that no sequence of the tile reaches.
  template <int count>
  FUSED_RNN_DEVICE void clear_rest(const Q& q, Sink rest) const {
    for (int t = tile_.longest(); t < q.T; ++t, rest.advance()) {
      if constexpr (by_values<S>)
        put_values<0, count>(q, rest, Made<S, count>());
      else if (q.whole_rows)
        rest.template store<true>(0, row(0), true);
      else
        rest.template store<false>(0, row(0), true);
    }
  }

  FUSED_RNN_DEVICE SharedAddress row(int step) const {
    return Shape::operands > 1 ? row_ + (step & 1) * Shape::operand_bytes : row_;
  }

  int octet_, first_;  // first_ is a unit or a feature
  int pair_;           // the thread's pair of partial sums
  SharedAddress row_;  // the lane's row in the operand, of one gradient and sequence
  Ring ring_;
  ThisTile tile_;
  Sink sink_;     // the same row in the result
  OwnMade made_;  // the gradients of a step, by values

 private:
  // The column where a gradient begins in the operand. Those that U multiplies lie side by side, one for each gate;
  // then comes what only the result has, δa_n of the reset-after GRU, in whose place δq is multiplied.
  FUSED_RNN_DEVICE static int column_of(int gradient) {
    if (gradient >= Cell::gradients) return 0;  // a lane without a gradient
    if (Cell::gradients == Cell::gates || gradient < Cell::gates - 1) return gradient * Size::units;
    return gradient == Cell::gates ? (Cell::gates - 1) * Size::units : Shape::of_gates;
  }

  FUSED_RNN_DEVICE int columns(const Q& q) const { return q.H - first_; }
  FUSED_RNN_DEVICE bool exists(const Q& q, int j) const { return tile_.has(0, j) && lane() / 4 < columns(q); }
  FUSED_RNN_DEVICE Sink sink(const Q& q, int time, int time_step) const {
    if constexpr (by_values<S>)
      return {q, tile_, q.arrays.d + first_, q.arrays.d, gradients_row<Cell>(q), columns(q), time, time_step};
    S* const values =
        lane() / 8 < Cell::gradients && tile_.has_row(0) ? q.arrays.d + int64_t{lane() / 8} * q.H + first_ : nullptr;
    return {q, tile_, values, q.arrays.d, gradients_row<Cell>(q), columns(q), time, time_step};
  }
  // The index of the thread's unit and a sequence in a [B, H] array.
  FUSED_RNN_DEVICE int64_t place(const Q& q, int j) const {
    return (int64_t{tile_.first()} + 2 * (lane() % 4) + j) * q.H + first_ + lane() / 4;
  }

  Pair<S> initial_;      // h_0 or c_0, of both sequences
  float dh_[2], dc_[2];  // gradients of the current step's states, but for what comes with its output
};

#endif

}  // namespace fused_rnn::cuda::cluster

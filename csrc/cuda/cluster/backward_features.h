// The pointwise part of the multiplicative modifier in the backward warp kernel: δm and the gradient of what m scales,
// for 8 features and 8 sequences.
#pragma once

#include "backward_job.h"

namespace fused_rnn::cuda::cluster {

#if FUSED_RNN_SM90

// A job of units or of features, in the same registers. A job of features reads rows of m and of the input, and leaves
// δm and δ input.
template <typename Cell, typename S, typename Size>
class BackwardFeatures : public BackwardJob<Cell, S, Size> {
  using Base = BackwardJob<Cell, S, Size>;
  using Shape = BackwardShape<Cell, S, Size>;
  using T = Real<S>;
  using Q = Operands<S, BackwardArrays>;
  using ThisTile = Tile<S, BackwardArrays, 1>;
  using Base::first_, Base::lane, Base::made_, Base::octet_, Base::pair_, Base::ring_, Base::row, Base::row_,
      Base::sink_, Base::tile_;
  static constexpr bool of_hidden = Shape::of_hidden;
  static_assert(by_values<S> || Shape::slots >= 4, "it reads four matrices, of which two are of use");
  // The input's slot in the ring. By values the first slots are columns of one array, that of m.
  static constexpr int input_at = by_values<S> ? Cell::saved : 1;

 public:
  FUSED_RNN_DEVICE BackwardFeatures() {}

  FUSED_RNN_DEVICE BackwardFeatures(int job, SharedAddress operand, unsigned char* ring) : Base(job, operand, ring) {
    if (job < Shape::unit_jobs) return;
    job -= Shape::unit_jobs;
    const int group = job % Size::feature_groups;
    octet_ = job / Size::feature_groups;
    first_ = static_cast<int>(cluster_rank()) * Size::own_features + group * 8;
    pair_ = (group / 2 * Size::octets + octet_) * 64 + lane() * 2 + group % 2;
    const int column = Shape::m_at + (lane() / 8 == 1 ? Size::own_features : 0) + group * 8;
    row_ = kept(operand + ((8 * octet_ + lane() % 8) * Shape::stride + column) * int{sizeof(Term<S>)});
  }

  // A job of features calls these in place of begin, load, make, put_out and end.

  FUSED_RNN_DEVICE void begin_features(const Q& q, int first, int longest) {
    const BackwardArrays<S>& a = q.arrays;
    tile_ = ThisTile(q, first + 8 * octet_, longest);
    this->begin_rows(q, q.I - first_, [&](int slot) -> typename Base::Ring::Source {
      if (slot == 0) return {a.saved + int64_t{Cell::saved} * q.H + first_, saved_row<Cell>(q)};
      return {slot == input_at ? a.input + first_ : nullptr, q.I};
    });
    sink_ = sink(q, tile_.time(q, tile_.longest() - 1), q.reverse ? 1 : -1);
    if constexpr (by_values<S>) input_sink_ = input_sink(q, tile_.time(q, tile_.longest() - 1), q.reverse ? 1 : -1);
  }

  struct FeatureRows {
    Pair<S> m[by_values<S> ? 1 : 4], input[1];  // in rows, the input is loaded with m
  };

  FUSED_RNN_DEVICE FeatureRows load_features() {
    FeatureRows rows;
    ring_.wait();
    ring_.load(rows.m, 0, 0);
    if constexpr (by_values<S>)
      ring_.load(rows.input, 0, input_at);
    else
      rows.input[0] = rows.m[input_at];
    return rows;
  }

  // Make δm and δ input from δx̂, in the parts that the blocks contributed; NaN if they have not come.
  template <typename Sums>
  FUSED_RNN_DEVICE void make_features(const Q& q, int step, const FeatureRows& rows, const Sums& sums, bool come) {
    const int t = tile_.time(q, step);
    float dx_hat[2] = {};
    typename Base::OwnMade made;
    this->add_parts(sums, dx_hat);
    FUSED_RNN_UNROLL
    for (int j = 0; j < 2; ++j) {
      T dm, dx;
      Multiplicative::backward(T(come ? dx_hat[j] : NAN), half_of<S, T>(rows.input[0], j), half_of<S, T>(rows.m[0], j),
                               dm, dx);
      const bool active = tile_.active(0, j, t);
      made.put(0, j, clip(dm, T(q.gradient_clip)).value, active);
      // of W_m x, which is a pre-activation, too
      made.put(1, j, of_hidden ? clip(dx, T(q.gradient_clip)).value : dx.value, active);
    }
    this->template hand_over<0, 2, 0, 1>(step, made);
  }

  FUSED_RNN_DEVICE void put_out_features(const Q& q, int step, bool regularised) {
    if constexpr (by_values<S>) {
      this->template put_values<1, 1>(q, input_sink_, made_);
      input_sink_.advance();
      this->template put_out<1>(q, step, regularised);
    } else {
      this->put_out(q, step, regularised);
    }
  }

  FUSED_RNN_DEVICE void end_features(const Q& q) const {
    this->template clear_rest<1>(q, sink(q, tile_.longest(), 1));
    if constexpr (by_values<S>) this->template clear_rest<1>(q, input_sink(q, tile_.longest(), 1));
  }

 private:
  using Sink = typename Base::Sink;

  FUSED_RNN_DEVICE Sink sink(const Q& q, int time, int time_step) const {
    const BackwardArrays<S>& a = q.arrays;
    S* const d_m = a.d + int64_t{Cell::gradients} * q.H + first_;
    if constexpr (by_values<S>) return {q, tile_, d_m, a.d, gradients_row<Cell>(q), q.I - first_, time, time_step};
    S* const values = !tile_.has_row(0) || lane() >= 16 ? nullptr : lane() < 8 ? d_m : a.d_input + first_;
    return {q, tile_, values, a.d, lane() < 8 ? gradients_row<Cell>(q) : q.I, q.I - first_, time, time_step};
  }
  // By values, the gradient of the input has a sink of its own.
  FUSED_RNN_DEVICE Sink input_sink(const Q& q, int time, int time_step) const {
    return {q, tile_, q.arrays.d_input + first_, q.arrays.d, q.I, q.I - first_, time, time_step};
  }

  std::conditional_t<by_values<S>, Sink, Nothing> input_sink_;
};

#endif

}  // namespace fused_rnn::cuda::cluster

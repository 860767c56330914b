// The pointwise part of the multiplicative modifier in the backward kernel of warps: δm and the gradient of what m is
// multiplied with, for 8 features and 8 sequences.
#pragma once

#include "backward_job.h"

namespace fused_rnn::cuda::cluster {

#if FUSED_RNN_SM90

// A job of units, or one of features, which uses the same registers: its rows are m and the input, and δm and δ input.
template <typename Cell, typename S, typename Size>
class BackwardFeatures : public BackwardJob<Cell, S, Size> {
  using Base = BackwardJob<Cell, S, Size>;
  using Shape = BackwardShape<Cell, S, Size>;
  using T = Real<S>;
  using Q = Operands<S, BackwardArrays>;
  using ThisTile = Tile<S, BackwardArrays, 1>;
  using Base::first_, Base::lane, Base::octet_, Base::pair_, Base::ring_, Base::row, Base::row_, Base::sink_,
      Base::tile_;
  static constexpr bool of_hidden = Shape::of_hidden;
  static_assert(Shape::slots >= 4, "it reads four matrices, of which two are of use");

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
    row_ = kept(operand + ((8 * octet_ + lane() % 8) * Shape::stride + column) * int{sizeof(S)});
  }

  // These take the place of begin, load, make and end where the job is of features.

  FUSED_RNN_DEVICE void begin_features(const Q& q, int first, int longest) {
    const BackwardArrays<S>& a = q.arrays;
    tile_ = ThisTile(q, first + 8 * octet_, longest);
    this->begin_rows(q, q.I - first_, [&](int slot) -> typename Base::Ring::Source {
      if (slot == 0) return {a.saved + int64_t{Cell::saved} * q.H + first_, saved_row<Cell>(q)};
      return {slot == 1 ? a.input + first_ : nullptr, q.I};
    });
    sink_ = sink(q, tile_.time(q, tile_.longest() - 1), q.reverse ? 1 : -1);
  }

  struct FeatureRows {
    uint32_t values[4];  // m, input
  };

  FUSED_RNN_DEVICE FeatureRows load_features() {
    FeatureRows rows;
    ring_.wait();
    ring_.load(rows.values, 0, 0);
    return rows;
  }

  // By δx̂ in the parts that the blocks contributed, if they have come.
  template <typename Sums>
  FUSED_RNN_DEVICE void make_features(const Q& q, int step, const FeatureRows& rows, const Sums& sums, bool come) {
    const int t = tile_.time(q, step);
    float dx_hat[2] = {}, made[2][2];
    this->add_parts(sums, dx_hat);
    uint32_t active_half[2];
    FUSED_RNN_UNROLL
    for (int j = 0; j < 2; ++j) {
      T dm, dx;
      Multiplicative::backward(T(come ? dx_hat[j] : NAN), half_of<S, T>(rows.values[1], j),
                               half_of<S, T>(rows.values[0], j), dm, dx);
      made[0][j] = clip(dm, T(q.gradient_clip)).value;
      made[1][j] = of_hidden ? clip(dx, T(q.gradient_clip)).value : dx.value;  // of W_m x, a pre-activation too
      active_half[j] = tile_.active(0, j, t) ? 0xffffu << 16 * j : 0u;
    }
    const uint32_t active = active_half[0] | active_half[1];
    store_matrices_transposed<2>(
        row(step), {narrow_pair<S>(made[0][0], made[0][1]) & active, narrow_pair<S>(made[1][0], made[1][1]) & active});
  }

  FUSED_RNN_DEVICE void end_features(const Q& q) const { this->clear_rest(q, sink(q, tile_.longest(), 1)); }

 private:
  FUSED_RNN_DEVICE RowSink<S, 1> sink(const Q& q, int time, int time_step) const {
    const BackwardArrays<S>& a = q.arrays;
    S* const values = !tile_.has_row(0) || lane() >= 16 ? nullptr
                      : lane() < 8                      ? a.d + int64_t{Cell::gradients} * q.H + first_
                                                        : a.d_input + first_;
    return {q, tile_, values, a.d, lane() < 8 ? gradients_row<Cell>(q) : q.I, q.I - first_, time, time_step};
  }
};

#endif

}  // namespace fused_rnn::cuda::cluster

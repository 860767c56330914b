// The multiplicative modifier in the forward warp kernel: m = W_m x + U_m h₋ + b_m and x̂ = m⊙x, or m = U_m h₋ + b_m and
// x̂ = m⊙(W_m x) where h₋ is modulated. All blocks wait for x̂ before they multiply it.
//
// The first blocks of a cluster own the features. All warps of such a block share the product, each a share of K for 8
// features; one of them adds up the sums, makes m and x̂, pushes x̂ and stores m. It is a warp that has no cell to run,
// if there are any.
#pragma once

#include "forward_shape.h"

namespace fused_rnn::cuda::cluster {

#if FUSED_RNN_SM90

template <typename Cell, typename S, typename Size>
class Modulation {
  using Shape = ForwardShape<Cell, S, Size>;
  static constexpr bool of_input = Shape::of_input;
  static constexpr int octets = Size::octets, groups = Size::feature_groups, splits = Shape::splits,
                       steps = Shape::m_steps;
  static constexpr int projected_at = 1, slots = 1 + of_input;  // slot 0: x, or W_m x if m scales that; slot 1: W_m x
  using T = Real<S>;
  using Q = Operands<S, ForwardArrays>;
  using Team = ClusterTeam<Size::blocks>;
  using State = ClusterState<Team, S, Size::features, Size::shares, octets>;
  using Sums = SplitSums<groups, splits, octets>;
  using Ring = cluster::Ring<S, slots, 0, octets, true>;
  using ThisTile = Tile<S, ForwardArrays, octets>;
  using Sink = std::conditional_t<by_values<S>, ValueSink<octets>, RowSink<S, octets>>;
  using Weights = InTerms<S, HalfFragment>;
  static constexpr int sums_at = State::shared_bytes, rings_at = sums_at + Sums::shared_bytes,
                       turned_at = rings_at + groups * Ring::shared_bytes,
                       turned = by_values<S> ? 3 : 2,  // matrices of an octet: terms of x̂, or x̂ and m
      turned_bytes = octets * turned * matrix_bytes;   // per group

 public:
  static constexpr int row = Size::features + 8;  // the stride of x̂ between sequences, in values
  static constexpr int shared_bytes = turned_at + groups * turned_bytes;

  FUSED_RNN_DEVICE Modulation(const Q& q, Team& team, unsigned char* shared, int warp, int lane)
      : q_(q),
        lane_(lane),
        group_(warp % groups),
        split_(warp / groups),
        feature_(static_cast<int>(cluster_rank()) * Size::own_features + 8 * group_),
        exists_(kept(static_cast<int>(static_cast<int>(cluster_rank()) < Size::feature_blocks))),
        x_hat_(team, shared),
        sums_(shared + sums_at, 5, group_, splits - 1 - split_),
        ring_(shared + rings_at + group_ * Ring::shared_bytes),
        row_(kept((lane % 8 * (Size::K + 8) + split_ * 16 * steps + lane / 8 * 8) * int{sizeof(Term<S>)})),
        turned_(kept(shared_address(shared) + turned_at + group_ * turned_bytes + lane_ * row_bytes)) {
    if (!exists_) return;
    if (by_values<S> || (q.H % 2 == 0 && reinterpret_cast<uint64_t>(q.arrays.weight_mhh) % 4 == 0))
      load_weights<true>();
    else
      load_weights<false>();
    if (!finishes()) return;
    x_hat_.own(feature_);
    ring_.clear();
    bias_ = q.arrays.bias_m && has_feature() ? widen(q.arrays.bias_m[feature_ + lane_ / 4]) : 0.0f;
  }

  template <bool plain>
  FUSED_RNN_DEVICE void begin(const ThisTile& tile, int time, int time_step) {
    if (!finishes()) return;
    ring_.template begin<plain, slots>(q_, tile, q_.I - feature_, [&](int slot) -> typename Ring::Source {
      return {(slot == projected_at ? q_.arrays.projected : q_.arrays.input) + feature_, q_.I};
    });
    S* const saved =
        q_.arrays.saved && (by_values<S> || lane_ < 8) ? q_.arrays.saved + Cell::saved * q_.H + feature_ : nullptr;
    sink_ = Sink(q_, tile, saved, q_.arrays.output, saved_row<Cell>(q_), q_.I - feature_, time, time_step);
  }

  // Make everything that this warp computes from now on NaN.
  FUSED_RNN_DEVICE void poison() { bias_ = NAN; }

  FUSED_RNN_DEVICE void expect(int share) const { x_hat_.expect(share); }

  // Make m and x̂ of the step at time t from h₋, which is in shared memory.
  template <bool plain>
  FUSED_RNN_DEVICE void make(const ThisTile& tile, int t, SharedAddress h, bool alive) {
    if (!exists_) return;
    float sums[octets][4] = {};
    multiply<S, 1, octets, steps, Size::K + 8, Shape::chains>(sums, h + row_,
                                                              [&](int s, int) { return whole(weights_[s]); });
    if constexpr (splits > 1) {
      if (!finishes()) return sums_.give(sums, alive);
      sums_.take(sums);
    }
    ring_.wait();
    FUSED_RNN_UNROLL
    for (int n = 0; n < octets; ++n) make_octet(n, sums[n]);
    ring_.template fetch<plain>();
    ring_.advance();
    __syncwarp();
    FUSED_RNN_UNROLL
    for (int n = 0; n < octets; ++n) {
      if constexpr (by_values<S>) {
        FUSED_RNN_UNROLL
        for (int j = 0; j < 2; ++j)
          if (tile.active(n, j, t)) sink_.store(n, j, 0, made_[n].values[j]);
      } else {
        sink_.template store_if<plain>(tile.active_row(n, t), n, turned_of(n) + matrix_bytes);
      }
    }
    sink_.advance();
    __syncwarp();
  }

  // Calls failing() if it is this wait that fails.
  template <typename F>
  FUSED_RNN_DEVICE void wait(int share, const F& failing) {
    x_hat_.wait(share, failing);
  }
  FUSED_RNN_DEVICE SharedAddress address() const { return x_hat_.address(); }

 private:
  FUSED_RNN_DEVICE bool finishes() const { return exists_ && split_ == splits - 1; }
  FUSED_RNN_DEVICE bool has_feature() const { return feature_ + lane_ / 4 < q_.I; }
  FUSED_RNN_DEVICE SharedAddress turned_of(int n) const { return turned_ + n * turned * matrix_bytes; }

  template <bool pairs>
  FUSED_RNN_DEVICE void load_weights() {
    const int first_k = split_ * 16 * steps + 2 * (lane_ % 4), left = has_feature() ? q_.H - first_k : 0;
    const S* const from = q_.arrays.weight_mhh + int64_t{feature_ + lane_ / 4} * q_.H + first_k;
    load_gates<pairs, S, 1, 0, 1, steps>([&](int) { return from; }, left,
                                         [&](int s, int, const InTerms<S, Fragment>& f) { weights_[s] = half(f); });
  }

  // Make m and x̂ of an octet. Features past I stay zero, because 0·∞ would go from them to all units.
  FUSED_RNN_DEVICE void make_octet(int n, const float (&sums)[4]) {
    Pair<S> input[1], projected[1] = {};
    ring_.load(input, n, 0);
    if constexpr (of_input) ring_.load(projected, n, projected_at);
    T m[2], x_hat[2];
    FUSED_RNN_UNROLL
    for (int j = 0; j < 2; ++j) {
      Multiplicative::forward(half_of<S, T>(projected[0], j), T(sums[j] + bias_), half_of<S, T>(input[0], j), m[j],
                              x_hat[j]);
      if (!has_feature()) x_hat[j] = T(0.0f);
    }
    if constexpr (by_values<S>) {
      send_terms(x_hat_, n, turned_of(n), lane_, x_hat[0].value, x_hat[1].value, true);
      made_[n] = {m[0].value, m[1].value};
    } else {
      store_matrices_transposed<2>(
          turned_of(n), {narrow_pair<S>(x_hat[0].value, x_hat[1].value), narrow_pair<S>(m[0].value, m[1].value)});
      __syncwarp();
      x_hat_.push(n, load_shared<Row<S>>(turned_of(n) - lane_ / 8 * matrix_bytes));
    }
  }

  const Q& q_;
  const int lane_, group_, split_, feature_;  // the first of the warp's 8 features
  const int exists_;                          // whether the block has features
  State x_hat_;
  Sums sums_;
  Ring ring_;
  Sink sink_;  // for m
  const SharedAddress row_, turned_;
  Weights weights_[steps];
  Pair<S> made_[by_values<S> ? octets : 1];  // m
  float bias_ = 0;
};

#endif

}  // namespace fused_rnn::cuda::cluster

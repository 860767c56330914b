// The backward warp kernel: a whole sequence in one launch, in the reverse order of the forward steps. It leaves the
// gradients of all pre-activations in one matrix, from which the library computes every weight gradient and δx
// afterwards.
//
// A block makes the gradients of its own units, in registers of warps that have 8 units of 8 sequences each, and hands
// them in shared memory to all its warps. These multiply them with the block's columns of Uᵀ, each warp for some
// outputs, and contribute the partial sums to the blocks that own the outputs. The owner adds them up in the next step,
// or after the last one for δh_0.
//
// A cell of several phases makes δs = U_nᵀ δa_n and δx̂ = Wᵀ δ (Uᵀ δ where h₋ is modulated) on the way, in the same
// manner; while these travel, warps multiply what is there already. The first blocks own the features of x̂.
#pragma once

#include "backward_features.h"
#include "backward_job.h"
#include "backward_shape.h"
#include "backward_weights.h"

namespace fused_rnn::cuda::cluster {

#if FUSED_RNN_SM90

template <typename Cell, typename S, typename Size>
class Backward {
  using Shape = BackwardShape<Cell, S, Size>;
  static constexpr auto& products = Shape::products;
  static constexpr int octets = Size::octets, units = Size::units, own_features = Size::own_features,
                       gates = Cell::gates, terms = Shape::terms, own_tiles = Shape::own_tiles,
                       own_feature_tiles = Shape::own_feature_tiles, together = Shape::together,
                       own_jobs = Shape::own_jobs, of_units = Shape::of_units;
  static constexpr bool reset_before = Shape::reset_before, multiplicative = Shape::multiplicative,
                        of_hidden = Shape::of_hidden;
  using Q = Operands<S, BackwardArrays>;
  using Team = typename Size::Exchange::template Team<Size::blocks>;
  template <int outputs>
  using SumsOf = typename Size::Exchange::template Sums<Team, outputs / 16 * octets * 32, typename Shape::Travelling,
                                                        Shape::warps>;
  using Sums = SumsOf<units>;
  using ResetSums = std::conditional_t<reset_before, Sums, Nothing>;
  using FeatureSums = std::conditional_t<multiplicative, SumsOf<own_features>, Nothing>;
  using Job = std::conditional_t<multiplicative, BackwardFeatures<Cell, S, Size>, BackwardJob<Cell, S, Size>>;
  using ThisTile = Tile<S, BackwardArrays, octets>;
  // The weights of a product, from `own` rows of each of `of_gates` gates; Nothing if the cell lacks the product.
  template <int tiles, int steps, int held, int own, int of_gates>
  using Weights = std::conditional_t < (tiles * steps > 0),
        TurnedWeights<S, tiles, steps, held, own, of_gates, tiles<together ? tiles : together>, Nothing>;
  // Chains of sums, which keep independent instructions in flight.
  static constexpr int chains = own_tiles * octets == 1 ? 2 : 1;
  static constexpr int feature_chains = own_feature_tiles * octets > 2   ? 1
                                        : own_feature_tiles * octets > 1 ? (terms == 1 ? 2 : 1)
                                                                         : (terms == 1 ? 4 : 2);
  using FeatureAccumulators = WarpSums<S>[feature_chains][multiplicative ? own_feature_tiles : 1][octets];
  static_assert(Sums::shared_bytes == Shape::unit_sums_bytes);

 public:
  static constexpr int threads = Shape::threads, shared_bytes = Shape::shared_bytes;

  FUSED_RNN_DEVICE Backward(const Q& q, Team& team, unsigned char* shared)
      : q_(q),
        team_(team),
        sums_(team, shared),
        reset_sums_(team, shared + Shape::reset_sums_at),
        feature_sums_(team, shared + Shape::feature_sums_at),
        operand_(kept(shared_address(shared) + Shape::operand_at +
                      (lane_ % 8 * Shape::stride + lane_ / 8 * 8) * int{sizeof(Term<S>)})),
        recurrent_(shared + Shape::recurrent_at, warp_, lane_),
        update_(shared + Shape::update_at, warp_, lane_),
        candidate_(shared + Shape::candidate_at, warp_, lane_),
        features_(shared + Shape::features_at, warp_, lane_),
        modulation_(shared + Shape::modulation_at, warp_, lane_) {
    for (int i = threadIdx.x; i < Shape::operands * Shape::operand_bytes / row_bytes; i += threads)
      at<Row<Term<S>>>(shared, Shape::operand_at)[i] = {};
    if (Shape::terms == 1 && have_pairs())
      load_weights<true>();
    else
      load_weights<false>();
    FUSED_RNN_UNROLL
    for (int i = 0; i < own_jobs; ++i)
      if (has_job(i))
        jobs_[i] = Job(job(i), shared_address(shared) + Shape::operand_at,
                       shared + Shape::rings_at + job(i) * Shape::ring_bytes);
  }

  FUSED_RNN_DEVICE void run() {
    const int clusters = gridDim.x / Size::blocks, tiles = (q_.B + 8 * octets - 1) / (8 * octets);
    for (int index = blockIdx.x / Size::blocks; index < tiles; index += clusters) {
      team_.start([] {});
      const ThisTile tile(q_, index);
      for_jobs([&](int, Job& job) { job.begin(q_, tile.first(), tile.longest()); });
      if constexpr (multiplicative)
        for_features([&](int, Job& job) { job.begin_features(q_, tile.first(), tile.longest()); });
      for (int step = tile.longest() - 1; step >= 0; --step) advance(tile, step);
      if (tile.longest() > 0) {
        wait();
        for_jobs([&](int, Job& job) { job.add(sums_, tile.time(q_, 0), true); });
      }
      for_jobs([&](int, Job& job) { job.end(q_, team_.alive()); });
      if constexpr (multiplicative) for_features([&](int, Job& job) { job.end_features(q_); });
    }
    team_.end();
  }

 private:
  // The jobs, first those of units and then those of features, are dealt out to the warps in turn.

  FUSED_RNN_DEVICE int job(int i) const { return i * Shape::warps + warp_; }
  // Whether the warp's ith job is one of the first `count`.
  template <int count>
  FUSED_RNN_DEVICE bool is_before(int i) const {
    return (i + 1) * Shape::warps <= count || job(i) < count;
  }
  FUSED_RNN_DEVICE bool has_job(int i) const { return is_before<Shape::jobs>(i); }
  template <typename F>
  FUSED_RNN_DEVICE void for_jobs(const F& f) {
    FUSED_RNN_UNROLL
    for (int i = 0; i < own_jobs; ++i)
      if (is_before<Shape::unit_jobs>(i)) f(i, jobs_[i]);
  }
  template <typename F>
  FUSED_RNN_DEVICE void for_features(const F& f) {
    if (!owns_features()) return;
    FUSED_RNN_UNROLL
    for (int i = 0; i < own_jobs; ++i)
      if (i * Shape::warps + Shape::warps > Shape::unit_jobs && !is_before<Shape::unit_jobs>(i) && has_job(i))
        f(i, jobs_[i]);
  }
  FUSED_RNN_DEVICE bool owns_features() const { return Size::feature_blocks == Size::blocks || owns_features_; }

  // Weights -----------------------------------------------------------------------------------------------------------

  // Whether every second output is aligned to 4 bytes.
  FUSED_RNN_DEVICE bool have_pairs() const {
    const BackwardArrays<S>& a = q_.arrays;
    uint64_t places = reinterpret_cast<uint64_t>(a.weight_hh);
    if constexpr (multiplicative) {
      places |= reinterpret_cast<uint64_t>(a.weight_mhh) | 2 * q_.I;
      if constexpr (!of_hidden) places |= reinterpret_cast<uint64_t>(a.weight_ih);
    }
    return q_.H % 2 == 0 && places % 4 == 0;
  }

  template <bool pairs>
  FUSED_RNN_DEVICE void load_weights() {
    if constexpr (!of_hidden) recurrent_.template load<pairs>(Source<Matrix::hh>{*this});
    if constexpr (reset_before) {
      update_.template load<pairs>(Source<Matrix::hh, 1>{*this});
      candidate_.template load<pairs>(Source<Matrix::hh, 2>{*this});
    }
    if constexpr (multiplicative) {
      features_.template load<pairs>(Source<of_hidden ? Matrix::hh : Matrix::ih>{*this});
      modulation_.template load<pairs>(Source<Matrix::mhh>{*this});
    }
  }

  enum class Matrix { ih, hh, mhh };

  // A matrix of weights, from a gate on.
  template <Matrix matrix, int gate = 0>
  struct Source {
    const Backward& block;

    FUSED_RNN_DEVICE const S* weights() const {
      const BackwardArrays<S>& a = block.q_.arrays;
      return (matrix == Matrix::ih   ? a.weight_ih
              : matrix == Matrix::hh ? a.weight_hh
                                     : a.weight_mhh) +
             int64_t{gate} * rows() * columns();
    }
    FUSED_RNN_DEVICE int rows() const { return matrix == Matrix::mhh ? block.q_.I : block.q_.H; }
    FUSED_RNN_DEVICE int columns() const { return matrix == Matrix::ih ? block.q_.I : block.q_.H; }
    FUSED_RNN_DEVICE int output() const {
      return 16 * (matrix == Matrix::ih || (of_hidden && matrix == Matrix::hh) ? block.feature_tile(0) : block.tile(0));
    }
    FUSED_RNN_DEVICE int rank() const { return Team::rank(); }
    FUSED_RNN_DEVICE int lane() const { return block.lane_; }
  };

  // Steps -------------------------------------------------------------------------------------------------------------

  // Wait for the partial sums. All warps do, even those without jobs, so that none runs ahead after a timeout.
  FUSED_RNN_DEVICE void wait() {
    if (!sums_.wait()) for_jobs([&](int, Job& job) { job.poison(); });
  }

  FUSED_RNN_DEVICE void advance(const ThisTile& tile, int step) {
    // two versions, wait included, so that the compiler can move what does not depend on the sums ahead of the wait
    if (regularised_)
      make<true>(tile, step);
    else
      make<false>(tile, step);
    __syncthreads();
    if constexpr (Shape::phases == 1)
      multiply(step);
    else
      hand_back(step);
    if (warp_ == 0) sums_.expect();
    for_jobs([&](int, Job& job) { job.put_out(q_, step, regularised_); });
    if constexpr (multiplicative) for_features([&](int, Job& job) { job.put_out_features(q_, step, regularised_); });
  }

  template <bool regularised>
  FUSED_RNN_DEVICE void make(const ThisTile& tile, int step) {
    typename Job::Rows rows[own_jobs];
    for_jobs([&](int i, Job& job) {
      rows[i] = job.load(q_);
      job.template foresee<regularised>(q_, step, rows[i]);
    });
    if (step + 1 < tile.longest()) wait();
    for_jobs([&](int i, Job& job) { job.template make<regularised>(q_, step, rows[i], sums_); });
  }

  // Multiply Uᵀ δ for δ of the block's units. There are two operands, because some warps may still multiply when
  // everything that this one waits for has come.
  FUSED_RNN_DEVICE void multiply(int step) const {
    const SharedAddress rows = operand_ + (step & 1) * Shape::operand_bytes;
    FUSED_RNN_UNROLL
    for (int first = 0; first < own_tiles; first += together) {
      WarpSums<S> sums[chains][together][octets] = {};
      multiply(recurrent_, first, rows, sums);
      FUSED_RNN_UNROLL
      for (int j = 0; j < together; ++j) contribute<units>(sums_, tile(first + j), sums, j);
    }
  }

  // The phases that follow once the gradients of the first one are made. One operand is enough for them: what a phase
  // writes there is multiplied after the barrier of the phase and before the next barrier of the block, and all warps
  // that write to the same place in the next step have passed the latter.
  FUSED_RNN_DEVICE void hand_back(int step) {
    WarpSums<S> dh[chains][own_tiles][octets] = {};
    FeatureAccumulators dx_hat = {};
    if constexpr (reset_before) {
      contribute_reset();
      multiply(update_, 0, column(units), dh);
      if constexpr (multiplicative) multiply_features<of_units, gates * of_units>(dx_hat);
      reset(step);
      __syncthreads();
    }
    if constexpr (multiplicative) {
      multiply_features<0, reset_before ? of_units : gates * of_units>(dx_hat);
      contribute_features(dx_hat);
      if constexpr (!of_hidden) multiply(recurrent_, 0, column(0), dh);
      modulate(step);
      __syncthreads();
      if (owns_features()) multiply(modulation_, 0, column(Shape::m_at), dh);
    } else {
      multiply(recurrent_, 0, column(0), dh);
    }
    FUSED_RNN_UNROLL
    for (int j = 0; j < own_tiles; ++j) contribute<units>(sums_, tile(j), dh, j);
  }

  // Contribute δs = U_nᵀ δa_n.
  FUSED_RNN_DEVICE void contribute_reset() const {
    WarpSums<S> ds[chains][own_tiles][octets] = {};
    multiply(candidate_, 0, column(2 * units), ds);
    FUSED_RNN_UNROLL
    for (int j = 0; j < own_tiles; ++j) contribute<units>(reset_sums_, tile(j), ds, j);
    if (warp_ == Shape::warps - 1) reset_sums_.expect();
  }

  FUSED_RNN_DEVICE void reset(int step) {
    typename Job::ResetRows rows[own_jobs];
    for_jobs([&](int i, Job& job) { rows[i] = job.load_reset(); });
    const bool come = reset_sums_.wait();
    for_jobs([&](int i, Job& job) { job.reset(q_, step, rows[i], reset_sums_, come); });
  }

  FUSED_RNN_DEVICE bool multiplies_features() const {
    return Shape::feature_warps == Shape::warps || warp_ < Shape::feature_warps;
  }

  // Add steps `begin` to `end` - 1 of δx̂ = Wᵀ δ, or Uᵀ δ where h₋ is modulated.
  template <int begin, int end>
  FUSED_RNN_DEVICE void multiply_features(FeatureAccumulators& sums) const {
    if (multiplies_features()) multiply<begin, end>(features_, 0, column(0), sums);
  }

  FUSED_RNN_DEVICE void contribute_features(const FeatureAccumulators& sums) const {
    if (multiplies_features()) {
      FUSED_RNN_UNROLL
      for (int j = 0; j < own_feature_tiles; ++j) contribute<own_features>(feature_sums_, feature_tile(j), sums, j);
    }
    if (owns_features() && warp_ == Shape::warps - 1) feature_sums_.expect();
  }

  // Make the gradients of the features, in blocks that have some. The others are sent nothing, and wait for nothing.
  FUSED_RNN_DEVICE void modulate(int step) {
    if (!owns_features()) return feature_sums_.follow();
    typename Job::FeatureRows rows[own_jobs];
    for_features([&](int i, Job& job) { rows[i] = job.load_features(); });
    const bool come = feature_sums_.wait();
    for_features([&](int i, Job& job) { job.make_features(q_, step, rows[i], feature_sums_, come); });
  }

  // Products ----------------------------------------------------------------------------------------------------------

  FUSED_RNN_DEVICE int tile(int j) const { return warp_ * own_tiles + j; }
  FUSED_RNN_DEVICE int feature_tile(int j) const { return warp_ * own_feature_tiles + j; }
  // Column k of the operand, in a kernel that has only one.
  FUSED_RNN_DEVICE SharedAddress column(int k) const { return operand_ + k * int{sizeof(Term<S>)}; }

  // Add a product for some tiles, from `first` on, with the operand from `columns` on; all its steps, or some.
  template <typename W, int chains, int tiles>
  FUSED_RNN_DEVICE void multiply(const W& weights, int first, SharedAddress columns,
                                 WarpSums<S> (&sums)[chains][tiles][octets]) const {
    multiply<0, W::k_steps>(weights, first, columns, sums);
  }
  template <int begin, int end, typename W, int chains, int tiles>
  FUSED_RNN_DEVICE void multiply(const W& weights, int first, SharedAddress columns,
                                 WarpSums<S> (&sums)[chains][tiles][octets]) const {
    FUSED_RNN_UNROLL
    for (int s = begin; s < end; s += 2) {
      uint32_t b[octets][terms][4];
      FUSED_RNN_UNROLL
      for (int i = 0; i < octets * terms; ++i) {
        const int n = i / terms, term = i % terms;
        const SharedAddress from =
            columns + term * Shape::plane_bytes + (n * 8 * Shape::stride + s * 16) * int{sizeof(Term<S>)};
        if (s + 1 < end) {
          load_matrices(b[n][term], from);
        } else {
          uint32_t half[2];
          load_matrices(half, from);
          b[n][term][0] = half[0];
          b[n][term][1] = half[1];
        }
      }
      FUSED_RNN_UNROLL
      for (int i = 0; i < 2; ++i) {
        if (s + i >= end) continue;
        FUSED_RNN_UNROLL
        for (int j = 0; j < tiles; ++j) {
          const auto a = weights.get(s + i, first + j);
          FUSED_RNN_UNROLL
          for (int n = 0; n < octets; ++n) {
            uint32_t half[terms][2];
            FUSED_RNN_UNROLL
            for (int k = 0; k < 2 * terms; ++k) half[k / 2][k % 2] = b[n][k / 2][2 * i + k % 2];
            sums[(s + i) % chains][j][n].add(a, half);
          }
        }
      }
    }
  }

  // Contribute the sums of tile j, which is `tile` in the whole product, to the block that owns it; each owns `own`
  // outputs.
  template <int own, typename Channel, int chains, int tiles>
  FUSED_RNN_DEVICE void contribute(const Channel& channel, int tile, const WarpSums<S> (&sums)[chains][tiles][octets],
                                   int j) const {
    constexpr int owned = own / 16;
    FUSED_RNN_UNROLL
    for (int n = 0; n < octets; ++n) {
      WarpSums<S> all = sums[0][j][n];
      FUSED_RNN_UNROLL
      for (int c = 1; c < chains; ++c) all.add(sums[c][j][n]);
      float total[4];
      FUSED_RNN_UNROLL
      for (int i = 0; i < 4; ++i) total[i] = all.total(i);
      channel.contribute(tile / owned, (tile % owned * octets + n) * 32 + lane_, total);
    }
  }

  const Q& q_;
  const int lane_ = kept(static_cast<int>(threadIdx.x % 32)), warp_ = kept(static_cast<int>(threadIdx.x / 32));
  const bool regularised_ = q_.arrays.keep_h || q_.arrays.keep_c || q_.gradient_clip < INFINITY;
  const bool owns_features_ = multiplicative && Team::rank() < Size::feature_blocks;
  Team& team_;
  Sums sums_;
  ResetSums reset_sums_;
  FeatureSums feature_sums_;
  const SharedAddress operand_;  // the lane's row of matrices in the first, [sequences, Shape::stride]
  Job jobs_[own_jobs];
  Weights<own_tiles, products.recurrent.steps, products.recurrent.held, units, reset_before ? 1 : gates> recurrent_;
  Weights<own_tiles, products.update.steps, products.update.held, units, 1> update_;
  Weights<own_tiles, products.candidate.steps, products.candidate.held, units, 1> candidate_;
  Weights<own_feature_tiles, products.features.steps, products.features.held, units, gates> features_;
  Weights<own_tiles, products.modulation.steps, products.modulation.held, own_features, 1> modulation_;
};

#else

// Warp kernels are empty for older architectures, whose pass of the compiler reads the host's code too.
template <typename Cell, typename S, typename Size>
struct Backward {
  static constexpr int shared_bytes = 0;
};

#endif

template <typename Cell, typename S, typename Size>
FUSED_RNN_KERNEL __launch_bounds__(BackwardShape<Cell, S, Size>::threads, 1)
    run_backward(FUSED_RNN_PARAMETER Operands<S, BackwardArrays> q) {
#if FUSED_RNN_SM90
  FUSED_RNN_DYNAMIC_SHARED(shared);
  // not a member of the block: an object that points into itself stays in memory
  typename Size::Exchange::template Team<Size::blocks> team(q);
  Backward<Cell, S, Size>(q, team, settled(shared)).run();
#endif
}

}  // namespace fused_rnn::cuda::cluster

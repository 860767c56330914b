// The forward warp kernel: a whole sequence in one launch, whose steps stay in registers. The library projects x before
// it (see CellShape in ../shape.h).
//
// A warp has 8 units of its block, or a share of K for these. The sums of its products hold all gates of a unit and two
// sequences in one thread. The cell runs on them, in the warp with the first share or in all shares, of some sequences
// each, and h and c never leave their registers. Rows carry h to the other warps and blocks, and all results to memory.
// The phases of a step are those of ../forward.h, each ended by an exchange: of x̂, of s = r⊙h₋, of h.
#pragma once

#include "modulation.h"

namespace fused_rnn::cuda::cluster {

#if FUSED_RNN_SM90

template <typename Cell, typename S, typename Size>
class Forward {
  using Shape = ForwardShape<Cell, S, Size>;
  static constexpr int G = Cell::gates, K = Size::K, octets = Size::octets, shares = Size::shares;
  static constexpr bool trades = Shape::trades;
  static constexpr int own_octets = Shape::own_octets;  // octets that a warp runs the cell for
  static constexpr int matrices = Shape::matrices, recurrent = Shape::recurrent, k_steps = Shape::k_steps,
                       held = Shape::held, held_n = Shape::held_n, x_steps = Shape::x_steps, inputs = Shape::inputs;
  static constexpr bool has_c = Cell::has_cell_state, reset_before = Cell::reset_before,
                        multiplicative = is_multiplicative<Cell>, of_input = Shape::of_input;
  // Chains of sums in U's product, see Shape::chains.
  static constexpr int chains = recurrent * octets == 1 && phases_of<Cell> > 1     ? Shape::chains
                                : octets == 1 && k_steps <= 8 && Shape::warps <= 8 ? 2
                                                                                   : 1;
  using T = Real<S>;
  using Q = Operands<S, ForwardArrays>;
  using Team = typename Size::Exchange::template Team<Size::blocks>;
  using State = typename Size::Exchange::template State<Team, S, K, shares, octets>;
  using Sums = std::conditional_t<trades, TradedSums<Size::groups, recurrent * own_octets>,
                                  SplitSums<Size::groups, shares, recurrent * octets, Team::ordered>>;
  using Ring = cluster::Ring<S, Shape::slots, inputs, own_octets, true, Shape::stages>;
  using WholeTile = Tile<S, ForwardArrays, octets>;
  using ThisTile = Tile<S, ForwardArrays, own_octets>;  // the sequences that the warp runs the cell for
  using Outputs =
      std::conditional_t<by_values<S>, ValueSink<own_octets, 1 + has_c>, RowSink<S, own_octets>>;  // for h and c
  using Saved = std::conditional_t<by_values<S>, ValueSink<own_octets>, RowSink<S, own_octets>>;
  using Weights = InTerms<S, Fragment>;
  using HalfWeights = InTerms<S, HalfFragment>;
  // in the reset-before GRU: the state s, and the sums of n
  using StateS = std::conditional_t<reset_before, State, Nothing>;
  using SumsN = std::conditional_t<reset_before, SplitSums<Size::groups, shares, octets>, Nothing>;
  using Modulator = std::conditional_t<multiplicative, Modulation<Cell, S, Size>, Nothing>;

  static constexpr int sums_at = State::shared_bytes, weights_at = sums_at + Sums::shared_bytes,
                       rings_at = weights_at + Shape::weight_bytes,
                       turned_at = rings_at + Shape::cell_warps * Ring::shared_bytes,
                       s_at = turned_at + Shape::cell_warps * Shape::turned_bytes,
                       sums_n_at = s_at + StateS::shared_bytes, modulator_at = sums_n_at + SumsN::shared_bytes;

 public:
  static constexpr int threads = Shape::threads;
  static constexpr int shared_bytes = modulator_at + Modulator::shared_bytes;

  FUSED_RNN_DEVICE Forward(const Q& q, Team& team, unsigned char* shared)
      : q_(q),
        a_(q.arrays),
        team_(team),
        state_(team, shared),
        sums_(shared + sums_at, 1, group_, share_),
        weights_in_shared_(at<Weights>(shared, weights_at) + warp_ * (k_steps - held) * recurrent * 32 + lane_),
        ring_(shared + rings_at + (trades ? warp_ : group_) * Ring::shared_bytes),
        row_(kept((lane_ % 8 * (K + 8) + share_ * Shape::own_k + lane_ / 8 * 8) * int{sizeof(Term<S>)})),
        turned_(kept(shared_address(shared) + turned_at + (trades ? warp_ : group_) * Shape::turned_bytes +
                     lane_ * row_bytes)),
        s_(team, shared + s_at),
        sums_n_(shared + sums_n_at, 3, group_, share_),
        modulator_(q, team, shared + modulator_at, warp_, lane_) {
    if constexpr (of_input) {
      row_x_ = kept((lane_ % 8 * Modulator::row + share_ * 16 * x_steps + lane_ / 8 * 8) * int{sizeof(Term<S>)});
      if (by_values<S> || (q.I % 2 == 0 && reinterpret_cast<uint64_t>(a_.weight_ih) % 4 == 0))
        load_w<true>();
      else
        load_w<false>();
    }
    if constexpr (reset_before)
      weights_n_in_shared_ =
          at<HalfWeights>(shared, weights_at + Shape::u_bytes) + warp_ * (k_steps - held_n) * 32 + lane_;
    if (by_values<S> || (q.H % 2 == 0 && reinterpret_cast<uint64_t>(a_.weight_hh) % 4 == 0))
      load_u<true>();
    else
      load_u<false>();
    state_.own(unit_);
    if constexpr (reset_before) s_.own(unit_);
    if (has_cell()) ring_.clear();
    FUSED_RNN_UNROLL
    for (int g = 0; g < G; ++g) {
      const auto bias = [&](const S* values) {  // every sum gets it once
        return values && has_cell() && has_unit() ? widen(values[int64_t{g} * q_.H + unit_ + lane_ / 4]) : 0.0f;
      };
      bias_[g] = bias(a_.bias_hh) + (is_apart(g) ? 0.0f : bias(a_.bias_ih));
      if (is_apart(g)) bias_x_ = bias(a_.bias_ih);
    }
  }

  FUSED_RNN_DEVICE void run() {
    const int clusters = gridDim.x / Size::blocks, tiles = (q_.B + 8 * octets - 1) / (8 * octets);
    const bool plain = (by_values<S> || q_.whole_rows) && !a_.keep_h && !(has_c && a_.keep_c);
    for (int index = blockIdx.x / Size::blocks; index < tiles; index += clusters) {
      const WholeTile whole(q_, index);
      team_.start([&] { put_initial_state(whole.first()); });
      if (plain)
        run_tile<true>(own_tile(whole));
      else
        run_tile<false>(own_tile(whole));
    }
    team_.end();
  }

 private:
  // Slots that the ring fetches in a step.
  template <bool plain>
  static constexpr int ring_slots = plain ? inputs : Shape::slots;
  // Whether the cell needs W x + b and U h₋ + b' of a gate apart, not just their sum: the last gate, if any.
  HOST_DEVICE static constexpr bool is_apart(int gate) { return Cell::separates_x && gate == G - 1; }
  FUSED_RNN_DEVICE int columns() const { return q_.H - unit_; }  // from the warp's first unit on, perhaps more than 8
  FUSED_RNN_DEVICE bool has_unit() const { return unit_ + lane_ / 4 < q_.H; }
  FUSED_RNN_DEVICE bool has_cell() const { return trades || share_ == 0; }
  FUSED_RNN_DEVICE int first_octet() const { return trades ? share_ : 0; }
  FUSED_RNN_DEVICE ThisTile own_tile(const WholeTile& whole) const {
    if constexpr (trades)
      return {q_, whole.first() + 8 * share_, whole.longest()};
    else
      return whole;
  }

  // `plain`: rows are whole, and there is no zoneout.
  template <bool plain>
  FUSED_RNN_DEVICE void run_tile(const ThisTile& tile) {
    if (has_cell()) begin<plain>(tile);
    const int first_time = tile.time(q_, 0), time_step = kept(q_.reverse ? -1 : 1);
    if constexpr (multiplicative) modulator_.template begin<plain>(tile, first_time, time_step);
    Outputs outputs = outputs_from(tile, first_time, time_step);
    Saved saved = saved_from(tile, first_time, time_step);
    int t = first_time;
    for (int step = 0; step < tile.longest(); ++step, t += time_step) advance<plain>(tile, step, t, outputs, saved);
    if (has_cell()) end<plain>(tile);
  }

  template <bool pairs>
  FUSED_RNN_DEVICE void load_u() {
    const int first_k = share_ * Shape::own_k + 2 * (lane_ % 4), left = has_unit() ? q_.H - first_k : 0;
    const S* const from = a_.weight_hh + int64_t{unit_ + lane_ / 4} * q_.H + first_k;
    const auto row = [&](int gate) { return from + int64_t{gate} * q_.H * q_.H; };
    load_gates<pairs, S, G, 0, recurrent, k_steps>(row, left, [&](int s, int m, const Weights& f) {
      if (s < held)
        weights_[s * recurrent + m] = f;
      else
        weights_in_shared_[((s - held) * recurrent + m) * 32] = f;
    });
    if constexpr (reset_before)
      load_gates<pairs, S, G, 1, 1, k_steps>(row, left, [&](int s, int, const Weights& f) {
        if (s < held_n)
          weights_n_[s] = half(f);
        else
          weights_n_in_shared_[(s - held_n) * 32] = half(f);
      });
  }

  template <bool pairs>
  FUSED_RNN_DEVICE void load_w() {
    const int first_k = share_ * 16 * x_steps + 2 * (lane_ % 4), left = has_unit() ? q_.I - first_k : 0;
    const S* const from = a_.weight_ih + int64_t{unit_ + lane_ / 4} * q_.I + first_k;
    const auto row = [&](int gate) { return from + int64_t{gate} * q_.H * q_.I; };
    load_gates<pairs, S, G, 0, matrices, x_steps>(
        row, left, [&](int s, int m, const Weights& f) { weights_x_[s * matrices + m] = f; });
  }

  FUSED_RNN_DEVICE void put_initial_state(int first) const {
    for (int i = threadIdx.x; i < 8 * octets * K; i += threads) {
      const int r = i / K, k = i % K, b = first + r;
      state_.put(r, k, b < q_.B && k < q_.H ? a_.h_0[int64_t{b} * q_.H + k] : S{});
    }
  }

  // The index of the thread's unit and a sequence of octet n in a [B, H] array.
  FUSED_RNN_DEVICE int64_t place(const ThisTile& tile, int n, int j) const {
    return (int64_t{tile.first()} + 8 * n + 2 * (lane_ % 4) + j) * q_.H + unit_ + lane_ / 4;
  }

  template <bool plain>
  FUSED_RNN_DEVICE void begin(const ThisTile& tile) {
    FUSED_RNN_UNROLL
    for (int n = 0; n < own_octets; ++n) {
      FUSED_RNN_UNROLL
      for (int j = 0; j < 2; ++j) {
        const bool exists = tile.has(n, j) && has_unit();
        h_[n][j] = exists ? widen(a_.h_0[place(tile, n, j)]) : 0.0f;
        if constexpr (has_c) c_[n][j] = exists ? widen(a_.c_0[place(tile, n, j)]) : 0.0f;
      }
    }
    ring_.template begin<plain, ring_slots<plain>>(q_, tile, columns(), [&](int slot) -> typename Ring::Source {
      if (slot < inputs) return {a_.projected + int64_t{slot} * q_.H + unit_, G * q_.H};
      const S* const keep = slot == inputs ? a_.keep_h : a_.keep_c;
      return {keep ? keep + unit_ : nullptr, q_.H};
    });
  }

  template <bool plain>
  FUSED_RNN_DEVICE void advance(const ThisTile& tile, int step, int t, Outputs& outputs, Saved& saved) {
    if (step > 0) state_.wait(share_, [&] { poison(); });
    const bool last = step + 1 == tile.longest();
    if (!last && group_ == 0) state_.expect(share_);
    if constexpr (multiplicative) {
      if (group_ == 0) modulator_.expect(share_);
      modulator_.template make<plain>(tile, t, state_.address(), team_.alive());
    }
    if constexpr (reset_before) {
      if (!advance_in_two<plain>(tile, t, last)) return;
    } else {
      float sums[matrices * octets][4] = {};
      if constexpr (!trades) start<0, matrices>(sums);
      if constexpr (modulates_of<Cell> != Modulates::hidden) multiply_u(sums, state_.address());
      if constexpr (multiplicative) {
        modulator_.wait(share_, [&] { poison(sums); });
        if constexpr (of_input)
          multiply_x<0, matrices>(sums);
        else
          multiply_u(sums, modulator_.address());
      }
      if constexpr (trades) {
        float own[matrices * own_octets][4];
        start<0, matrices>(own);
        sums_.trade(sums, own, team_.alive());
        make<plain>(tile, t, last, own);
      } else {
        if constexpr (shares > 1) {
          if (share_ > 0) return sums_.give(sums, team_.alive());
          sums_.take(sums);
        }
        make<plain>(tile, t, last, sums);
      }
    }
    if constexpr (ring_slots<plain> > 0) {
      ring_.template fetch<plain, ring_slots<plain>>();
      ring_.advance();
    }
    store<plain>(tile, t, outputs, saved);
  }

  // Defined in forward_reset.h: the step of the reset-before GRU, up to storing its results. False for a warp that only
  // shares the products.
  template <bool plain>
  FUSED_RNN_DEVICE bool advance_in_two(const ThisTile& tile, int t, bool last);
  FUSED_RNN_DEVICE void make_gates(int n, const float (&sums)[4]);
  template <bool plain>
  FUSED_RNN_DEVICE void make_candidate(const ThisTile& tile, int n, int t, bool last, const float (&sums)[4]);

  // Make everything that this warp computes from now on NaN; with `sums`, also what it computes from these.
  FUSED_RNN_DEVICE void poison() {
    FUSED_RNN_UNROLL
    for (int g = 0; g < G; ++g) bias_[g] = NAN;
    if constexpr (multiplicative) modulator_.poison();
  }
  template <int count>
  FUSED_RNN_DEVICE void poison(float (&sums)[count][4]) {
    poison();
    FUSED_RNN_UNROLL
    for (int i = 0; i < count; ++i) {
      FUSED_RNN_UNROLL
      for (int j = 0; j < 4; ++j) sums[i][j] = NAN;
    }
  }

  // Start the sums of `count` matrices, from `first` on, with the biases, for some octets.
  template <int first, int count, int all>
  FUSED_RNN_DEVICE void start(float (&sums)[all][4]) const {
    FUSED_RNN_UNROLL
    for (int i = 0; i < all; ++i) {
      FUSED_RNN_UNROLL
      for (int j = 0; j < 4; ++j) {
        const int gate = 2 * (first + i % count) + j / 2;
        sums[i][j] = gate < G ? bias_[gate] : 0.0f;
      }
    }
  }

  // Add U times a state of K values.
  FUSED_RNN_DEVICE void multiply_u(float (&sums)[recurrent * octets][4], SharedAddress state) const {
    multiply<S, recurrent, octets, k_steps, K + 8, chains>(sums, state + row_, [&](int s, int m) {
      return s < held ? weights_[s * recurrent + m] : weights_in_shared_[((s - held) * recurrent + m) * 32];
    });
  }

  // Add W x̂, for `count` matrices from `first` on.
  template <int first, int count>
  FUSED_RNN_DEVICE void multiply_x(float (&sums)[count * octets][4]) const {
    multiply<S, count, octets, x_steps, Modulator::row, (count == 1 ? Shape::chains : 1)>(
        sums, modulator_.address() + row_x_, [&](int s, int m) { return weights_x_[s * matrices + first + m]; });
  }

  // Run the cell for all octets of the warp, once the ring's inputs have come.
  template <bool plain>
  FUSED_RNN_DEVICE void make(const ThisTile& tile, int t, bool last, const float (&sums)[matrices * own_octets][4]) {
    if constexpr (ring_slots<plain> > 0) ring_.wait();
    FUSED_RNN_UNROLL
    for (int n = 0; n < own_octets; ++n) make<plain>(tile, n, t, last, &sums[matrices * n]);
  }

  // Run the cell for one octet, each thread for a unit and two sequences. h is sent first, unless this is the last
  // step, because others wait for it; the other results follow.
  template <bool plain>
  FUSED_RNN_DEVICE void make(const ThisTile& tile, int n, int t, bool last, const float (*sums)[4]) {
    Pair<S> from_input[4] = {}, keep[2][1] = {};
    if constexpr (inputs > 0) ring_.load(from_input, n, 0);
    if constexpr (!plain) {
      if (a_.keep_h) ring_.load(keep[0], n, inputs);
      if constexpr (has_c)
        if (a_.keep_c) ring_.load(keep[1], n, inputs + 1);
    }
    float made[2][Cell::saved];
    FUSED_RNN_UNROLL
    for (int j = 0; j < 2; ++j) {
      T wx[G], uh[G], values[Cell::saved], h, c(has_c ? c_[n][j] : 0.0f);
      FUSED_RNN_UNROLL
      for (int g = 0; g < G; ++g) {
        wx[g] = half_of<S, T>(from_input[g], j);
        if (is_apart(g)) wx[g] = wx[g] + T(bias_x_);
        uh[g] = T(sums[g / 2][g % 2 * 2 + j]);
      }
      Cell::forward(wx, uh, T(h_[n][j]), c, h, values);
      FUSED_RNN_UNROLL
      for (int k = 0; k < Cell::saved; ++k) made[j][k] = values[k].value;
      const bool active = tile.active(n, j, t) && has_unit();  // units past H stay 0, or 0·∞ would go to others
      if constexpr (!plain) {
        if (a_.keep_h) h = Zoneout::forward(half_of<S, T>(keep[0][0], j), T(h_[n][j]), h);
        if constexpr (has_c)
          if (a_.keep_c) c = Zoneout::forward(half_of<S, T>(keep[1][0], j), T(c_[n][j]), c);
      }
      h_[n][j] = active ? h.value : h_[n][j];
      if constexpr (has_c) c_[n][j] = active ? c.value : c_[n][j];
    }
    send(state_, n, h_[n][0], h_[n][1], !last);
    if constexpr (has_c) put<1>(n, 1, {pair_of<S>(c_[n][0], c_[n][1])});
    Pair<S> saved[Cell::saved];
    FUSED_RNN_UNROLL
    for (int k = 0; k < Cell::saved; ++k) saved[k] = pair_of<S>(made[0][k], made[1][k]);
    put<Cell::saved>(n, 1 + has_c, saved);
  }

  // Defined in forward_results.h: results on their way to memory, in the order h, c, saved values.
  template <int count>
  FUSED_RNN_DEVICE void put(int n, int result, const Pair<S> (&pairs)[count]);
  FUSED_RNN_DEVICE void send(const State& state, int n, float first, float second, bool sent);
  template <bool plain>
  FUSED_RNN_DEVICE void store(const ThisTile& tile, int t, Outputs& outputs, Saved& saved) const;
  template <bool plain>
  FUSED_RNN_DEVICE void clear_rest(const ThisTile& tile) const;
  FUSED_RNN_DEVICE Outputs outputs_from(const ThisTile& tile, int time, int time_step) const;
  FUSED_RNN_DEVICE Saved saved_from(const ThisTile& tile, int time, int time_step) const;
  FUSED_RNN_DEVICE S* saved_of_lane() const;
  FUSED_RNN_DEVICE SharedAddress turned(int n, int result) const {
    return turned_ + (n * Shape::results + result) * matrix_bytes;
  }

  // Store the final states, and zero outputs at times that no sequence of the tile reaches.
  template <bool plain>
  FUSED_RNN_DEVICE void end(const ThisTile& tile) const {
    FUSED_RNN_UNROLL
    for (int n = 0; n < own_octets; ++n) {
      FUSED_RNN_UNROLL
      for (int j = 0; j < 2; ++j) {
        if (!tile.has(n, j) || !has_unit()) continue;
        a_.h_n[place(tile, n, j)] = narrow<S>(team_.alive() ? h_[n][j] : NAN);
        if constexpr (has_c) a_.c_n[place(tile, n, j)] = narrow<S>(team_.alive() ? c_[n][j] : NAN);
      }
    }
    clear_rest<plain>(tile);
  }

  const Q& q_;
  const ForwardArrays<S>& a_;
  const int lane_ = kept(static_cast<int>(threadIdx.x % 32)), warp_ = kept(static_cast<int>(threadIdx.x / 32)),
            group_ = warp_ % Size::groups, share_ = warp_ / Size::groups;
  const int unit_ = Team::rank() * Size::units + 8 * group_;
  Team& team_;
  State state_;
  Sums sums_;
  Weights* const weights_in_shared_;
  Ring ring_;
  const SharedAddress row_;     // the lane's row of a state, as an offset
  const SharedAddress turned_;  // the lane's row of the first matrices for results
  Weights weights_[held > 0 ? held * recurrent : 1];
  float bias_[G], bias_x_ = 0;  // b + b', which sums start with; if the last gate is_apart, its b' and b
  float h_[own_octets][2], c_[own_octets][2];
  // for cells of several phases
  StateS s_;
  SumsN sums_n_;
  Modulator modulator_;
  SharedAddress row_x_ = 0;  // the lane's row of x̂, as an offset
  Weights weights_x_[x_steps > 0 ? x_steps * matrices : 1];
  HalfWeights weights_n_[held_n > 0 ? held_n : 1];
  HalfWeights* weights_n_in_shared_ = nullptr;
  float z_[octets][2];
  // for results that are stored by values
  Pair<S> made_[by_values<S> ? own_octets : 1][Shape::results];
};

#else

// Warp kernels are empty for older architectures, whose pass of the compiler reads the host's code too.
template <typename Cell, typename S, typename Size>
struct Forward {
  static constexpr int shared_bytes = 0;
};

#endif

template <typename Cell, typename S, typename Size>
FUSED_RNN_KERNEL __launch_bounds__(ForwardShape<Cell, S, Size>::threads, 1)
    run_forward(FUSED_RNN_PARAMETER Operands<S, ForwardArrays> q) {
#if FUSED_RNN_SM90
  FUSED_RNN_DYNAMIC_SHARED(shared);
  // not a member of the block: an object that points into itself stays in memory
  typename Size::Exchange::template Team<Size::blocks> team(q);
  Forward<Cell, S, Size>(q, team, settled(shared)).run();
#endif
}

}  // namespace fused_rnn::cuda::cluster

#include "forward_reset.h"
#include "forward_results.h"

// What a block of the forward and of the backward kernel is made of: its share of the work, the meetings with the other
// blocks of its team, the states that they exchange, and inputs that are fetched a step ahead.
//
// Blocks come in teams. A team runs the whole sequence for one tile of sequences after another, and its blocks own
// slices of the hidden units (and, in multiplicative cells, of the features). Teams never wait for each other. Within a
// team states travel through global memory, and a counter that only grows separates the phases of a step. A team of
// one block keeps them in shared memory and waits for nobody.
#pragma once

#include "../cells/cells.h"
#include "product.h"

namespace fused_rnn::cuda {

// What the operands of both kernels begin with. Offsets are in bytes into shared memory.
template <typename S>
struct Sequence {
  int T, B, I, H;
  bool reverse;
  const int64_t* lengths;                                 // [B] steps of each sequence, or null
  const S *keep_h, *keep_c;                               // [T, B, H] zoneout, or null
  int sequences;                                          // of a tile, a multiple of 8
  int teams, parts;                                       // parts: blocks of a team
  int units, features;                                    // that a part owns, at most
  bool local;                                             // whether the state stays in shared memory
  int limits, states, staged, segments, sums, more_sums;  // offsets
  unsigned* arrivals;                                     // [teams] zeros
  unsigned* failed;                                       // zero; becomes 1 if a block did not come in time
  unsigned* timed_out;                                    // likewise, for the host to read
};

// The meeting of a team's blocks at the end of a phase.
class Team {
 public:
  template <typename S>
  FUSED_RNN_DEVICE explicit Team(const Sequence<S>& q)
      : arrivals_(q.arrivals + blockIdx.x / q.parts), failed_(q.failed), timed_out_(q.timed_out), parts_(q.parts) {}

  // Work that does not need the others may stand between the two.
  FUSED_RNN_DEVICE void arrive() {
    __syncthreads();
    if (parts_ > 1 && threadIdx.x == 0) add_release(arrivals_, 1);
  }
  // What any block of the team stored before it arrived is visible afterwards. False if one did not come in time.
  FUSED_RNN_DEVICE bool wait() {
    if (parts_ == 1) return true;
    bool arrived = true;
    target_ += parts_;
    if (threadIdx.x == 0) {
      arrived = wait_for(arrivals_, target_, failed_);
      if (!arrived) store_relaxed(timed_out_, 1);
    }
    return __syncthreads_and(arrived);
  }

  FUSED_RNN_DEVICE bool meet() {
    arrive();
    return wait();
  }

 private:
  unsigned* arrivals_;
  unsigned* failed_;
  unsigned* timed_out_;
  unsigned parts_, target_ = 0;
};

// The part of `total` things that belongs to a block of a team.
struct Share {
  int first, count;
};

FUSED_RNN_DEVICE Share share_of(int total, int each, int part) {
  const int64_t first = int64_t{part} * each, rest = total - first;
  return {static_cast<int>(first), static_cast<int>(rest < 0 ? 0 : rest < each ? rest : each)};
}

// What a result becomes when the computation cannot be finished.
template <typename C>
FUSED_RNN_DEVICE C not_a_number() {
  return C(__builtin_nanf(""));
}

// Values of a row in shared memory when rows begin at multiples of 16 bytes.
template <typename S>
HOST_DEVICE constexpr int staged_stride(int columns) {
  return static_cast<int>(round_up(columns, 16 / sizeof(S)));
}

// How the threads of a block spread over rows of so many columns. Divisions take longer than much of a step, so they
// are made once.
struct Spread {
  int row, column, row_step, column_step, columns;

  FUSED_RNN_DEVICE static Spread over(int columns) {
    const int divisor = columns > 0 ? columns : 1, thread = static_cast<int>(threadIdx.x);
    return {thread / divisor, thread % divisor, threads / divisor, threads % divisor, columns};
  }

  // f(i, row, column), where i counts through all rows. The same thread sees the same i each time.
  template <typename F>
  FUSED_RNN_DEVICE void for_each(int rows, const F& f) const {
    int r = row, c = column;
    FUSED_RNN_UNROLL_BY(1)
    for (int i = static_cast<int>(threadIdx.x); i < rows * columns; i += threads) {
      f(i, r, c);
      r += row_step;
      c += column_step;
      if (c >= columns) {
        c -= columns;
        ++r;
      }
    }
  }
};

// Start to copy rows of `columns` values to shared memory, in as large pieces as their addresses allow: `pieces` is the
// spread over those of 16 bytes.
template <typename S>
FUSED_RNN_DEVICE void copy_rows(S* to, const S* from, int64_t stride, int rows, int columns, const Spread& pieces) {
  const int to_stride = staged_stride<S>(columns);
  const auto copy = [&](const Spread& spread, int values, const auto& copy_piece) {
    spread.for_each(rows, [&](int, int r, int piece) {
      copy_piece(to + r * to_stride + piece * values, from + r * stride + piece * values);
    });
  };
  const uint64_t misalignment = reinterpret_cast<uint64_t>(from) | sizeof(S) * (stride | columns);
  if (misalignment % 16 == 0)
    return copy(pieces, 16 / sizeof(S), [](S* to, const S* from) { copy_async<16>(to, from); });
  if constexpr (sizeof(S) > 2)
    copy(Spread::over(columns), 1, [](S* to, const S* from) { copy_async<sizeof(S)>(to, from); });
  else if (misalignment % 4 == 0)
    copy(Spread::over(columns / 2), 2, [](S* to, const S* from) { copy_async<4>(to, from); });
  else
    copy(Spread::over(columns), 1, [](S* to, const S* from) { *to = *from; });
}

template <typename T>
FUSED_RNN_DEVICE T* at(unsigned char* shared, int offset) {
  return reinterpret_cast<T*>(shared + offset);
}

// A block at work on a tile. Operands has the members of Sequence and more.
template <typename Operands, typename S>
class Block {
 protected:
  using C = Computed<S>;

  FUSED_RNN_DEVICE Block(const Operands& q, unsigned char* shared)
      : q_(q),
        shared_(shared),
        team_(q),
        team_number_(static_cast<int>(blockIdx.x) / q.parts),
        part_(static_cast<int>(blockIdx.x) % q.parts),
        units_(share_of(q.H, q.units, part_)),
        features_(share_of(q.I, q.features, part_)),
        over_units_(Spread::over(units_.count)),
        over_features_(Spread::over(features_.count)) {}

  // f(tile of sequences) for all that are this team's.
  template <typename F>
  FUSED_RNN_DEVICE void for_tiles(const F& f) {
    for (int64_t first = int64_t{team_number_} * q_.sequences; first < q_.B;
         first += int64_t{q_.teams} * q_.sequences) {
      first_row_ = static_cast<int>(first);
      rows_ = q_.B - first_row_ < q_.sequences ? q_.B - first_row_ : q_.sequences;
      __syncthreads();
      for (int r = threadIdx.x; r < rows_; r += threads) at<int>(shared_, q_.limits)[r] = steps_of(r);
      __syncthreads();
      longest_ = 0;
      for (int r = 0; r < rows_; ++r) longest_ = limit(r) > longest_ ? limit(r) : longest_;
      f();
    }
  }

  FUSED_RNN_DEVICE int time(int step) const { return q_.reverse ? q_.T - 1 - step : step; }
  FUSED_RNN_DEVICE int limit(int r) const { return at<int>(shared_, q_.limits)[r]; }
  FUSED_RNN_DEVICE bool active(int r, int t) const { return t < limit(r); }
  FUSED_RNN_DEVICE bool any_active(int t) const { return t < longest_; }

  // The row of a sequence of the tile in a [B, ...] array, and in a [T, B, ...] array.
  FUSED_RNN_DEVICE int64_t row(int r) const { return first_row_ + r; }
  FUSED_RNN_DEVICE int64_t row(int r, int t) const { return int64_t{t} * q_.B + first_row_ + r; }
  // Where a unit of the block stands in a [B, H] array.
  FUSED_RNN_DEVICE int64_t place(int r, int u) const { return row(r) * q_.H + units_.first + u; }

  // f(i, r, u) for the units of the block in all sequences of the tile, and likewise for its features. The same thread
  // sees the same i in every step, and so needs no barrier for what it keeps there.
  template <typename F>
  FUSED_RNN_DEVICE void for_units(const F& f) const {
    over_units_.for_each(rows_, f);
  }
  template <typename F>
  FUSED_RNN_DEVICE void for_features(const F& f) const {
    over_features_.for_each(rows_, f);
  }

  // States --------------------------------------------------------------------------------------------------------

  // Where the block reads and writes a state; `turn` is which of two copies that take turns.
  FUSED_RNN_DEVICE S* state(const State<S>& s, int turn) const {
    if (q_.local) return at<S>(shared_, s.local);
    return s.exchanged + (int64_t{turn} * q_.teams + team_number_) * s.segments * s.size;
  }
  FUSED_RNN_DEVICE void publish(const State<S>& s, int turn, int r, int k, C value) const {
    const int segment = s.segments > 1 ? k / s.span : 0;
    S* const p = state(s, turn) + int64_t{segment} * s.size + state_place<S>(r, k - segment * s.span, s.span);
    if (q_.local)
      *p = narrow<S>(value);
    else
      store_l2(p, narrow<S>(value));
  }
  // Zeros in the places of a local state that no unit fills, once.
  FUSED_RNN_DEVICE void clear(const State<S>& s) const {
    if (q_.local)
      for (int i = threadIdx.x; i < s.size; i += threads) at<S>(shared_, s.local)[i] = S{};
  }

  // Start to copy a segment of an exchanged state to shared memory.
  FUSED_RNN_DEVICE void fetch(const State<S>& s, int turn, int segment) const {
    constexpr int each = 16 / sizeof(S);
    const S* const from = state(s, turn) + int64_t{segment} * s.size;
    S* const to = fetched(s, segment);
    for (int i = threadIdx.x * each; i < s.size; i += threads * each) copy_async<16>(to + i, from + i);
  }
  // Two segments of a state take turns in shared memory.
  FUSED_RNN_DEVICE S* fetched(const State<S>& s, int segment) const {
    return at<S>(shared_, q_.segments) + segment % 2 * s.size;
  }

  // All segments of a product. Those who read the state must have met before; the sums are there afterwards.
  // `meanwhile` starts copies that nobody reads before the next step.
  template <typename P, typename F>
  FUSED_RNN_DEVICE void multiply(const P& product, const State<S>& s, int turn, const Sums<C>& sums, int first_part,
                                 const F& meanwhile) const {
    if (!q_.local) fetch(s, turn, 0);
    copy_async_commit();
    meanwhile();
    copy_async_commit();
    copy_async_wait<1>();
    for (int segment = 0; segment < s.segments; ++segment) {
      if (!q_.local) __syncthreads();
      if (segment + 1 < s.segments) fetch(s, turn, segment + 1);
      copy_async_commit();
      product.multiply(q_.local ? state(s, turn) : fetched(s, segment), s.span, segment, sums, first_part);
      if (segment + 1 < s.segments) copy_async_wait<0>();
    }
    __syncthreads();
  }
  template <typename P>
  FUSED_RNN_DEVICE void multiply(const P& product, const State<S>& s, int turn, const Sums<C>& sums,
                                 int first_part = 0) const {
    multiply(product, s, turn, sums, first_part, [] {});
  }

  const Operands& q_;
  unsigned char* const shared_;
  Team team_;
  const int team_number_, part_;
  const Share units_, features_;
  const Spread over_units_, over_features_;
  int first_row_ = 0, rows_ = 0, longest_ = 0;

 private:
  FUSED_RNN_DEVICE int steps_of(int r) const {
    if (!q_.lengths) return q_.T;
    const int64_t steps = q_.lengths[first_row_ + r];
    return static_cast<int>(steps < 0 ? 0 : steps < q_.T ? steps : q_.T);
  }
};

}  // namespace fused_rnn::cuda

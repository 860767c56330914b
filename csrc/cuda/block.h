// The common base of the block kernels, forward and backward: a block's share of the work, its inputs, which it fetches
// a step ahead, and the products of its weights with the states that the blocks of its team exchange.
//
// Each team runs the whole sequence for one tile of sequences after another, and teams never wait for each other. The
// parts of a team own slices of the hidden units and, in multiplicative cells, of the features. How they hand each
// other states is up to the exchange, a parameter of the kernel: see exchange/exchange.h.
#pragma once

#include "api.h"
#include "exchange/exchange.h"
#include "prefetch.h"
#include "product.h"

namespace fused_rnn::cuda {

// The parameter of a kernel. Arrays is ForwardArrays or BackwardArrays.
template <typename S, typename Exchange, template <typename> class Arrays>
struct Operands {
  int T, B, I, H;
  bool reverse;
  const int64_t* lengths;  // [B] steps of each sequence, or null
  Arrays<S> arrays;
  Beginnings<S> beginnings;
  Computed<S> gradient_clip;       // backward: the largest magnitude of a gradient of a pre-activation
  const unsigned char* workspace;  // packed weights, at the layout's offsets
  Layout layout;
  typename Exchange::template Operands<S> exchange;
};

// The units or features that one part of a team owns.
struct Slice {
  int first, count;
};

FUSED_RNN_DEVICE Slice slice_of(int total, int each, int part) {
  const int64_t first = int64_t{part} * each, rest = total - first;
  return {static_cast<int>(first), static_cast<int>(rest < 0 ? 0 : rest < each ? rest : each)};
}

// The value of results that could not be computed because of a timeout.
template <typename C>
FUSED_RNN_DEVICE C not_a_number() {
  return C(__builtin_nanf(""));
}

// The mapping of a block's threads to the elements of rows with `columns` columns. It is made once, because its integer
// divisions would take a large part of a step.
struct Spread {
  int row, column, row_step, column_step, columns;

  FUSED_RNN_DEVICE static Spread over(int columns) {
    const int divisor = columns > 0 ? columns : 1, thread = static_cast<int>(threadIdx.x);
    return {thread / divisor, thread % divisor, threads / divisor, threads % divisor, columns};
  }

  // Call f(i, row, column) for this thread's elements, where i counts through all rows. They are the same ones every
  // time.
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

// Start to copy rows of `columns` values to shared memory, in pieces as large as their alignment allows. `pieces` maps
// threads to pieces of 16 bytes.
template <typename S>
FUSED_RNN_DEVICE void copy_rows(S* to, const S* from, int64_t stride, int rows, int columns, const Spread& pieces) {
  const int to_stride = staged_stride(sizeof(S), columns);
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

// A block, which works on one tile at a time.
template <typename S, typename Exchange, template <typename> class Arrays>
class Block {
 protected:
  using C = Computed<S>;
  using Q = Operands<S, Exchange, Arrays>;

  FUSED_RNN_DEVICE Block(const Q& q, unsigned char* shared)
      : q_(q),
        arrays_(q.arrays),
        layout_(q.layout),
        shared_(shared),
        sequences_(q.layout.division.sequences),
        team_(static_cast<int>(blockIdx.x) / q.layout.division.parts),
        part_(static_cast<int>(blockIdx.x) % q.layout.division.parts),
        units_(slice_of(q.H, q.layout.units, part_)),
        features_(slice_of(q.I, q.layout.features, part_)),
        over_units_(Spread::over(units_.count)),
        over_features_(Spread::over(features_.count)),
        exchange_(q.exchange, q.layout, shared, team_) {
    exchange_.clear();
  }

  // Call f() for each tile of this team, with rows, limits and times set to those of the tile.
  template <typename F>
  FUSED_RNN_DEVICE void for_tiles(const F& f) {
    for (int64_t first = int64_t{team_} * sequences_; first < q_.B; first += int64_t{layout_.teams} * sequences_) {
      first_row_ = static_cast<int>(first);
      rows_ = q_.B - first_row_ < sequences_ ? q_.B - first_row_ : sequences_;
      __syncthreads();
      for (int r = threadIdx.x; r < rows_; r += threads) at<int>(shared_, layout_.limits)[r] = steps_of(r);
      __syncthreads();
      longest_ = 0;
      for (int r = 0; r < rows_; ++r) longest_ = limit(r) > longest_ ? limit(r) : longest_;
      f();
    }
  }

  FUSED_RNN_DEVICE int time(int step) const { return q_.reverse ? q_.T - 1 - step : step; }
  FUSED_RNN_DEVICE int limit(int r) const { return at<int>(shared_, layout_.limits)[r]; }
  FUSED_RNN_DEVICE bool active(int r, int t) const { return t < limit(r); }
  FUSED_RNN_DEVICE bool any_active(int t) const { return t < longest_; }

  // Whether sequence r of the tile begins an episode with the step at time t.
  FUSED_RNN_DEVICE bool begins(int r, int t) const {
    return q_.beginnings.resets && active(r, t) && q_.beginnings.resets[row(r, t)];
  }
  // The state of unit u that an episode begins with.
  FUSED_RNN_DEVICE C beginning(const S* state, int r, int u) const {
    return state ? C(widen(state[place(r, u)])) : C(0);
  }
  // Fetch the flags of the whole tile ahead of time: the step would wait for L2 otherwise.
  FUSED_RNN_DEVICE void prefetch_beginnings(int t) const {
    const int r = static_cast<int>(threadIdx.x);
    if (q_.beginnings.resets && r < rows_ && t >= 0 && t < q_.T) prefetch(q_.beginnings.resets + row(r, t));
  }

  // The row of sequence r of the tile in a [B, ...] array, and in a [T, B, ...] array.
  FUSED_RNN_DEVICE int64_t row(int r) const { return first_row_ + r; }
  FUSED_RNN_DEVICE int64_t row(int r, int t) const { return int64_t{t} * q_.B + first_row_ + r; }
  // The index of a unit of the block in a [B, H] array.
  FUSED_RNN_DEVICE int64_t place(int r, int u) const { return row(r) * q_.H + units_.first + u; }

  // Call f(i, r, u) for unit u of the block and sequence r of the tile, for all of this thread's; likewise for
  // features. A thread gets the same i in every step, so values that it keeps at i need no barrier.
  template <typename F>
  FUSED_RNN_DEVICE void for_units(const F& f) const {
    over_units_.for_each(rows_, f);
  }
  template <typename F>
  FUSED_RNN_DEVICE void for_features(const F& f) const {
    over_features_.for_each(rows_, f);
  }

  // Products --------------------------------------------------------------------------------------------------------

  template <typename Name>
  FUSED_RNN_DEVICE const ProductLayout& layout_of(Name product) const {
    return layout_.products[static_cast<int>(product)];
  }
  // One of the two places in shared memory where products leave their sums.
  FUSED_RNN_DEVICE Sums<C> sums_at(int place, int outputs) const {
    return {at<C>(shared_, layout_.sums[place]), sums_stride(outputs), sequences_};
  }

  // Multiply with a state of the exchange; all threads may read the sums afterwards. `meanwhile` starts copies that are
  // not read before the next step.
  template <typename P, typename Name, typename F>
  FUSED_RNN_DEVICE void multiply(const P& product, Name state, const Sums<C>& sums, int first_split,
                                 const F& meanwhile) const {
    const StateLayout& s = layout_.states[static_cast<int>(state)];
    exchange_.begin(state);
    copy_async_commit();
    meanwhile();
    copy_async_commit();
    copy_async_wait<1>();
    for (int segment = 0; segment < s.segments; ++segment)
      product.multiply(exchange_.take(state, segment), s.span, segment, sums, first_split);
    __syncthreads();
  }
  template <typename P, typename Name>
  FUSED_RNN_DEVICE void multiply(const P& product, Name state, const Sums<C>& sums, int first_split = 0) const {
    multiply(product, state, sums, first_split, [] {});
  }

  // End a phase: what the team's blocks put in it can be read afterwards. False after a timeout.
  template <typename... Names>
  FUSED_RNN_DEVICE bool pass(Names... states) {
    exchange_.close();
    return exchange_.wait(states...);
  }

  const Q& q_;
  const Arrays<S>& arrays_;
  const Layout& layout_;
  unsigned char* const shared_;
  const int sequences_, team_, part_;
  const Slice units_, features_;
  const Spread over_units_, over_features_;
  typename Exchange::template Device<S> exchange_;
  int first_row_ = 0, rows_ = 0, longest_ = 0;

 private:
  FUSED_RNN_DEVICE int steps_of(int r) const {
    if (!q_.lengths) return q_.T;
    const int64_t steps = q_.lengths[first_row_ + r];
    return static_cast<int>(steps < 0 ? 0 : steps < q_.T ? steps : q_.T);
  }
};

}  // namespace fused_rnn::cuda

// What the kernels of warps have in common, forward and backward: a team of blocks runs a tile of sequences at a
// time, and what a warp reads of a step or writes of it are rows, the values of 8 units of a sequence.
//
// A row that begins at a multiple of 16 bytes travels as one piece; where rows do not, because of H or of where a
// tensor begins, they travel value by value, which is slow and as right. Rows of sequences that the tile lacks and of
// units past H are never fetched nor stored: they compute with zeros.
#pragma once

#include "../api.h"
#include "../exchange/cluster.h"
#include "../exchange/messages.h"
#include "../exchange/split.h"
#include "../shape.h"
#include "real.h"

namespace fused_rnn::cuda::cluster {

// The parameter of a kernel. Arrays is ForwardArrays or BackwardArrays.
template <typename S, template <typename> class Arrays>
struct Operands {
  int T, B, H;
  bool reverse;
  bool whole_rows;         // every 8th unit and feature of every array stands at a multiple of 16 bytes
  const int64_t* lengths;  // [B] steps of each sequence, or null
  Arrays<S> arrays;
  float gradient_clip;  // backward: the largest magnitude of a gradient of a pre-activation
  unsigned* timed_out;  // becomes 1 if a block timed out
  int I;                // features of x̂, of cells that have it
  Messages messages;    // of an exchange by these
};

constexpr int row_bytes = 16, matrix_bytes = 8 * row_bytes;  // 8 rows: a matrix of 8 units and 8 sequences

template <typename S>
using Row = Vector<S, 8>;

// One of the two neighbours in a register.
template <typename S, typename T>
FUSED_RNN_DEVICE T half_of(uint32_t pair, int j) {
  return T(j ? high_of<S>(pair) : low_of<S>(pair));
}

#if FUSED_RNN_SM90

// The steps of a tile, and the sequences that a lane has to do with: as a thread of matrix products it has sequences
// 2(lane % 4) and the next one of each octet, and unit lane / 4 of eight; of rows it has that of sequence lane % 8.
template <typename S, template <typename> class Arrays, int octets>
class Tile {
  static_assert(octets <= 4, "a lane asks for the steps of one sequence");

 public:
  using Q = Operands<S, Arrays>;

  FUSED_RNN_DEVICE Tile() {}

  // The `index`th tile. By whole warps, as the next.
  FUSED_RNN_DEVICE Tile(const Q& q, int index) : first_(index * 8 * octets) {
    longest_ = take_steps(q);
    FUSED_RNN_UNROLL
    for (int distance = 16; distance > 0; distance /= 2) {
      const int other = __shfl_xor_sync(~0u, longest_, distance);
      longest_ = other > longest_ ? other : longest_;
    }
  }
  // The octets from sequence `first` on of a larger one.
  FUSED_RNN_DEVICE Tile(const Q& q, int first, int longest) : first_(first), longest_(longest) { take_steps(q); }

  FUSED_RNN_DEVICE int first() const { return first_; }  // sequence
  // Steps that some sequence of the whole tile has; all at times before it.
  FUSED_RNN_DEVICE int longest() const { return longest_; }
  // The time of a step; steps count in the order of computation.
  FUSED_RNN_DEVICE int time(const Q& q, int step) const { return q.reverse ? longest_ - 1 - step : step; }

  FUSED_RNN_DEVICE bool has(int n, int j) const { return limit_[n][j] >= 0; }
  FUSED_RNN_DEVICE bool active(int n, int j, int t) const { return t < limit_[n][j]; }
  FUSED_RNN_DEVICE bool has_row(int n) const { return row_limit_[n] >= 0; }
  FUSED_RNN_DEVICE bool active_row(int n, int t) const { return t < row_limit_[n]; }

 private:
  // Returns the steps of one sequence; -1 if there is none.
  FUSED_RNN_DEVICE int take_steps(const Q& q) {
    const int lane = threadIdx.x % 32, b = first_ + lane;
    int steps = -1;
    if (lane < 8 * octets && b < q.B) {
      const int64_t length = q.lengths ? q.lengths[b] : q.T;
      steps = static_cast<int>(length < 0 ? 0 : length < q.T ? length : q.T);
    }
    FUSED_RNN_UNROLL
    for (int n = 0; n < octets; ++n) {
      row_limit_[n] = __shfl_sync(~0u, steps, 8 * n + lane % 8);
      FUSED_RNN_UNROLL
      for (int j = 0; j < 2; ++j) limit_[n][j] = __shfl_sync(~0u, steps, 8 * n + 2 * (lane % 4) + j);
    }
    return steps;
  }

  int first_ = 0, longest_ = 0;
  int limit_[octets][2], row_limit_[octets];
};

// Rows that a warp brings to shared memory some steps before it reads them, `stages` at a time: of each step `slots`
// matrices for each octet. Every slot is an array [T, B, row], of which the warp wants 8 columns from `values` on; or
// null, and then it reads as zero. Steps go upwards from 0 or downwards to it.
template <typename S, int slots, int octets, bool upwards, int stages = 6>
class RowRing {
  static constexpr int stage_bytes = octets * slots * matrix_bytes;
  // Of a warp whose lanes copy a row each.
  HOST_DEVICE static constexpr int rounds_of(int some) { return (some * 8 + 31) / 32; }
  static constexpr int rounds = rounds_of(slots);

 public:
  static constexpr int shared_bytes = stages * stage_bytes;  // of a warp

  struct Source {
    const S* values;
    int row;
  };

  FUSED_RNN_DEVICE RowRing() {}
  FUSED_RNN_DEVICE explicit RowRing(unsigned char* shared)
      : shared_(shared),
        lane_(kept(static_cast<int>(threadIdx.x % 32))),
        at_(kept(shared_address(shared) + threadIdx.x % 32 * row_bytes)) {}

  // Once, before any tile.
  FUSED_RNN_DEVICE void clear() const {
    for (int i = threadIdx.x % 32; i < shared_bytes / row_bytes; i += 32) at<Row<S>>(shared_, i * row_bytes)[0] = {};
    __syncwarp();
  }

  // Start with a tile: fetch its first steps. `columns`: how many of the 8 there are, 0 or fewer if none.
  template <bool whole, int used, typename Tile, typename F>
  FUSED_RNN_DEVICE void begin(const typename Tile::Q& q, const Tile& tile, int columns, const F& source) {
    const int lane = threadIdx.x % 32, first_time = tile.time(q, upwards ? 0 : tile.longest() - 1);
    left_ = tile.longest();
    columns_ = columns < 8 ? columns : 8;
    at_ -= stage_;
    stage_ = 0;
    has_octets_ = 0;
    FUSED_RNN_UNROLL
    for (int n = 0; n < octets; ++n) has_octets_ += tile.has_row(n);
    FUSED_RNN_UNROLL
    for (int i = 0; i < rounds; ++i) {
      wanted_[i] = false;
      FUSED_RNN_UNROLL
      for (int slot = 4 * i; slot < 4 * i + 4 && slot < slots; ++slot) {
        if (lane / 8 != slot % 4) continue;
        const Source s = source(slot);
        wanted_[i] = s.values && columns > 0 && has_octets_ > 0;
        row_[i] = s.row;
        from_[i] =
            (s.values ? s.values : source(0).values) + (int64_t{first_time} * q.B + tile.first() + lane % 8) * s.row;
        step_[i] = kept(int64_t{upwards == q.reverse ? -q.B : q.B} * s.row * int64_t{sizeof(S)});
      }
    }
    for (int i = 0; i < stages; ++i) {
      fetch<whole, used>();
      advance();
    }
  }

  // Start to bring the rows of one step more, if there is one, to the place of those that were read last: `whole` ones,
  // or value by value, of the first `used` slots.
  template <bool whole, int used = slots>
  FUSED_RNN_DEVICE void fetch() {
    FUSED_RNN_UNROLL
    for (int i = 0; i < rounds_of(used); ++i) {
      FUSED_RNN_UNROLL
      for (int n = 0; n < octets; ++n)
        if (wanted_[i] && left_ > 0 && (n == 0 || n < has_octets_))
          bring<whole>(at_ + (n * slots * 8 + 32 * i) * row_bytes, from_[i] + int64_t{8 * n} * row_[i]);
      from_[i] = reinterpret_cast<const S*>(reinterpret_cast<const char*>(from_[i]) + step_[i]);
    }
    copy_async_commit();
    --left_;
  }

  // Wait for the rows of the next step, which are then what load reads; downwards for the step after as well.
  FUSED_RNN_DEVICE void wait() {
    copy_async_wait<upwards ? stages - 1 : stages - 2>();
    __syncwarp();
  }
  // Four matrices from `slot` on: of unit lane / 4 the values of sequences 2(lane % 4) and the next one. Where there
  // are fewer slots, what else is loaded says nothing.
  FUSED_RNN_DEVICE void load(uint32_t (&pairs)[4], int n, int slot) const {
    const int missing = 8 * slot + lane_ - (8 * slots - 1);
    const SharedAddress from = at_ + (n * slots + slot) * matrix_bytes;
    load_matrices_transposed(pairs, slot + 4 <= slots || missing <= 0 ? from : from - missing * row_bytes);
  }
  FUSED_RNN_DEVICE void load(uint32_t (&pair)[1], int n, int slot) const {
    load_matrices_transposed(pair, at_ + (n * slots + slot) * matrix_bytes);
  }
  // Of the step that follows in the order of these steps, downwards the step before in the order of computation; if
  // there is none, it says nothing.
  FUSED_RNN_DEVICE void load_following(uint32_t (&pair)[1], int n, int slot) const {
    load_matrices_transposed(pair, at_ + stride() + (n * slots + slot) * matrix_bytes);
  }
  // The rows of the step have been read, and those of one step more were fetched.
  FUSED_RNN_DEVICE void advance() {
    const int step = stride();
    stage_ += step;
    at_ += step;
  }

 private:
  template <bool whole>
  FUSED_RNN_DEVICE void bring(SharedAddress to, const S* from) const {
    if constexpr (whole) {
      copy_async<row_bytes>(to, from);
    } else {
      S* const row = at<S>(shared_, static_cast<int>(to - shared_address(shared_)));
      FUSED_RNN_UNROLL_BY(1)
      for (int u = 0; u < columns_; ++u) row[u] = from[u];
    }
  }

  // From this stage to the one that follows.
  FUSED_RNN_DEVICE int stride() const {
    return stage_ == shared_bytes - stage_bytes ? stage_bytes - shared_bytes : stage_bytes;
  }

  unsigned char* shared_;
  int lane_ = 0;
  int stage_ = 0;     // bytes
  SharedAddress at_;  // there, the lane's row of the first matrices
  int left_ = 0, columns_ = 0, has_octets_ = 0;
  const S* from_[rounds];
  int row_[rounds];
  int64_t step_[rounds];  // bytes
  bool wanted_[rounds];
};

// Rows that a warp stores time after time, one for each lane and octet, to arrays [T, B, row]: the lane's is `values`,
// at its column, or null.
template <typename S, int octets>
class RowSink {
 public:
  FUSED_RNN_DEVICE RowSink() {}

  // From `time` on, in steps of `time_step`, 1 or -1. `any` is an array that there is.
  template <typename Tile>
  FUSED_RNN_DEVICE RowSink(const typename Tile::Q& q, const Tile& tile, S* values, S* any, int row, int columns,
                           int time, int time_step)
      : to_((values ? values : any) + (int64_t{time} * q.B + tile.first() + threadIdx.x % 8) * row),
        step_(kept(int64_t{time_step} * q.B * row * int64_t{sizeof(S)})),
        row_(row),
        columns_(columns < 8 ? columns : 8) {
    FUSED_RNN_UNROLL
    for (int n = 0; n < octets; ++n) wanted_[n] = values && columns > 0 && tile.has_row(n);
  }

  // The row at `from` in shared memory, or zeros: as a `whole`, or value by value.
  template <bool whole>
  FUSED_RNN_DEVICE void store(int n, SharedAddress from, bool zeros) const {
    if (!wanted_[n]) return;
    S* const to = to_ + int64_t{8 * n} * row_;
    auto row = load_shared<Vector<uint32_t, 4>>(from);
    if constexpr (whole) {
      FUSED_RNN_UNROLL
      for (int i = 0; i < 4; ++i) row.values[i] = zeros ? 0u : row.values[i];
      *reinterpret_cast<Vector<uint32_t, 4>*>(to) = row;
    } else {
      FUSED_RNN_UNROLL_BY(1)
      for (int u = 0; u < columns_; ++u) {
        to[u] = zeros ? S{} : S{static_cast<uint16_t>(row.values[0])};
        FUSED_RNN_UNROLL
        for (int i = 0; i < 4; ++i) row.values[i] = row.values[i] >> 16 | (i < 3 ? row.values[i + 1] << 16 : 0u);
      }
    }
  }
  // Likewise where a row need not be stored, and is left out.
  template <bool whole>
  FUSED_RNN_DEVICE void store_if(bool stored, int n, SharedAddress from) {
    const bool wanted = wanted_[n];
    wanted_[n] = wanted && stored;
    store<whole>(n, from, false);
    wanted_[n] = wanted;
  }

  FUSED_RNN_DEVICE void advance() { to_ = reinterpret_cast<S*>(reinterpret_cast<char*>(to_) + step_); }

 private:
  S* to_;
  int64_t step_;  // bytes
  int row_, columns_;
  bool wanted_[octets];
};

// Two neighbours of a row of weights of which `left` are left, with zeros past its end. `pairs` says that they stand at
// a multiple of 4 bytes and that their number is even.
template <bool pairs, typename S>
FUSED_RNN_DEVICE uint32_t weight_pair(const S* from, int left) {
  uint32_t pair = 0;
  if constexpr (pairs) {
    if (left > 0) pair = *reinterpret_cast<const uint32_t*>(from);
  } else {
    if (left > 0) pair = from[0].bits;
    if (left > 1) pair |= uint32_t{from[1].bits} << 16;
  }
  return pair;
}

#endif

}  // namespace fused_rnn::cuda::cluster

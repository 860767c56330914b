// What the forward and the backward warp kernels have in common: a team of blocks runs a tile of sequences at a time,
// and a warp reads and writes rows, the values of 8 units for one sequence.
//
// A row that is aligned to 16 bytes travels as one piece. Where rows are not aligned, because of H or of a tensor's
// address, they travel value by value, which is slow and just as right. Rows of sequences that the tile lacks, and
// units past H, are never fetched nor stored: they compute with zeros.
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
  bool whole_rows;         // every 8th unit and feature of every array is aligned to 16 bytes
  const int64_t* lengths;  // [B] steps of each sequence, or null
  Arrays<S> arrays;
  float gradient_clip;  // backward: the largest magnitude of a gradient of a pre-activation
  unsigned* timed_out;  // set to 1 when a block times out
  int I;                // features of x̂, in cells that have it
  Messages messages;    // for the exchange by messages
};

constexpr int row_bytes = 16, matrix_bytes = 8 * row_bytes;  // 8 rows: a matrix of 8 units and 8 sequences

template <typename S>
using Row = Vector<S, 8>;

// One of the two neighbours that are packed in a register.
template <typename S, typename T>
FUSED_RNN_DEVICE T half_of(uint32_t pair, int j) {
  return T(j ? high_of<S>(pair) : low_of<S>(pair));
}

#if FUSED_RNN_SM90

// The steps of a tile, and a lane's sequences. In matrix products a lane has sequences 2(lane % 4) and the next one of
// each octet, and unit lane / 4 of eight; in rows it has the row of sequence lane % 8.
template <typename S, template <typename> class Arrays, int octets>
class Tile {
  static_assert(octets <= 4, "a lane asks for the steps of one sequence");

 public:
  using Q = Operands<S, Arrays>;

  FUSED_RNN_DEVICE Tile() {}

  // The `index`th tile. By whole warps, like the next one.
  FUSED_RNN_DEVICE Tile(const Q& q, int index) : first_(index * 8 * octets) {
    longest_ = take_steps(q);
    FUSED_RNN_UNROLL
    for (int distance = 16; distance > 0; distance /= 2) {
      const int other = __shfl_xor_sync(~0u, longest_, distance);
      longest_ = other > longest_ ? other : longest_;
    }
  }
  // The octets of a larger tile from sequence `first` on.
  FUSED_RNN_DEVICE Tile(const Q& q, int first, int longest) : first_(first), longest_(longest) { take_steps(q); }

  FUSED_RNN_DEVICE int first() const { return first_; }  // its first sequence
  // The steps of the longest sequence of the whole tile; from this time on none has a step.
  FUSED_RNN_DEVICE int longest() const { return longest_; }
  // The time of a step; steps count in the order of computation.
  FUSED_RNN_DEVICE int time(const Q& q, int step) const { return q.reverse ? longest_ - 1 - step : step; }

  FUSED_RNN_DEVICE bool has(int n, int j) const { return limit_[n][j] >= 0; }
  FUSED_RNN_DEVICE bool active(int n, int j, int t) const { return t < limit_[n][j]; }
  FUSED_RNN_DEVICE bool has_row(int n) const { return row_limit_[n] >= 0; }
  FUSED_RNN_DEVICE bool active_row(int n, int t) const { return t < row_limit_[n]; }

 private:
  // Returns the steps of one of the sequences; -1 if there is none.
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

// A ring buffer of rows that a warp brings to shared memory up to `stages` steps before it reads them: for each step
// and octet, `slots` matrices. A slot is an array [T, B, row] of which the warp reads 8 columns, from `values` on; a
// null slot reads as zero. Steps go upwards from 0 or downwards to it.
template <typename S, int slots, int octets, bool upwards, int stages = 6>
class RowRing {
  static constexpr int stage_bytes = octets * slots * matrix_bytes;
  // Rounds in which a warp's lanes, with a row each, copy `some` slots.
  HOST_DEVICE static constexpr int rounds_of(int some) { return (some * 8 + 31) / 32; }
  static constexpr int rounds = rounds_of(slots);

 public:
  static constexpr int shared_bytes = stages * stage_bytes;  // per warp

  struct Source {
    const S* values;
    int row;
  };

  FUSED_RNN_DEVICE RowRing() {}
  FUSED_RNN_DEVICE explicit RowRing(unsigned char* shared)
      : shared_(shared),
        lane_(kept(static_cast<int>(threadIdx.x % 32))),
        at_(kept(shared_address(shared) + threadIdx.x % 32 * row_bytes)) {}

  // Zero the ring once, before any tile.
  FUSED_RNN_DEVICE void clear() const {
    for (int i = threadIdx.x % 32; i < shared_bytes / row_bytes; i += 32) at<Row<S>>(shared_, i * row_bytes)[0] = {};
    __syncwarp();
  }

  // Start with a tile: fetch its first steps. `columns` says how many of the 8 columns exist; 0 or fewer: none.
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

  // Start to fetch the rows of one more step, if there is one, to the place of those read last: `whole` rows, or value
  // by value; of the first `used` slots.
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

  // Wait for the rows of the next step, which load reads then; downwards, also for those of the step after it.
  FUSED_RNN_DEVICE void wait() {
    copy_async_wait<upwards ? stages - 1 : stages - 2>();
    __syncwarp();
  }
  // Load four matrices from `slot` on: for unit lane / 4, the values of sequences 2(lane % 4) and the next one. If
  // there are fewer slots, the rest has no meaning.
  FUSED_RNN_DEVICE void load(uint32_t (&pairs)[4], int n, int slot) const {
    const int missing = 8 * slot + lane_ - (8 * slots - 1);
    const SharedAddress from = at_ + (n * slots + slot) * matrix_bytes;
    load_matrices_transposed(pairs, slot + 4 <= slots || missing <= 0 ? from : from - missing * row_bytes);
  }
  FUSED_RNN_DEVICE void load(uint32_t (&pair)[1], int n, int slot) const {
    load_matrices_transposed(pair, at_ + (n * slots + slot) * matrix_bytes);
  }
  // Load from the step that follows in the ring; downwards, that is the step before in the order of computation. If
  // there is none, the value has no meaning.
  FUSED_RNN_DEVICE void load_following(uint32_t (&pair)[1], int n, int slot) const {
    load_matrices_transposed(pair, at_ + stride() + (n * slots + slot) * matrix_bytes);
  }
  // Go on to the next step, when the rows of this one have been read and those of one more step are being fetched.
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

  // The distance from this stage to the next one.
  FUSED_RNN_DEVICE int stride() const {
    return stage_ == shared_bytes - stage_bytes ? stage_bytes - shared_bytes : stage_bytes;
  }

  unsigned char* shared_;
  int lane_ = 0;
  int stage_ = 0;     // bytes
  SharedAddress at_;  // the lane's row of the first matrices there
  int left_ = 0, columns_ = 0, has_octets_ = 0;
  const S* from_[rounds];
  int row_[rounds];
  int64_t step_[rounds];  // bytes
  bool wanted_[rounds];
};

// Rows that a warp stores step after step, one for each lane and octet, to arrays [T, B, row]. `values` is the lane's
// array, at the warp's first column, or null.
template <typename S, int octets>
class RowSink {
 public:
  FUSED_RNN_DEVICE RowSink() {}

  // From `time` on, in steps of `time_step`, 1 or -1. `any` is an array that exists, in place of one that is null.
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

  // Store the row at `from` in shared memory, or zeros: as a `whole`, or value by value.
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
  // Likewise, but only if `stored`.
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

// Two neighbours in a row of weights with `left` values left, and zeros past its end. `pairs`: they are aligned to 4
// bytes, and their number is even.
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

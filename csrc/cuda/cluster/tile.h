// What the kernels of warps have in common, forward and backward: a cluster of blocks runs a tile of sequences at a
// time, and what a warp reads of a step or writes of it are rows, the values of 8 units of a sequence.
//
// A row that begins at a multiple of 16 bytes travels as one piece; where rows do not, because of H or of where a
// tensor begins, they travel value by value, which is slow and as right. Rows of sequences that the tile lacks and of
// units past H are never fetched nor stored: they compute with zeros.
#pragma once

#include "../api.h"
#include "../exchange/cluster.h"
#include "../exchange/split.h"
#include "../shape.h"
#include "approximate.h"

namespace fused_rnn::cuda::cluster {

// The parameter of a kernel. Arrays is ForwardArrays or BackwardArrays.
template <typename S, template <typename> class Arrays>
struct Operands {
  int T, B, H;
  bool reverse;
  bool whole_rows;         // every 8th unit of every array stands at a multiple of 16 bytes
  const int64_t* lengths;  // [B] steps of each sequence, or null
  Arrays<S> arrays;
  float gradient_clip;  // backward: the largest magnitude of a gradient of a pre-activation
  unsigned* timed_out;  // becomes 1 if a block timed out
};

constexpr int row_bytes = 16, matrix_bytes = 8 * row_bytes;  // 8 rows: a matrix of 8 units and 8 sequences

template <typename S>
using Row = Vector<S, 8>;

// The two neighbours in a register.
template <typename S>
FUSED_RNN_DEVICE float low_of(uint32_t pair) {
  return widen(S{static_cast<uint16_t>(pair)});
}
template <typename S>
FUSED_RNN_DEVICE float high_of(uint32_t pair) {
  return widen(S{static_cast<uint16_t>(pair >> 16)});
}
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
  static constexpr int rounds = (slots * 8 + 31) / 32, stage_bytes = octets * slots * matrix_bytes;

 public:
  static constexpr int shared_bytes = stages * stage_bytes;  // of a warp

  struct Source {
    const S* values;
    int row;
  };

  FUSED_RNN_DEVICE RowRing() {}
  FUSED_RNN_DEVICE explicit RowRing(unsigned char* shared) : shared_(shared) {}

  // Once, before any tile.
  FUSED_RNN_DEVICE void clear() const {
    for (int i = threadIdx.x % 32; i < shared_bytes / row_bytes; i += 32) at<Row<S>>(shared_, i * row_bytes)[0] = {};
    __syncwarp();
  }

  // Start with a tile: fetch its first steps. `columns`: how many of the 8 there are, 0 or fewer if none.
  template <typename Tile, typename F>
  FUSED_RNN_DEVICE void begin(const typename Tile::Q& q, const Tile& tile, int columns, const F& source) {
    const int lane = threadIdx.x % 32, first_time = tile.time(q, upwards ? 0 : tile.longest() - 1);
    left_ = tile.longest();
    columns_ = columns < 8 ? columns : 8;
    write_ = read_ = 0;
    FUSED_RNN_UNROLL
    for (int i = 0; i < rounds; ++i) {
      wanted_[i] = false;
      FUSED_RNN_UNROLL
      for (int slot = 4 * i; slot < 4 * i + 4 && slot < slots; ++slot) {
        if (lane / 8 != slot % 4) continue;
        const Source s = source(slot);
        wanted_[i] = s.values && columns > 0 && tile.has_row(0);
        from_[i] = reinterpret_cast<uint64_t>(s.values) +
                   ((int64_t{first_time} * q.B + tile.first() + lane % 8) * s.row) * int64_t{sizeof(S)};
        row_bytes_[i] = s.row * int{sizeof(S)};
      }
    }
    step_rows_ = upwards == q.reverse ? -q.B : q.B;
    has_octets_ = 0;
    FUSED_RNN_UNROLL
    for (int n = 0; n < octets; ++n) has_octets_ += tile.has_row(n);
    for (int i = 0; i < stages - 1; ++i) fetch(q);
  }

  // Start to bring the rows of one step more, if there is one.
  template <typename Q>
  FUSED_RNN_DEVICE void fetch(const Q& q) {
    if (left_ > 0) {
      if (q.whole_rows)
        for_rows([](S* to, const S* from) { copy_async<row_bytes>(to, from); });
      else
        for_rows([&](S* to, const S* from) {
          FUSED_RNN_UNROLL_BY(1)
          for (int u = 0; u < columns_; ++u) to[u] = from[u];
        });
      FUSED_RNN_UNROLL
      for (int i = 0; i < rounds; ++i) from_[i] += int64_t{step_rows_} * row_bytes_[i];
    }
    copy_async_commit();
    --left_;
    write_ = write_ + stage_bytes == shared_bytes ? 0 : write_ + stage_bytes;
  }

  // Wait for the rows of the next step, which are then what load reads; downwards for the step after as well.
  FUSED_RNN_DEVICE void wait() {
    copy_async_wait<upwards ? stages - 2 : stages - 3>();
    __syncwarp();
  }
  // Four matrices from `slot` on: of unit lane / 4 the values of sequences 2(lane % 4) and the next one. Where there
  // are fewer slots, what else is loaded says nothing.
  FUSED_RNN_DEVICE void load(uint32_t (&pairs)[4], int n, int slot) const {
    const int wanted = slot * 8 + static_cast<int>(threadIdx.x) % 32, last = slots * 8 - 1;
    load_matrices_transposed(pairs, shared_ + read_ + n * slots * matrix_bytes +
                                        (slot + 4 <= slots || wanted < last ? wanted : last) * row_bytes);
  }
  FUSED_RNN_DEVICE void load(uint32_t (&pair)[1], int n, int slot) const {
    load_matrices_transposed(
        pair, shared_ + read_ + n * slots * matrix_bytes + (slot * 8 + static_cast<int>(threadIdx.x) % 8) * row_bytes);
  }
  // The rows have been read. What is loaded from here on, downwards, is of the step before in the order of computation;
  // if there is none it says nothing.
  FUSED_RNN_DEVICE void advance() { read_ = read_ + stage_bytes == shared_bytes ? 0 : read_ + stage_bytes; }

 private:
  // Those that the lane brings of a step.
  template <typename F>
  FUSED_RNN_DEVICE void for_rows(const F& f) const {
    unsigned char* const to = shared_ + write_ + threadIdx.x % 32 * row_bytes;
    FUSED_RNN_UNROLL
    for (int i = 0; i < rounds; ++i) {
      FUSED_RNN_UNROLL
      for (int n = 0; n < octets; ++n) {
        if (wanted_[i] && (n == 0 || n < has_octets_))
          f(at<S>(to, (n * slots + 4 * i) * matrix_bytes),
            reinterpret_cast<const S*>(from_[i] + int64_t{8 * n} * row_bytes_[i]));
      }
    }
  }

  unsigned char* shared_;
  int write_ = 0, read_ = 0;  // bytes: the stages that are fetched and read next
  int left_ = 0, columns_ = 0, step_rows_ = 0, has_octets_ = 0;
  uint64_t from_[rounds];  // addresses; where nothing is wanted they may be any
  int row_bytes_[rounds];
  bool wanted_[rounds];
};

// Rows that a warp stores time after time, one for each lane and octet, to arrays [T, B, row]: the lane's is `values`,
// at its column, or null.
template <typename S>
class RowSink {
 public:
  FUSED_RNN_DEVICE RowSink() {}

  // From `time` on, in steps of `time_step`, 1 or -1.
  template <typename Tile>
  FUSED_RNN_DEVICE RowSink(const typename Tile::Q& q, const Tile& tile, S* values, int row, int columns, int time,
                           int time_step)
      : to_(reinterpret_cast<uint64_t>(values) +
            (int64_t{time} * q.B + tile.first() + threadIdx.x % 8) * row * int64_t{sizeof(S)}),
        row_bytes_(row * int{sizeof(S)}),
        step_rows_(time_step * q.B),
        columns_(!values       ? 0
                 : columns < 8 ? columns
                               : 8) {}

  // The row at `from` in shared memory, or zeros.
  template <typename Q>
  FUSED_RNN_DEVICE void store(const Q& q, int n, const unsigned char* from, bool zeros) const {
    if (columns_ <= 0) return;
    S* const to = reinterpret_cast<S*>(to_ + int64_t{8 * n} * row_bytes_);
    if (q.whole_rows) {
      auto row = *reinterpret_cast<const Vector<uint32_t, 4>*>(from);
      FUSED_RNN_UNROLL
      for (int i = 0; i < 4; ++i) row.values[i] = zeros ? 0u : row.values[i];
      *reinterpret_cast<Vector<uint32_t, 4>*>(to) = row;
      return;
    }
    FUSED_RNN_UNROLL_BY(1)
    for (int u = 0; u < columns_; ++u) to[u] = zeros ? S{} : reinterpret_cast<const S*>(from)[u];
  }

  FUSED_RNN_DEVICE void advance() { to_ += int64_t{step_rows_} * row_bytes_; }

 private:
  uint64_t to_;  // an address; where nothing is wanted it may be any
  int row_bytes_, step_rows_, columns_;
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

// Weights k and k + 1 of a row of `count`, zeros past its end; `pairs` says that they stand at a multiple of 4 bytes.
template <typename S>
FUSED_RNN_DEVICE uint32_t weight_pair(const S* row, int64_t stride, int k, int count, bool pairs) {
  if (pairs) return k < count ? *reinterpret_cast<const uint32_t*>(row + k) : 0u;
  const uint32_t low = k < count ? row[k * stride].bits : 0u, high = k + 1 < count ? row[(k + 1) * stride].bits : 0u;
  return low | high << 16;
}

#endif

}  // namespace fused_rnn::cuda::cluster

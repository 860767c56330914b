// What the forward and the backward kernel share: how the grid divides the work, the product of a batch tile with the
// columns that a block owns, and the barrier between blocks.
//
// Blocks come in teams: a team runs the whole sequence for one tile of sequences, and its blocks own slices of the
// hidden units (and, in multiplicative cells, of the features). Teams never wait for each other. Within a team, states
// travel through global memory, and a counter that only grows separates the phases of a step. A team of one block has
// nobody to wait for.
//
// Columns of a weight matrix that a block owns stay in its shared memory for the whole sequence where they fit;
// otherwise they are read from the second-level cache in every step.
#pragma once

#include "../cells/cells.h"
#include "device.h"

namespace fused_rnn::cuda {

// Threads of a block, and rows of a right operand between two barriers. Tests on the host make them small.
#ifndef FUSED_RNN_THREADS
#  define FUSED_RNN_THREADS 256
#endif
#ifndef FUSED_RNN_CHUNK_DEPTH
#  define FUSED_RNN_CHUNK_DEPTH 64
#endif

constexpr int threads = FUSED_RNN_THREADS;
constexpr int chunk_depth = FUSED_RNN_CHUNK_DEPTH;
constexpr int tile_rows = 8;  // sequences of a team

HOST_DEVICE constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The part of `total` things that belongs to a block of a team.
struct Share {
  int first, count;
};

FUSED_RNN_DEVICE Share share_of(int total, int part, int parts) {
  const int each = static_cast<int>(divide_up(total, parts)), first = part * each;
  return {first < total ? first : total, first + each <= total ? each : first < total ? total - first : 0};
}

// A right operand, [depth, width] with rows one after another, and the block's columns of it: runs of `own` columns
// from `first` on, `distance` apart, one for each gate. `resident` is null or holds all of them, [depth, row_size].
// A product takes `gates` of the gates and skips `skipped` columns of the block before them.
template <typename C, typename S>
struct Columns {
  const S* data;
  int depth, width;
  int gates, first, own, distance;
  C* resident;
  int skipped = 0, row_size = gates * own;

  FUSED_RNN_DEVICE int count() const { return gates * own; }
  FUSED_RNN_DEVICE Columns rows(int begin, int rows) const {
    Columns m = *this;
    m.data += int64_t{begin} * width;
    if (resident) m.resident += begin * row_size;
    m.depth = rows;
    return m;
  }
  FUSED_RNN_DEVICE C at(int k, int column) const {
    column += skipped;
    if (resident) return resident[k * row_size + column];
    return widen(data[int64_t{k} * width + first + column / own * distance + column % own]);
  }
};

// Copy the block's columns to shared memory, from `memory` on; returns what follows them. Needs a barrier afterwards.
template <typename C, typename S>
FUSED_RNN_DEVICE C* make_resident(Columns<C, S>& m, C* memory) {
  for (int i = threadIdx.x; i < m.depth * m.count(); i += threads) memory[i] = m.at(i / m.count(), i % m.count());
  m.resident = memory;
  return memory + m.depth * m.count();
}

// How the threads divide the columns of a product: each takes a column (or several) and, where there are more threads
// than columns, a part of the depth. The parts are added in a fixed order, so the result does not depend on timing.
struct Division {
  int lanes, parts;
};

FUSED_RNN_DEVICE Division division(int columns) {
  const int lanes = columns >= threads ? threads : columns < 32 ? 32 : (columns + 31) / 32 * 32;
  return {lanes, threads / lanes};
}

// Values of shared memory that the sums of a product over `columns` take.
HOST_DEVICE constexpr int64_t sums_size(int64_t columns) {
  return int64_t{tile_rows} * (columns > threads ? columns : threads);
}

// A tile of the left operand: rows of a matrix in global memory, of which those from `rows` on do not exist.
template <typename C>
struct Rows {
  const C* data;
  int64_t stride;
  int rows;
};

template <typename C>
FUSED_RNN_DEVICE void load_chunk(const Rows<C>& a, int begin, int depth, C* chunk) {
  for (int i = threadIdx.x; i < tile_rows * depth; i += threads) {
    const int r = i / depth, k = i % depth;
    chunk[r * chunk_depth + k] = r < a.rows ? load_l2(a.data + r * a.stride + begin + k) : C(0);
  }
}

// sums += a m, over rows [0, depth of m) of m from `first_row` of it on; `sums` is read with `sum_at`. Starts and ends
// with a barrier.
template <typename C, typename S>
FUSED_RNN_DEVICE void accumulate(const Rows<C>& a, const Columns<C, S>& m, C* chunk, C* sums, bool add = false) {
  const int columns = m.count();
  const Division d = division(columns);
  const int lane = threadIdx.x % d.lanes, part = threadIdx.x / d.lanes;
  for (int begin = 0; begin < m.depth; begin += chunk_depth) {
    const int depth = m.depth - begin < chunk_depth ? m.depth - begin : chunk_depth;
    __syncthreads();
    load_chunk(a, begin, depth, chunk);
    __syncthreads();
    if (part >= d.parts) continue;
    const int each = static_cast<int>(divide_up(depth, d.parts));
    const int from = part * each, to = from + each < depth ? from + each : depth;
    for (int column = lane; column < columns; column += d.lanes) {
      C sum[tile_rows];
      C* const place = sums + (part * tile_rows) * columns + column;
      FUSED_RNN_UNROLL
      for (int r = 0; r < tile_rows; ++r) sum[r] = begin > 0 || add ? place[r * columns] : C(0);
      for (int k = from; k < to; ++k) {
        const C b = m.at(begin + k, column);
        FUSED_RNN_UNROLL
        for (int r = 0; r < tile_rows; ++r) sum[r] += chunk[r * chunk_depth + k] * b;
      }
      FUSED_RNN_UNROLL
      for (int r = 0; r < tile_rows; ++r) place[r * columns] = sum[r];
    }
  }
  __syncthreads();
}

template <typename C>
FUSED_RNN_DEVICE C sum_at(const C* sums, int columns, int row, int column) {
  const int parts = division(columns).parts;
  C sum = sums[row * columns + column];
  for (int part = 1; part < parts; ++part) sum += sums[(part * tile_rows + row) * columns + column];
  return sum;
}

// The meeting of a team's blocks at the end of a phase.
class Team {
 public:
  FUSED_RNN_DEVICE Team(unsigned* counter, unsigned* failed, int parts)
      : counter_(counter), failed_(failed), parts_(parts) {}

  // What any block of the team stored before is visible afterwards. False if a block did not come in time.
  FUSED_RNN_DEVICE bool meet() {
    __syncthreads();
    if (parts_ == 1) return true;
    bool arrived = true;
    target_ += parts_;
    if (threadIdx.x == 0) {
      add_release(counter_, 1);
      arrived = wait_for(counter_, target_, failed_);
    }
    return __syncthreads_and(arrived);
  }

 private:
  unsigned* counter_;
  unsigned* failed_;
  unsigned parts_, target_ = 0;
};

// The part of a sequence that a block works on, and where its values stand. Sequence has the sizes T, B, I, H, and
// reverse, lengths, parts, arrivals and failed.
template <typename Sequence>
class Block {
 protected:
  FUSED_RNN_DEVICE explicit Block(const Sequence& q)
      : q_(q),
        team_(q.arrivals + blockIdx.x / q.parts, q.failed, q.parts),
        first_row_(static_cast<int>(blockIdx.x) / q.parts * tile_rows),
        rows_(q.B - first_row_ < tile_rows ? q.B - first_row_ : tile_rows),
        units_(share_of(q.H, static_cast<int>(blockIdx.x) % q.parts, q.parts)),
        inputs_(share_of(q.I, static_cast<int>(blockIdx.x) % q.parts, q.parts)) {}

  FUSED_RNN_DEVICE int time(int step) const { return q_.reverse ? q_.T - 1 - step : step; }

  FUSED_RNN_DEVICE bool active(int row, int t) const { return !q_.lengths || t < q_.lengths[first_row_ + row]; }

  FUSED_RNN_DEVICE bool any_active(int t) const {
    bool any = false;
    for (int r = 0; r < rows_; ++r) any = any || active(r, t);
    return any;
  }

  // The row of a sequence of the tile in a [B, ...] array, and in a [T, B, ...] array.
  FUSED_RNN_DEVICE int64_t row(int r) const { return first_row_ + r; }
  FUSED_RNN_DEVICE int64_t row(int r, int t) const { return int64_t{t} * q_.B + first_row_ + r; }

  // f(i, r, u) for the units of the block in all sequences of the tile, and f(r, j) for its features; i counts them.
  template <typename F>
  FUSED_RNN_DEVICE void for_units(const F& f) const {
    for (int i = threadIdx.x; i < rows_ * units_.count; i += threads) f(i, i / units_.count, i % units_.count);
  }
  template <typename F>
  FUSED_RNN_DEVICE void for_inputs(const F& f) const {
    for (int i = threadIdx.x; i < rows_ * inputs_.count; i += threads) f(i / inputs_.count, i % inputs_.count);
  }

  const Sequence& q_;
  Team team_;
  const int first_row_, rows_;
  const Share units_, inputs_;
};

}  // namespace fused_rnn::cuda

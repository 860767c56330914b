// The schedule of the time loop: which sequences run in which step, and the cut of the steps into chunks.
//
// The loop's own arrays are compact, like a packed sequence: they are ordered by falling length, so that the sequences
// of a time are the first ones, one time after the other, and sequences that have ended take no space. So work is
// proportional to the steps that sequences have, not to T*B. If all sequences have all steps, rows are in the caller's
// order.
#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include "../sequence.h"
#include "kernels.h"

namespace fused_rnn::cpu {

template <typename S>
S* data(const Tensor& tensor) {
  return static_cast<S*>(tensor.mutable_data_ptr());
}

// Read operands without touching them, not even by a private copy of data that is copied on write.
template <typename S>
const S* const_data(const Tensor& tensor) {
  return static_cast<const S*>(tensor.const_data_ptr());
}

// Consecutive steps.
struct Chunk {
  int64_t first, last;  // steps [first, last)
  int64_t time;         // the earliest
  int64_t row, rows;    // the number of its first row, and its number of rows
};

class Schedule {
 public:
  explicit Schedule(const Sequence& q) : T_(q.T), B_(q.B), times_(q.T) {
    if (q.lengths) sort(const_data<int64_t>(*q.lengths));
    cut(q);
  }

  bool whole() const { return first_rows_.empty(); }  // whether all sequences have all steps
  int64_t times() const { return times_; }            // times at which any sequence runs
  int64_t rows() const { return first_row(times_); }
  int64_t most_rows() const { return most_rows_; }              // of a chunk
  const std::vector<Chunk>& chunks() const { return chunks_; }  // in forward order

  int64_t first_row(int64_t time) const { return whole() ? time * B_ : first_rows_[std::min(time, times_)]; }
  Running running(int64_t time) const { return {first_row(time + 1) - first_row(time), order()}; }
  const int64_t* order() const { return order_.empty() ? nullptr : order_.data(); }
  int64_t length(int64_t row) const { return whole() ? T_ : lengths_[running(0).at(row)]; }

  // Whether the rows of a chunk are adjacent in a tensor (T, B, ...): from row time * B on.
  bool together(const Chunk& chunk) const {
    return order_.empty() && (chunk.last - chunk.first == 1 || chunk.rows == (chunk.last - chunk.first) * B_);
  }

  // Call f(row of the chunk, row of a (T*B, ...) tensor) for each row.
  template <typename F>
  void for_rows(const Chunk& chunk, const F& f) const {
    for (int64_t t = chunk.time, row = 0; row < chunk.rows; ++t) {
      const Running found = running(t);
      for (int64_t r = 0; r < found.count; ++r, ++row) f(row, t * B_ + found.at(r));
    }
  }

 private:
  void sort(const int64_t* lengths) {
    if (std::all_of(lengths, lengths + B_, [this](int64_t length) { return length == T_; })) return;
    lengths_ = lengths;
    order_.resize(B_);
    std::iota(order_.begin(), order_.end(), 0);
    std::stable_sort(order_.begin(), order_.end(), [=](int64_t a, int64_t b) { return lengths[a] > lengths[b]; });
    times_ = lengths[order_[0]];
    first_rows_.resize(times_ + 1);
    for (int64_t t = 0, count = B_; t < times_; ++t) {
      while (lengths[order_[count - 1]] <= t) --count;
      first_rows_[t + 1] = first_rows_[t] + count;
    }
    if (std::is_sorted(order_.begin(), order_.end())) order_.clear();
  }

  void cut(const Sequence& q) {
    constexpr int64_t enough = 512;  // rows that make library products efficient and still fit the cache
    const int64_t begin = q.reverse ? T_ - times_ : 0, end = begin + times_;
    for (int64_t first = begin, last; first < end; first = last) {
      int64_t rows = running(q.time(first)).count;
      for (last = first + 1; last < end; ++last) {
        const int64_t more = running(q.time(last)).count;
        if (rows + more > enough) break;
        rows += more;
      }
      const int64_t time = q.reverse ? T_ - last : first;
      chunks_.push_back({first, last, time, first_row(time), rows});
      most_rows_ = std::max(most_rows_, rows);
    }
  }

  const int64_t T_, B_;
  int64_t times_, most_rows_ = 0;
  const int64_t* lengths_ = nullptr;  // of the caller's sequences
  std::vector<int64_t> order_;        // the caller's sequences, the longest first; empty: the caller's order
  std::vector<int64_t> first_rows_;   // of each time, then the number of rows; empty: all run all the time
  std::vector<Chunk> chunks_;
};

// Call f(row, the caller's row) for those of some rows that begin anew in a step. The call must have resets.
template <typename F>
void for_rows_begun(const Sequence& q, const Schedule& schedule, int64_t step, Range rows, const F& f) {
  const int64_t time = q.time(step);
  const bool* begins = const_data<bool>(*q.resets) + time * q.B;
  const Running running = schedule.running(time);
  for (int64_t row = rows.begin; row < rows.end; ++row)
    if (const int64_t at = running.at(row); begins[at]) f(row, at);
}

}  // namespace fused_rnn::cpu

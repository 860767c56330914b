// The values that a thread of the float32 warp kernels reads and writes in a step: those of its own unit and its own
// two sequences, each by itself. A warp's values are 8 units of 4 sequences at a time, which are whole sectors of
// memory, so rows (tile.h) would save nothing; and a float needs only its own alignment.
#pragma once

#include "tile.h"

namespace fused_rnn::cuda::cluster {

// Whether threads access single values, or warps rows.
template <typename S>
constexpr bool by_values = std::is_same_v<S, float>;

// The values of a unit for two neighbouring sequences.
template <typename S>
using Pair = std::conditional_t<by_values<S>, Vector<float, 2>, uint32_t>;

template <typename S, typename T>
FUSED_RNN_DEVICE T half_of(const Vector<float, 2>& pair, int j) {
  return T(pair.values[j]);
}

template <typename S>
FUSED_RNN_DEVICE Pair<S> pair_of(float first, float second) {
  if constexpr (by_values<S>)
    return {first, second};
  else
    return narrow_pair<S>(first, second);
}

#if FUSED_RNN_SM90

// A ring buffer of values that a thread brings to shared memory some steps before it reads them, like RowRing with
// rows. The first `wide` slots are columns of one array [T, B, row], at equal distances; the others are columns of
// arrays with another row. All rows count as `whole` here.
template <int slots, int wide, int octets, bool upwards, int stages>
class ValueRing {
  static constexpr int slot_bytes = 32 * int{sizeof(Vector<float, 2>)}, stage_bytes = octets * slots * slot_bytes;
  static constexpr int kinds = wide > 0 && wide < slots ? 2 : 1;
  HOST_DEVICE static constexpr int kind(int slot) { return kinds > 1 && slot >= wide; }

 public:
  static constexpr int shared_bytes = stages * stage_bytes;  // per warp

  struct Source {
    const float* values;
    int row;
  };

  FUSED_RNN_DEVICE ValueRing() {}
  FUSED_RNN_DEVICE explicit ValueRing(unsigned char* shared)
      : shared_(shared), at_(kept(shared_address(shared) + threadIdx.x % 32 * unsigned{sizeof(Vector<float, 2>)})) {}

  // Zero the ring once, before any tile.
  FUSED_RNN_DEVICE void clear() const {
    for (int i = threadIdx.x % 32; i < shared_bytes / 8; i += 32) at<Vector<float, 2>>(shared_, 8 * i)[0] = {};
    __syncwarp();
  }

  // Start with a tile: fetch its first steps. `columns` says how many of the warp's 8 columns exist; 0 or fewer: none.
  template <bool whole, int used, typename Tile, typename F>
  FUSED_RNN_DEVICE void begin(const typename Tile::Q& q, const Tile& tile, int columns, const F& source) {
    const int lane = threadIdx.x % 32, first_time = tile.time(q, upwards ? 0 : tile.longest() - 1);
    left_ = tile.longest();
    at_ -= stage_;
    stage_ = 0;
    wanted_ = 0;
    FUSED_RNN_UNROLL
    for (int slot = slots - 1; slot >= 0; --slot) {
      const Source s = source(slot);
      FUSED_RNN_UNROLL
      for (int i = 0; i < 2 * octets; ++i)
        wanted_ |= unsigned{s.values && lane / 4 < columns && tile.has(i / 2, i % 2)} << bit(slot, i);
      row_[kind(slot)] = s.row;
      step_[kind(slot)] = kept(int64_t{upwards == q.reverse ? -q.B : q.B} * s.row * int64_t{sizeof(float)});
      from_[place(slot)] = (s.values ? s.values : source(0).values) +
                           (int64_t{first_time} * q.B + tile.first() + 2 * (lane % 4)) * s.row + lane / 4;
    }
    if constexpr (wide > 1) apart_ = source(1).values ? kept(static_cast<int>(source(1).values - source(0).values)) : 0;
    for (int i = 0; i < stages; ++i) {
      fetch<whole, used>();
      advance();
    }
  }

  // Start to fetch the values of one more step, if there is one, to the place of those read last.
  template <bool whole, int used = slots>
  FUSED_RNN_DEVICE void fetch() {
    const unsigned wanted = left_ > 0 ? wanted_ : 0;
    FUSED_RNN_UNROLL
    for (int slot = 0; slot < used; ++slot) {
      FUSED_RNN_UNROLL
      for (int i = 0; i < 2 * octets; ++i)
        if (wanted >> bit(slot, i) & 1)
          copy_async<4>(
              at_ + (i / 2 * slots + slot) * slot_bytes + i % 2 * int{sizeof(float)},
              from_[place(slot)] + ((i / 2 * 8 + i % 2) * row_[kind(slot)] + (slot < wide ? slot * apart_ : 0)));
    }
    FUSED_RNN_UNROLL
    for (int slot = wide > 0 ? wide - 1 : 0; slot < slots; ++slot)
      from_[place(slot)] =
          reinterpret_cast<const float*>(reinterpret_cast<const char*>(from_[place(slot)]) + step_[kind(slot)]);
    copy_async_commit();
    --left_;
  }

  // Wait for the values of the next step, which load reads then; downwards, also for those of the step after it. No
  // other thread reads them, so this needs no barrier.
  FUSED_RNN_DEVICE void wait() { copy_async_wait<upwards ? stages - 1 : stages - 2>(); }

  // Load the values of both sequences from `count` slots, from `slot` on, if there are that many.
  template <int count>
  FUSED_RNN_DEVICE void load(Vector<float, 2> (&pairs)[count], int n, int slot) const {
    FUSED_RNN_UNROLL
    for (int i = 0; i < count; ++i)
      if (slot + i < slots) pairs[i] = load_shared<Vector<float, 2>>(at_ + (n * slots + slot + i) * slot_bytes);
  }
  // Load from the step that follows in the ring; downwards, that is the step before in the order of computation. If
  // there is none, the value has no meaning.
  FUSED_RNN_DEVICE void load_following(Vector<float, 2> (&pair)[1], int n, int slot) const {
    pair[0] = load_shared<Vector<float, 2>>(at_ + stride() + (n * slots + slot) * slot_bytes);
  }
  // Go on to the next step, when the values of this one have been read and those of one more step are being fetched.
  FUSED_RNN_DEVICE void advance() {
    const int step = stride();
    stage_ += step;
    at_ += step;
  }

 private:
  // The first `wide` slots have one address.
  static constexpr int places = wide > 0 ? slots - wide + 1 : slots;
  HOST_DEVICE static constexpr int place(int slot) { return wide == 0 ? slot : slot < wide ? 0 : slot - wide + 1; }
  HOST_DEVICE static constexpr int bit(int slot, int i) { return slot * 2 * octets + i; }
  static_assert(slots * 2 * octets <= 32, "they are the bits of a word");

  // The distance from this stage to the next one.
  FUSED_RNN_DEVICE int stride() const {
    return stage_ == shared_bytes - stage_bytes ? stage_bytes - shared_bytes : stage_bytes;
  }

  unsigned char* shared_;
  int stage_ = 0;     // bytes
  SharedAddress at_;  // the lane's values of the first slot there
  int left_ = 0;
  unsigned wanted_ = 0;         // a bit for each slot and sequence
  const float* from_[places];   // of the lane's unit and its first sequence
  int apart_ = 0, row_[kinds];  // in columns
  int64_t step_[kinds];         // bytes
};

// Values that a thread stores step after step, to some arrays [T, B, row]: those of its unit and two sequences of each
// octet.
template <int octets, int arrays = 1>
class ValueSink {
 public:
  FUSED_RNN_DEVICE ValueSink() {}

  // From `time` on, in steps of `time_step`, 1 or -1. `values` are the warp's first column of each array, or null, and
  // `columns` exist from there on. `any` is an array that exists, in place of one that is null.
  template <typename Tile>
  FUSED_RNN_DEVICE ValueSink(const typename Tile::Q& q, const Tile& tile, float* values, float* any, int row,
                             int columns, int time, int time_step)
      : ValueSink(q, tile, Vector<float*, 1>{values}, any, row, columns, time, time_step) {}
  template <typename Tile>
  FUSED_RNN_DEVICE ValueSink(const typename Tile::Q& q, const Tile& tile, const Vector<float*, arrays>& values,
                             float* any, int row, int columns, int time, int time_step)
      : row_(row), step_(kept(int64_t{time_step} * q.B * row * int64_t{sizeof(float)})) {
    const int lane = threadIdx.x % 32;
    FUSED_RNN_UNROLL
    for (int a = 0; a < arrays; ++a) {
      to_[a] = (values.values[a] ? values.values[a] : any) +
               (int64_t{time} * q.B + tile.first() + 2 * (lane % 4)) * row + lane / 4;
      FUSED_RNN_UNROLL
      for (int i = 0; i < 2 * octets; ++i)
        wanted_[a] |= unsigned{values.values[a] && lane / 4 < columns && tile.has(i / 2, i % 2)} << i;
    }
  }

  // Store a value of sequence j of octet n, `column` columns further on.
  FUSED_RNN_DEVICE void store(int n, int j, int column, float value, int array = 0) const {
    if (wanted_[array] >> (2 * n + j) & 1) to_[array][(8 * n + j) * row_ + column] = value;
  }

  FUSED_RNN_DEVICE void advance() {
    FUSED_RNN_UNROLL
    for (int a = 0; a < arrays; ++a) to_[a] = reinterpret_cast<float*>(reinterpret_cast<char*>(to_[a]) + step_);
  }

 private:
  float* to_[arrays];
  int row_;
  int64_t step_;                  // bytes
  unsigned wanted_[arrays] = {};  // a bit for each sequence
};

// Send floats of two sequences as the terms of a state, which pass through three matrices in shared memory; `turned` is
// the lane's row of the first one.
template <typename State>
FUSED_RNN_DEVICE void send_terms(const State& state, int octet, SharedAddress turned, int lane, float first,
                                 float second, bool sent) {
  const auto pairs = split_pair(first, second);
  store_matrices_transposed<2>(turned, {pairs.terms[0], pairs.terms[1]});
  store_matrices_transposed<1>(turned + 2 * matrix_bytes, {pairs.terms[2]});
  __syncwarp();
  if (!sent) return;
  const SharedAddress row = turned - lane / 8 * matrix_bytes;
  FUSED_RNN_UNROLL
  for (int i = 0; i < 3; ++i) state.push(octet, load_shared<Row<BFloat16>>(row + i * matrix_bytes), i);
}

template <typename S, int slots, int wide, int octets, bool upwards, int stages = 6>
using Ring = std::conditional_t<by_values<S>, ValueRing<slots, wide, octets, upwards, stages>,
                                RowRing<S, slots, octets, upwards, stages>>;

#endif

}  // namespace fused_rnn::cuda::cluster

// The sums of a product whose K is shared by warps of a block, always added in the same order. Either all warps but the
// first give their sums and the first takes them, or each has a part of the outputs to itself and they trade. Two
// buffers take turns, because a giving warp may be a step ahead.
#pragma once

#include "../device.h"

namespace fused_rnn::cuda {

// Each of `shares` shares of K in each of `groups` products has a warp, whose lanes hold four sums in each of `vectors`
// vectors. `ordered` says that receiving data from a block comes after what that block did before: a giving warp that
// has received the next step, to which the taking warp contributed, may then give again. Otherwise the giving warp
// waits for the taking one, as it would for that step.
template <int groups, int shares, int vectors, bool ordered = true>
class SplitSums {
  using Sums = Vector<float, 4>;
  static constexpr int buffer = (shares - 1) * groups * vectors * 32;

 public:
  static constexpr int shared_bytes = 2 * buffer * int{sizeof(Sums)};

  // `barrier` and the next one must be used for nothing else.
  FUSED_RNN_DEVICE SplitSums(unsigned char* shared, int barrier, int group, int share)
      : lane_(reinterpret_cast<Sums*>(shared) + group * vectors * 32 + threadIdx.x % 32),
        barrier_(barrier),
        share_(share) {}

  // Every warp calls either give or take in every step. These sums are for the warp with share 0. A warp that is not
  // alive gives NaN. Nothing but this barrier keeps it from running ahead, so it stays until the other one has come.
  FUSED_RNN_DEVICE void give(const float (&sums)[vectors][4], bool alive) {
    Sums* const to = lane_ + turn_ * buffer + (share_ - 1) * groups * vectors * 32;
    FUSED_RNN_UNROLL
    for (int i = 0; i < vectors; ++i) {
      FUSED_RNN_UNROLL
      for (int j = 0; j < 4; ++j) to[i * 32].values[j] = alive ? sums[i][j] : NAN;
    }
    if (ordered && alive)
      barrier_arrive(barrier_ + turn_, threads);
    else
      barrier_sync(barrier_ + turn_, threads);
    turn_ ^= 1;
  }

  // Add the sums that the others gave.
  FUSED_RNN_DEVICE void take(float (&sums)[vectors][4]) {
    const Sums* const from = lane_ + turn_ * buffer;
    barrier_sync(barrier_ + turn_, threads);
    FUSED_RNN_UNROLL
    for (int share = 0; share < shares - 1; ++share) {
      FUSED_RNN_UNROLL
      for (int i = 0; i < vectors; ++i) {
        const Sums given = from[(share * groups * vectors + i) * 32];
        FUSED_RNN_UNROLL
        for (int j = 0; j < 4; ++j) sums[i][j] += given.values[j];
      }
    }
    turn_ ^= 1;
  }

 private:
  static constexpr int threads = groups * shares * 32;

  Sums* const lane_;
  const int barrier_, share_;
  int turn_ = 0;
};

// Likewise for two shares of K, each of which has half of the outputs, `vectors` vectors: both get the sums of their
// own. The two warps of a group wait for each other and for no others, so that each knows the step's state to have come
// as a whole before it goes on.
template <int groups, int vectors>
class TradedSums {
  using Sums = Vector<float, 4>;
  static constexpr int of_group = 2 * vectors * 32, buffer = groups * of_group;

 public:
  static constexpr int shared_bytes = 2 * buffer * int{sizeof(Sums)};

  // `barrier` and those after it, one for each group, must be used for nothing else.
  FUSED_RNN_DEVICE TradedSums(unsigned char* shared, int barrier, int group, int share)
      : lane_(reinterpret_cast<Sums*>(shared) + group * of_group + threadIdx.x % 32),
        barrier_(barrier + group),
        share_(share) {}

  // Add both shares' sums for these outputs to `own`. A warp that is not alive gives NaN, and stays in step.
  FUSED_RNN_DEVICE void trade(const float (&sums)[2 * vectors][4], float (&own)[vectors][4], bool alive) {
    Sums* const given = lane_ + turn_ * buffer;
    FUSED_RNN_UNROLL
    for (int i = 0; i < vectors; ++i) {
      FUSED_RNN_UNROLL
      for (int j = 0; j < 4; ++j) {
        const float first = sums[i][j], second = sums[vectors + i][j];
        own[i][j] += share_ == 0 ? first : second;
        given[(share_ * vectors + i) * 32].values[j] = !alive ? NAN : share_ == 0 ? second : first;
      }
    }
    barrier_sync(barrier_, 64);
    FUSED_RNN_UNROLL
    for (int i = 0; i < vectors; ++i) {
      const Sums other = given[((1 - share_) * vectors + i) * 32];
      FUSED_RNN_UNROLL
      for (int j = 0; j < 4; ++j) own[i][j] += other.values[j];
    }
    turn_ ^= 1;
  }

 private:
  Sums* const lane_;
  const int barrier_, share_;
  int turn_ = 0;
};

}  // namespace fused_rnn::cuda

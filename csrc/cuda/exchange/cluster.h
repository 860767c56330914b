// The exchange within a cluster: blocks push values into each other's shared memory, and barriers there, one for each
// copy and share of K, count the bytes. A block waits for another one only through the data that it reads. The exchange
// needs sm_90, and the blocks of a cluster are the team. exchange.h says what the functions promise.
//
// Both kinds of channel derive the turn from the number of steps that were waited for: the copy of its parity is read,
// the other one is written, and each barrier completes a phase every second step. Every byte that is pushed is waited
// for, so nothing is in flight when the kernel ends. After a timeout this does not hold, and the block stays until
// everything in flight must have arrived.
#pragma once

#include "../device.h"
#include "../terms.h"
#include "exchange.h"

// Cycles that a block stays after a timeout, far more than a push takes: about half a millisecond.
#ifndef FUSED_RNN_DRAIN_CYCLES
#  define FUSED_RNN_DRAIN_CYCLES (1 << 20)
#endif

namespace fused_rnn::cuda {

template <int team>
class ClusterTeam;
template <typename Team, typename S, int K, int shares, int octets>
class ClusterState;
template <typename Team, int places, typename Travelling>
class ClusterSums;

struct ClusterExchange {
  static constexpr ExchangeId id = ExchangeId::cluster;

  static Attributes attributes(int team, int threads) { return {.cluster = team, .threads = threads}; }

  // Bytes of shared memory for partial sums, with `values` of `bytes` bytes each per block.
  static constexpr int sums_bytes(int blocks, int values, int bytes, int /*warps*/) {
    return 2 * blocks * values * bytes + 16;
  }
  static constexpr int registers = 0;  // extra registers of a thread, compared with clusters

  // Channels need no device memory.
  static constexpr int64_t state_places(int /*values*/, int /*bytes*/) { return 0; }
  static constexpr int64_t sums_places(int /*blocks*/, int /*values*/, int /*bytes*/) { return 0; }

  template <int blocks>
  using Team = ClusterTeam<blocks>;
  template <typename Team, typename S, int K, int shares, int octets>
  using State = ClusterState<Team, S, K, shares, octets>;
  template <typename Team, int places, typename Travelling, int warps>
  using Sums = ClusterSums<Team, places, Travelling>;
};

#if FUSED_RNN_SM90

// The blocks of a cluster, as one thread sees them.
template <int team>
class ClusterTeam {
  static_assert(team >= 1 && team <= 16 && (team & (team - 1)) == 0, "clusters have 1, 2, 4, 8 or 16 blocks");

 public:
  static constexpr int size = team;
  static constexpr bool ordered = true;  // receiving a push comes after all that the pushing block did before it

  template <typename Q>
  FUSED_RNN_DEVICE explicit ClusterTeam(const Q& q) : failed_(q.timed_out) {}

  FUSED_RNN_DEVICE static int rank() { return static_cast<int>(cluster_rank()); }

  template <typename F>
  FUSED_RNN_DEVICE void start(const F& fill) const {
    cluster_barrier();
    fill();
    __syncthreads();
  }

  FUSED_RNN_DEVICE void end() const {
    cluster_barrier();
    if (alive_) return;
    const long long begin = cycles();
    while (cycles() - begin < FUSED_RNN_DRAIN_CYCLES) {
    }
  }

  FUSED_RNN_DEVICE bool alive() const { return alive_; }

  // For channels: all lanes leave together, with the same result. Calls failing() if it is this wait that fails.
  template <typename F>
  FUSED_RNN_DEVICE bool wait(SharedAddress barrier, unsigned parity, const F& failing) {
    if (!alive_) return false;
    if (__all_sync(~0u, mbarrier_ended(barrier, parity))) return true;
    alive_ = __all_sync(~0u, wait_for_phase(barrier, parity, failed_));
    if (!alive_) failing();
    return alive_;
  }

 private:
  unsigned* const failed_;
  int alive_ = true;  // no wait of this warp has failed
};

// The base of both kinds of channel: `barriers` barriers for each of two copies, at an address in shared memory that is
// the same in all blocks of the team.
template <typename Team, int barriers>
class ClusterChannel {
 protected:
  static constexpr int copy_barrier_bytes = barriers * 8, barrier_bytes = 2 * copy_barrier_bytes;

  FUSED_RNN_DEVICE ClusterChannel(Team& team, SharedAddress barrier) : team_(team), barrier_(kept(barrier)) {
    static_assert(2 * barriers <= 32, "a warp sets up all barriers");
    if (threadIdx.x < 2 * barriers) mbarrier_init(barrier + 8 * threadIdx.x);
  }

  FUSED_RNN_DEVICE void expect(int share, int bytes) const {
    if (team_.alive() && lane_ == 0) mbarrier_expect(barrier_of(made(), share), bytes);
  }

  FUSED_RNN_DEVICE void follow() { ++steps_; }

  // Copy 1 is written first, and each copy has a phase every second step.
  template <typename F>
  FUSED_RNN_DEVICE bool wait(int share, const F& failing) {
    return team_.wait(barrier_of(read(), share), (steps_ - 1) / 2 % 2, failing);
  }

  FUSED_RNN_DEVICE bool alive() const { return team_.alive(); }
  FUSED_RNN_DEVICE unsigned read() const { return steps_ % 2; }
  FUSED_RNN_DEVICE unsigned made() const { return 1 - steps_ % 2; }
  FUSED_RNN_DEVICE SharedAddress barrier_of(unsigned copy, int share) const {
    return barrier_ + 8 * (copy * barriers + share);
  }

 private:
  Team& team_;
  const SharedAddress barrier_;
  // through a shuffle: else the assembler, short of registers, rereads the special register in every step
  const int lane_ = __shfl_sync(~0u, static_cast<int>(threadIdx.x % 32), static_cast<int>(threadIdx.x % 32));
  unsigned steps_ = 0;  // steps that were waited for
};

// A state of K values for each of 8 * `octets` sequences. S is BFloat16, Half, or float, which travels as its terms:
// each has a plane of the state.
template <typename Team, typename S, int K, int shares, int octets>
class ClusterState : ClusterChannel<Team, shares> {
  using Base = ClusterChannel<Team, shares>;
  using Base::alive, Base::barrier_of, Base::made, Base::read;
  static_assert(sizeof(Term<S>) == 2 && K % (8 * shares) == 0, "a share is of whole rows of eight units");
  static constexpr int stride = K + 8;  // padding against bank conflicts
  static constexpr int plane_bytes = octets * 8 * stride * int{sizeof(Term<S>)}, copy_bytes = terms_of<S> * plane_bytes;

 public:
  using Row = Vector<Term<S>, 8>;
  static constexpr int shared_bytes = 2 * copy_bytes + Base::barrier_bytes;

  FUSED_RNN_DEVICE ClusterState(Team& team, unsigned char* shared)
      : Base(team, shared_address(shared) + 2 * copy_bytes), shared_(shared), rows_(kept(shared_address(shared))) {}

  FUSED_RNN_DEVICE void expect(int share) const {
    Base::expect(share, terms_of<S> * octets * 8 * (K / shares) * int{sizeof(Term<S>)});
  }

  // Eight lanes push to one block, so that a warp reaches four at a time. The distances between addresses are the same
  // in every block, so one mapped address per block is enough.
  FUSED_RNN_DEVICE void own(int k) {
    const unsigned lane = threadIdx.x % 32, row = (lane % 8 * stride + k) * unsigned{sizeof(Term<S>)};
    FUSED_RNN_UNROLL
    for (int i = 0; i < destinations; ++i) {
      const unsigned rank = 4 * i + lane / 8;
      to_[i] = kept(address_in_block(rows_, rank < Team::size ? rank : 0) + row);
    }
    barrier_from_row_ = kept(barrier_of(0, k / (K / shares)) - rows_ - row);
    pushes_ = kept(static_cast<int>(lane / 8 < Team::size));
  }

  FUSED_RNN_DEVICE void push(int octet, const Row& row, int term = 0) const {
    if (!alive() || !pushes_) return;
    const SharedAddress place =
        made() * copy_bytes + term * plane_bytes + octet * 8 * stride * unsigned{sizeof(Term<S>)};
    const SharedAddress barrier = barrier_from_row_ + made() * Base::copy_barrier_bytes;
    FUSED_RNN_UNROLL
    for (int i = 0; i < destinations; ++i) cuda::push(to_[i] + place, to_[i] + barrier, row);
  }

  // Calls failing() if it is this wait that fails.
  template <typename F>
  FUSED_RNN_DEVICE bool wait(int share, const F& failing) {
    Base::follow();
    return Base::wait(share, failing);
  }

  // Set a value of the state that the first step reads.
  FUSED_RNN_DEVICE void put(int r, int k, S value) const {
    put_terms(at<Term<S>>(shared_, read() * copy_bytes) + r * stride + k, octets * 8 * stride, value);
  }
  FUSED_RNN_DEVICE SharedAddress address() const { return rows_ + read() * copy_bytes; }

 private:
  static constexpr int destinations = Team::size > 4 ? Team::size / 4 : 1;

  unsigned char* const shared_;
  const SharedAddress rows_;
  SharedAddress to_[destinations], barrier_from_row_ = 0;
  int pushes_ = 0;
};

// Partial sums: `places` places in each block, with four sums each, which travel as floats or rounded to bfloat16. That
// is half the bytes, and a block receives at most 16 bytes a cycle. float16 would not have their range.
template <typename Team, int places, typename Travelling>
class ClusterSums : ClusterChannel<Team, 1> {
  using Base = ClusterChannel<Team, 1>;
  using Base::alive, Base::made, Base::read;
  using Sums = std::conditional_t<std::is_same_v<Travelling, float>, Vector<float, 4>, Vector<uint32_t, 2>>;
  static constexpr int part_bytes = places * int{sizeof(Sums)}, copy_bytes = Team::size * part_bytes;

 public:
  static constexpr int parts = Team::size;
  static constexpr int shared_bytes = 2 * copy_bytes + Base::barrier_bytes;

  FUSED_RNN_DEVICE ClusterSums(Team& team, unsigned char* shared)
      : Base(team, shared_address(shared) + 2 * copy_bytes),
        shared_(shared),
        // through a shuffle: else the compiler rereads the special register in every step
        own_part_(__shfl_sync(~0u, cluster_rank() * part_bytes, 0)) {}

  FUSED_RNN_DEVICE void expect() const { Base::expect(0, copy_bytes); }

  FUSED_RNN_DEVICE void contribute(int owner, int place, const float (&sums)[4]) const {
    if (!alive()) return;
    const SharedAddress to = address_in_block(shared_address(shared_), owner);
    const SharedAddress part = made() * copy_bytes + own_part_,
                        barrier = 2 * copy_bytes + made() * Base::copy_barrier_bytes;
    Sums value;
    if constexpr (std::is_same_v<Travelling, float>)
      value = {sums[0], sums[1], sums[2], sums[3]};
    else
      value = {narrow_pair<Travelling>(sums[0], sums[1]), narrow_pair<Travelling>(sums[2], sums[3])};
    cuda::push(to + part + place * int{sizeof(Sums)}, to + barrier, value);
  }

  template <typename F>
  FUSED_RNN_DEVICE bool wait(const F& failing) {
    Base::follow();
    return Base::wait(0, failing);
  }
  FUSED_RNN_DEVICE bool wait() {
    return wait([] {});
  }
  using Base::follow;

  FUSED_RNN_DEVICE Vector<float, 2> pair(int contributor, int pair) const {
    const unsigned char* const part = shared_ + read() * copy_bytes + contributor * part_bytes;
    if constexpr (std::is_same_v<Travelling, float>) {
      return reinterpret_cast<const Vector<float, 2>*>(part)[pair];
    } else {
      const uint32_t both = reinterpret_cast<const uint32_t*>(part)[pair];
      return {low_of<Travelling>(both), high_of<Travelling>(both)};
    }
  }

 private:
  unsigned char* const shared_;
  const unsigned own_part_;
};

#endif

}  // namespace fused_rnn::cuda

// The exchange through L2. States lie in global memory, in two copies that take turns, because a block may write one
// while a slower block still reads the other. A counter for each team, which only grows, separates the phases of a
// step. Products read a state from shared memory, where it comes in segments. This works on every GPU and for every
// size, and all blocks must run at the same time.
#pragma once

#include "exchange.h"

namespace fused_rnn::cuda {

struct L2Exchange {
  static constexpr ExchangeId id = ExchangeId::l2;

  // Host half -------------------------------------------------------------------------------------------------------

  // Reserve shared memory for two segments of the longest state, before weights take the rest.
  static void reserve_shared(Layout& layout, const Number& number, Arena& arena) {
    int64_t most = 0;
    for (const StateLayout& s : layout.states)
      most = std::max<int64_t>(most, int64_t{s.size} * std::min(s.segments, 2));
    layout.fetched = static_cast<int>(arena.take(most * number.bytes));
  }

  static void reserve_workspace(Layout& layout, const Number& number, Arena& arena) {
    layout.arrivals = arena.take(layout.teams * int64_t{sizeof(unsigned)});
    layout.failed = arena.take(sizeof(unsigned));
    for (StateLayout& s : layout.states)
      if (s.k) s.exchanged = arena.take(int64_t{2} * layout.teams * s.segments * s.size * number.bytes);
  }

  // Nanoseconds of a phase: stores that must drain, the barrier, and loads that begin anew. The micro-measurement
  // counter_barrier explains 600 to 1000 of them. of_byte is for a byte of a state that a product fetches; the
  // micro-measurement tile_exchange, which loads in place of copying, has 0.047. See cost.h.
  static double of_phase(int parts) { return parts == 1 ? 0 : parts < 64 ? 1660 : 2090; }
  static constexpr double of_byte = 0.0225;

  static Attributes attributes(const Division& division) { return {division.parts > 1}; }

  template <typename S>
  struct Operands {
    S* states[most_states];  // [copies, teams, segments, size]
    unsigned* arrivals;      // [teams], zeroed
    unsigned* failed;        // zero; set to 1 when a block times out
    unsigned* timed_out;     // likewise, for the host to read
  };

  template <typename S>
  static Operands<S> operands(const Layout& layout, unsigned char* workspace, unsigned* timed_out) {
    Operands<S> q{};
    for (int i = 0; i < most_states; ++i) q.states[i] = reinterpret_cast<S*>(workspace + layout.states[i].exchanged);
    q.arrivals = reinterpret_cast<unsigned*>(workspace + layout.arrivals);
    q.failed = reinterpret_cast<unsigned*>(workspace + layout.failed);
    q.timed_out = timed_out;
    return q;
  }

  // Device half -----------------------------------------------------------------------------------------------------

  template <typename S>
  class Device {
   public:
    FUSED_RNN_DEVICE Device(const Operands<S>& q, const Layout& layout, unsigned char* shared, int team)
        : q_(q), layout_(layout), shared_(shared), team_(team) {}

    FUSED_RNN_DEVICE void clear() const {}  // the workspace is zeroed before the kernel

    template <typename Channel>
    FUSED_RNN_DEVICE void put(Channel channel, int r, int k, Computed<S> value) const {
      const StateLayout& s = state(channel);
      const int segment = s.segments > 1 ? k / s.span : 0;
      S* const to = copy(channel, 1 - turn(channel)) + int64_t{segment} * s.size;
      store_l2(to + state_place<S>(r, k - segment * s.span, s.span), narrow<S>(value));
    }

    FUSED_RNN_DEVICE void close() {
      __syncthreads();
      if (layout_.division.parts > 1 && threadIdx.x == 0) add_release(q_.arrivals + team_, 1);
    }

    template <typename... Channels>
    FUSED_RNN_DEVICE bool wait(Channels... channels) {
      turns_ ^= (bit(channels) | ...);
      if (layout_.division.parts == 1) return true;
      bool arrived = true;
      target_ += layout_.division.parts;
      if (threadIdx.x == 0) {
        arrived = wait_for(q_.arrivals + team_, target_, q_.failed);
        if (!arrived) store_relaxed(q_.timed_out, 1);
      }
      return __syncthreads_and(arrived);
    }

    template <typename Channel>
    FUSED_RNN_DEVICE void begin(Channel channel) const {
      fetch(channel, 0);
    }

    // Two segments take turns in shared memory.
    template <typename Channel>
    FUSED_RNN_DEVICE const S* take(Channel channel, int segment) const {
      const StateLayout& s = state(channel);
      if (segment > 0) copy_async_wait<0>();
      __syncthreads();
      if (segment + 1 < s.segments) fetch(channel, segment + 1);
      copy_async_commit();
      return fetched(s, segment);
    }

   private:
    template <typename Channel>
    FUSED_RNN_DEVICE static unsigned bit(Channel channel) {
      return 1u << static_cast<int>(channel);
    }
    template <typename Channel>
    FUSED_RNN_DEVICE const StateLayout& state(Channel channel) const {
      return layout_.states[static_cast<int>(channel)];
    }
    // The copy of a state that is read; the other one is written.
    template <typename Channel>
    FUSED_RNN_DEVICE int turn(Channel channel) const {
      return turns_ >> static_cast<int>(channel) & 1u;
    }
    template <typename Channel>
    FUSED_RNN_DEVICE S* copy(Channel channel, int turn) const {
      const StateLayout& s = state(channel);
      return q_.states[static_cast<int>(channel)] + (int64_t{turn} * layout_.teams + team_) * s.segments * s.size;
    }

    template <typename Channel>
    FUSED_RNN_DEVICE void fetch(Channel channel, int segment) const {
      constexpr int each = 16 / sizeof(S);
      const StateLayout& s = state(channel);
      const S* const from = copy(channel, turn(channel)) + int64_t{segment} * s.size;
      S* const to = fetched(s, segment);
      for (int i = threadIdx.x * each; i < s.size; i += threads * each) copy_async<16>(to + i, from + i);
    }
    FUSED_RNN_DEVICE S* fetched(const StateLayout& s, int segment) const {
      return at<S>(shared_, layout_.fetched) + segment % 2 * s.size;
    }

    const Operands<S>& q_;
    const Layout& layout_;
    unsigned char* const shared_;
    const int team_;
    unsigned target_ = 0;  // the value that the counter must reach
    unsigned turns_ = 0;   // a bit for each channel
  };
};

}  // namespace fused_rnn::cuda

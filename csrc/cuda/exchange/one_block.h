// The exchange of a team of one block: whole states stay in its shared memory, in one copy, and a barrier of the block
// separates the phases of a step. No block waits for another one, so they need not run at the same time.
#pragma once

#include "exchange.h"

namespace fused_rnn::cuda {

struct OneBlockExchange {
  static constexpr ExchangeId id = ExchangeId::one_block;

  static void reserve_shared(Layout& layout, const Number& number, Arena& arena) {
    for (StateLayout& s : layout.states)
      if (s.k) s.local = static_cast<int>(arena.take(int64_t{s.size} * number.bytes));
    layout.fetched = static_cast<int>(arena.take(0));
  }
  static void reserve_workspace(Layout&, const Number&, Arena&) {}
  static double of_phase(int) { return 0; }
  static constexpr double of_byte = 0;
  static Attributes attributes(const Division&) { return {}; }

  template <typename S>
  struct Operands {};

  template <typename S>
  static Operands<S> operands(const Layout&, unsigned char*, unsigned*) {
    return {};
  }

  template <typename S>
  class Device {
   public:
    FUSED_RNN_DEVICE Device(const Operands<S>&, const Layout& layout, unsigned char* shared, int)
        : layout_(layout), shared_(shared) {}

    // Zero the padding, which no unit fills.
    FUSED_RNN_DEVICE void clear() const {
      for (const StateLayout& s : layout_.states)
        for (int i = threadIdx.x; i < s.size; i += threads) at<S>(shared_, s.local)[i] = S{};
    }

    template <typename Channel>
    FUSED_RNN_DEVICE void put(Channel channel, int r, int k, Computed<S> value) const {
      const StateLayout& s = layout_.states[static_cast<int>(channel)];
      at<S>(shared_, s.local)[state_place<S>(r, k, s.span)] = narrow<S>(value);
    }
    FUSED_RNN_DEVICE void close() { __syncthreads(); }
    template <typename... Channels>
    FUSED_RNN_DEVICE bool wait(Channels...) {
      return true;
    }
    template <typename Channel>
    FUSED_RNN_DEVICE void begin(Channel) const {}
    template <typename Channel>
    FUSED_RNN_DEVICE const S* take(Channel channel, int) const {
      return at<S>(shared_, layout_.states[static_cast<int>(channel)].local);
    }

   private:
    const Layout& layout_;
    unsigned char* const shared_;
  };
};

}  // namespace fused_rnn::cuda

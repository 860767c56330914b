// An exchange that is one of two, as the division says. One kernel contains both, so that the second costs no kernels.
#pragma once

#include "exchange.h"

namespace fused_rnn::cuda {

template <typename A, typename B>
struct Either {
  static Attributes attributes(const Division& division) {
    return division.exchange == A::id ? A::attributes(division) : B::attributes(division);
  }

  template <typename S>
  struct Operands {
    bool first;
    typename A::template Operands<S> a;
    typename B::template Operands<S> b;
  };

  template <typename S>
  static Operands<S> operands(const Layout& layout, unsigned char* workspace, unsigned* timed_out) {
    return {layout.division.exchange == A::id, A::template operands<S>(layout, workspace, timed_out),
            B::template operands<S>(layout, workspace, timed_out)};
  }

  template <typename S>
  class Device {
   public:
    FUSED_RNN_DEVICE Device(const Operands<S>& q, const Layout& layout, unsigned char* shared, int team)
        : q_(q), a_(q.a, layout, shared, team), b_(q.b, layout, shared, team) {}

    FUSED_RNN_DEVICE void clear() const { q_.first ? a_.clear() : b_.clear(); }

    template <typename Channel>
    FUSED_RNN_DEVICE void put(Channel channel, int r, int k, Computed<S> value) const {
      q_.first ? a_.put(channel, r, k, value) : b_.put(channel, r, k, value);
    }
    FUSED_RNN_DEVICE void close() { q_.first ? a_.close() : b_.close(); }
    template <typename... Channels>
    FUSED_RNN_DEVICE bool wait(Channels... channels) {
      return q_.first ? a_.wait(channels...) : b_.wait(channels...);
    }
    template <typename Channel>
    FUSED_RNN_DEVICE void begin(Channel channel) const {
      q_.first ? a_.begin(channel) : b_.begin(channel);
    }
    template <typename Channel>
    FUSED_RNN_DEVICE const S* take(Channel channel, int segment) const {
      return q_.first ? a_.take(channel, segment) : b_.take(channel, segment);
    }

   private:
    const Operands<S>& q_;
    typename A::template Device<S> a_;
    typename B::template Device<S> b_;
  };
};

}  // namespace fused_rnn::cuda

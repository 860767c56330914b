// The exchange through L2 by messages, for teams of any size. Each word of a message, 32 bits with two 16-bit values or
// a float, is its own flag. Its place in global memory holds a pattern that no message has; the block that makes the
// word stores it, with its neighbours, and readers poll until the pattern is gone. So a step has no barrier between
// blocks, no fence and no flag beside the data, and words may come one by one in any order. All blocks must run at the
// same time. exchange.h says what the functions promise.
//
// Messages are counted, m = 0, 1, ... for every step that has one, through all tiles of a team; message m goes to slot
// m modulo `slots`. The slots are three *thirds* of `third` messages, so that a third is reused after two others.
// Messages p * third to (p + 1) * third - 1 are *phase* p, which has third p modulo 3. In phase p, when it writes
// message p * third + 1, a block
//   fills  its own places of the third that phase p + 1 will use with the pattern again, and then
//   says   so, by adding to the team's counter with release semantics;
// and every warp, before it polls for the first message of phase p + 1,
//   waits  until all blocks have said so in phases 0 to p, with acquire semantics.
// At least third - 2 whole steps lie between saying and waiting, so the wait ends at once. This is right because
//   polls come after the filling
//      A poll in phase p + 1 comes after the wait, hence after everything that each block did before it said so in
//      phase p: it finds the pattern or what was stored since, never the message of phase p - 2.
//   filling comes after the polls
//      A block that says so in phase p - 1 has received whole messages up to the first one of that phase, hence all of
//      phase p - 2, and orders these reads before that. A block that fills that third in phase p has waited, before it
//      read the first message of phase p, for all to have said so in phase p - 1.
//   a place has one writer
//      The thread that fills a place is the one that stores messages there, so the order of the thread is the order of
//      the place.
// In each phase this is a chain of releases and acquires, and does not depend on words that came. So plain stores fill,
// and ThreadSanitizer sees if one of them is not ordered with a poll. Two thirds would do if a block could conclude
// from the words of others that they have read what came before; but words order nothing, not even within a block
// (split.h).
//
// The sender makes sure that no message has the pattern: a value that equals it is NaN, and is sent as another NaN.
// What a timeout leaves missing is read as the pattern, hence as NaN.
#pragma once

#include "../terms.h"
#include "exchange.h"

// Messages in a third, for states; partial sums take more memory and have half as many.
#ifndef FUSED_RNN_MESSAGE_STEPS
#  define FUSED_RNN_MESSAGE_STEPS 8
#endif

namespace fused_rnn::cuda {

constexpr uint32_t no_message = 0xffffffff, message_of_nan = 0x7fff7fff;

// The device memory of a call's messages; a kernel has one channel.
struct Messages {
  unsigned char* places;  // for each team, full of the pattern
  unsigned* arrivals;     // a counter for each team, `line` words apart, zeroed

  static constexpr int line = 32;  // words: a cache line
};

template <typename Team, typename S, int K, int shares, int octets>
class MessageState;
template <typename Team, int places, typename Travelling, int warps>
class MessageSums;
template <int team>
class MessageTeam;

struct MessageExchange {
  static constexpr ExchangeId id = ExchangeId::messages;
  static constexpr int thirds = 3, state_third = FUSED_RNN_MESSAGE_STEPS, sums_third = FUSED_RNN_MESSAGE_STEPS / 2;
  static_assert(sums_third >= 2, "who fills places has read the first message of the phase");

  // Host half -------------------------------------------------------------------------------------------------------

  static Attributes attributes(int threads) { return {.cooperative = true, .threads = threads}; }

  // The bytes of a team's places: for a state with `values` values, and for partial sums with `values` values per
  // block.
  static constexpr int64_t state_places(int values, int bytes) {
    return int64_t{thirds} * state_third * values * bytes;
  }
  static constexpr int64_t sums_places(int blocks, int values, int bytes) {
    return int64_t{thirds} * sums_third * blocks * blocks * values * bytes;
  }
  static constexpr int64_t counter_bytes = Messages::line * int64_t{sizeof(unsigned)};

  // Device half -----------------------------------------------------------------------------------------------------

  static constexpr int registers = 16;  // extra registers of a thread for a state, compared with clusters

  // The warps that share the sums sent to a block; each adds up what some of the blocks contributed.
  HOST_DEVICE static constexpr int parts(int blocks, int warps) { return blocks < warps ? blocks : warps; }
  static constexpr int sums_bytes(int blocks, int values, int /*bytes*/, int warps) {
    return parts(blocks, warps) * values * int{sizeof(float)};
  }

  template <int blocks>
  using Team = MessageTeam<blocks>;
  template <typename Team, typename S, int K, int shares, int octets>
  using State = MessageState<Team, S, K, shares, octets>;
  template <typename Team, int places, typename Travelling, int warps>
  using Sums = MessageSums<Team, places, Travelling, warps>;
};

// What is initialised before a call: the places and counters of all teams. The kernel is a template, like all kernels,
// so that several files can have it.
struct MessagePreparation {
  Messages messages;
  int64_t words;  // the size of all places
  int teams;
};

template <typename S>
FUSED_RNN_KERNEL prepare_messages(const MessagePreparation p) {
  const int64_t first = int64_t{blockIdx.x} * blockDim.x + threadIdx.x, step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = first; i < p.words; i += step) reinterpret_cast<uint32_t*>(p.messages.places)[i] = no_message;
  for (int64_t i = first; i < int64_t{p.teams} * Messages::line; i += step) p.messages.arrivals[i] = 0;
}

#if FUSED_RNN_SM90

// Words of a message that are stored and loaded together.
template <int count>
using Words = Vector<uint32_t, count>;

// Whether all words have come.
template <int count>
FUSED_RNN_DEVICE bool is_whole(const Words<count>& words) {
  bool whole = true;
  FUSED_RNN_UNROLL
  for (int i = 0; i < count; ++i) whole &= words.values[i] != no_message;
  return whole;
}

// The same words, with a NaN that equals the pattern replaced by another NaN.
template <int count>
FUSED_RNN_DEVICE Words<count> sendable(Words<count> words) {
  FUSED_RNN_UNROLL
  for (int i = 0; i < count; ++i) words.values[i] = words.values[i] == no_message ? message_of_nan : words.values[i];
  return words;
}

template <int count>
FUSED_RNN_DEVICE Words<count> missing_words() {
  Words<count> words;
  FUSED_RNN_UNROLL
  for (int i = 0; i < count; ++i) words.values[i] = no_message;
  return words;
}

// The blocks of a team, as one thread sees them: `team` consecutive blocks of the grid.
template <int team>
class MessageTeam {
 public:
  static constexpr int size = team;
  static constexpr bool ordered = false;  // words order no other memory

  template <typename Q>
  FUSED_RNN_DEVICE explicit MessageTeam(const Q& q) : failed_(q.timed_out), messages_(q.messages) {}

  FUSED_RNN_DEVICE static int rank() { return blockIdx.x % team; }

  template <typename F>
  FUSED_RNN_DEVICE void start(const F& fill) const {
    __syncthreads();
    fill();
    __syncthreads();
  }
  FUSED_RNN_DEVICE void end() const {}

  FUSED_RNN_DEVICE bool alive() const { return alive_; }
  FUSED_RNN_DEVICE void set_alive(bool alive) { alive_ = alive; }

  // For channels: this team's places and its counter.
  FUSED_RNN_DEVICE unsigned char* places(int64_t bytes) const { return messages_.places + blockIdx.x / team * bytes; }
  FUSED_RNN_DEVICE unsigned* arrivals() const { return messages_.arrivals + blockIdx.x / team * Messages::line; }

  // Poll until look() is true for every lane. False after a timeout, by the clock as in clusters.
  template <typename F>
  FUSED_RNN_DEVICE bool wait(const F& look) const {
    if (__all_sync(~0u, look())) return true;
    const long long begin = cycles();
    while (__all_sync(~0u, cycles() - begin <= FUSED_RNN_WAIT_CYCLES))
      if (__all_sync(~0u, look())) return true;
    store_relaxed(failed_, 1);
    return false;
  }

  // Load messages until all their words have come: the `i`th one from from(i), if is_there(i). After a timeout missing
  // words hold the pattern.
  template <int count, int words, typename Is, typename From>
  FUSED_RNN_DEVICE bool receive(Words<words> (&messages)[count], const Is& is_there, const From& from) const {
    FUSED_RNN_UNROLL
    for (int i = 0; i < count; ++i) messages[i] = missing_words<words>();
    return wait([&] {
      FUSED_RNN_UNROLL
      for (int i = 0; i < count; ++i)
        if (is_there(i) && !is_whole(messages[i])) messages[i] = load_message(from(i));
      bool whole = true;
      FUSED_RNN_UNROLL
      for (int i = 0; i < count; ++i) whole &= !is_there(i) || is_whole(messages[i]);
      return whole;
    });
  }

 private:
  unsigned* const failed_;
  const Messages messages_;
  int alive_ = true;  // no wait of this warp has failed
};

// The base of both kinds of channel: the count of messages, their slots, and the rule by which slots are reused. In
// every phase the team's counter grows by `arrivals`.
template <typename Team, int third, int arrivals>
class MessageChannel {
 protected:
  static constexpr unsigned slots = MessageExchange::thirds * third;

  FUSED_RNN_DEVICE explicit MessageChannel(Team& team) : team_(team), counter_(team.arrivals()) {}

  FUSED_RNN_DEVICE bool alive() const { return team_.alive(); }
  FUSED_RNN_DEVICE unsigned count() const { return count_; }
  FUSED_RNN_DEVICE unsigned slot() const { return count_ % slots; }  // the slot of the message that is written
  FUSED_RNN_DEVICE bool fills() const { return count_ % third == 1; }

  // Fill this lane's places in the next third; `first` is its place in the first slot, and slots are `distance` apart.
  template <int words>
  FUSED_RNN_DEVICE void fill(Words<words>* first, int64_t distance) const {
    const unsigned next = (count_ / third + 1) % MessageExchange::thirds * third;
    FUSED_RNN_UNROLL_BY(1)
    for (int i = 0; i < third; ++i) store_l2(first + (next + i) * distance, missing_words<words>());
  }
  FUSED_RNN_DEVICE void say_filled() const { add_release(counter_, 1); }

  // The message that was written is read from now on. False if its places were not filled in time. By whole warps.
  FUSED_RNN_DEVICE bool take_turn() {
    const unsigned message = count_++;
    if (!alive()) return false;
    if (message % third != 0 || message == 0) return true;
    const unsigned target = message / third * arrivals;  // may wrap around
    return team_.wait([&] { return static_cast<int>(load_acquire(counter_) - target) >= 0; });
  }

  Team& team_;

 private:
  unsigned* const counter_;
  unsigned count_ = 0;  // messages that were waited for
};

// A state of K values for each of 8 * `octets` sequences. S is BFloat16, Half, or float, which travels as its terms. A
// slot is [planes, K / 8] groups of 8 rows, one for each sequence, of 16 bytes each, so that warps store and load whole
// lines.
//
// Consecutive warps share a share of K: each brings some of its rows to shared memory, and a barrier of these warps
// makes them all readable. There are two copies, because a warp may still multiply with one when another warp brings
// the next. A block writes no part of a message before these barriers, and those of its sums, have told it that all its
// warps have read the message before.
template <typename Team, typename S, int K, int shares, int octets>
class MessageState : MessageChannel<Team, MessageExchange::state_third, K / 8> {
  using Base = MessageChannel<Team, MessageExchange::state_third, K / 8>;
  using Base::alive, Base::team_;
  static_assert(sizeof(Term<S>) == 2 && K % (8 * shares) == 0, "a share is of whole rows of eight units");
  static constexpr int stride = K + 8;                 // padding against bank conflicts
  static constexpr int planes = terms_of<S> * octets;  // 8 sequences each: all octets of a term, then of the next
  static constexpr int copy_bytes = planes * 8 * stride * int{sizeof(Term<S>)};
  static constexpr int64_t team_bytes = MessageExchange::state_places(planes * 8 * K, int{sizeof(Term<S>)});
  static constexpr int slot_rows = planes * K, share_rows = K / shares;  // the latter in each plane
  // The threads that share a share, and the most rows that each of them brings.
  static constexpr int readers = K / Team::size / 8 * 32, rows_of_plane = (share_rows + readers - 1) / readers,
                       own_rows = planes * rows_of_plane;
  static constexpr int first_barrier = 16 - shares;
  static_assert(first_barrier > 4, "other barriers are those of sums");

 public:
  using Row = Vector<Term<S>, 8>;
  static constexpr int shared_bytes = 2 * copy_bytes;

  FUSED_RNN_DEVICE MessageState(Team& team, unsigned char* shared)
      : Base(team),
        places_(reinterpret_cast<Words<4>*>(team.places(team_bytes))),
        shared_(shared),
        rows_(kept(shared_address(shared))),
        first_(kept(static_cast<int>(threadIdx.x / readers * share_rows + threadIdx.x % readers))),
        to_(kept(rows_ + (first_ % 8 * stride + first_ / 8 * 8) * int{sizeof(Term<S>)})) {}

  FUSED_RNN_DEVICE void expect(int /*share*/) const {}

  FUSED_RNN_DEVICE void own(int k) { own_ = kept(k + static_cast<int>(threadIdx.x % 8)); }

  FUSED_RNN_DEVICE void push(int octet, const Row& row, int term = 0) const {
    if (!alive()) return;
    const unsigned lane = threadIdx.x % 32;
    const int plane = term * octets + octet;
    Words<4>* const to = places_ + plane * K + own_;
    if (lane < 8) {
      store_message(to + Base::slot() * slot_rows, sendable(__builtin_bit_cast(Words<4>, row)));
      if (Base::fills()) Base::fill(to, slot_rows);
    }
    if (Base::fills() && plane == planes - 1) {
      __syncwarp();
      if (lane == 0) Base::say_filled();
    }
  }

  // Calls failing() if it is this wait that fails.
  template <typename F>
  FUSED_RNN_DEVICE bool wait(int share, const F& failing) {
    const unsigned slot = Base::slot();
    const bool was_alive = alive();
    Words<4> rows[own_rows];
    team_.set_alive(receive(rows, slot));
    FUSED_RNN_UNROLL
    for (int i = 0; i < own_rows; ++i)
      if (is_there(i)) store_shared(to_ + Base::count() % 2 * copy_bytes + to(i), rows[i].values);
    barrier_sync(first_barrier + share, readers);
    if (was_alive && !alive()) failing();
    return alive();
  }

  FUSED_RNN_DEVICE void put(int r, int k, S value) const {
    put_terms(at<Term<S>>(shared_, Base::count() % 2 * copy_bytes) + r * stride + k, octets * 8 * stride, value);
  }
  FUSED_RNN_DEVICE SharedAddress address() const { return rows_ + Base::count() % 2 * copy_bytes; }

 private:
  // Whether this thread has an `i`th row, and its distance from the thread's first one in a slot and in shared memory.
  FUSED_RNN_DEVICE static bool is_there(int i) {
    const int before = i % rows_of_plane * readers;
    return before + readers <= share_rows || before + static_cast<int>(threadIdx.x % readers) < share_rows;
  }
  FUSED_RNN_DEVICE static int from(int i) { return i / rows_of_plane * K + i % rows_of_plane * readers; }
  FUSED_RNN_DEVICE static int to(int i) {
    return (i / rows_of_plane * 8 * stride + i % rows_of_plane * readers) * int{sizeof(Term<S>)};
  }

  FUSED_RNN_DEVICE bool receive(Words<4> (&rows)[own_rows], unsigned slot) {
    FUSED_RNN_UNROLL
    for (int i = 0; i < own_rows; ++i) rows[i] = missing_words<4>();
    if (!Base::take_turn()) return false;
    const Words<4>* const first = places_ + slot * slot_rows + first_;
    return team_.receive(rows, is_there, [&](int i) { return first + from(i); });
  }

  Words<4>* const places_;
  unsigned char* const shared_;
  const SharedAddress rows_;
  const int first_;         // the first row that this thread brings
  const SharedAddress to_;  // its address in the first copy
  int own_ = 0;             // the row that this thread writes
};

// Partial sums: `places` places in each block, with four sums each, which travel as floats or rounded to bfloat16. A
// slot is [owners, contributors, places], with the four sums of each.
//
// In the block that owns them every warp adds up what some of the blocks contributed, and puts the result in shared
// memory; so pairs are counted by `parts`. A barrier of the block makes them readable. Another one lies between their
// use and the next wait, as between the use of an operand and the next product. All warps of the block wait.
template <typename Team, int places, typename Travelling, int warps>
class MessageSums : MessageChannel<Team, MessageExchange::sums_third, Team::size> {
  using Base = MessageChannel<Team, MessageExchange::sums_third, Team::size>;
  using Base::alive, Base::team_;
  static constexpr bool as_floats = std::is_same_v<Travelling, float>;
  using Sums = Words<as_floats ? 4 : 2>;
  static constexpr int slot_sums = Team::size * Team::size * places;
  static constexpr int64_t team_bytes = MessageExchange::sums_places(Team::size, places * 4, int{sizeof(Travelling)});

 public:
  static constexpr int parts = MessageExchange::parts(Team::size, warps);
  static constexpr int shared_bytes = parts * places * 4 * int{sizeof(float)};

  FUSED_RNN_DEVICE MessageSums(Team& team, unsigned char* shared)
      : Base(team), places_(reinterpret_cast<Sums*>(team.places(team_bytes))), shared_(shared) {}

  FUSED_RNN_DEVICE void expect() const {}

  FUSED_RNN_DEVICE void contribute(int owner, int place, const float (&sums)[4]) const {
    if (!alive()) return;
    Sums value;
    if constexpr (as_floats)
      value = __builtin_bit_cast(Sums, Vector<float, 4>{sums[0], sums[1], sums[2], sums[3]});
    else
      value = {narrow_pair<Travelling>(sums[0], sums[1]), narrow_pair<Travelling>(sums[2], sums[3])};
    Sums* const to = places_ + (owner * Team::size + Team::rank()) * places + place;
    store_message(to + Base::slot() * slot_sums, sendable(value));
    if (Base::fills()) Base::fill(to, slot_sums);
  }

  // False for all warps of the block if one of them timed out.
  FUSED_RNN_DEVICE bool wait() {
    const bool fills = Base::fills();
    const Sums* const slot = places_ + Base::slot() * slot_sums + Team::rank() * Team::size * places;
    bool come = Base::take_turn();
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (come && (parts == warps || warp < parts)) {
      FUSED_RNN_UNROLL_BY(1)
      for (int place = lane; place < places; place += 32) {
        float total[4] = {};
        FUSED_RNN_UNROLL
        for (int first = 0; first < own; first += together) {
          Sums each[together] = {};
          come = come && team_.receive(
                             each, [](int) { return true; },
                             [&](int i) { return slot + (warp * own + first + i) * places + place; });
          FUSED_RNN_UNROLL
          for (int i = 0; i < together; ++i) add(total, each[i]);
        }
        at<Vector<float, 4>>(shared_, 0)[warp * places + place] = {total[0], total[1], total[2], total[3]};
      }
    }
    team_.set_alive(__syncthreads_and(come));
    if (fills && alive() && threadIdx.x == 0) Base::say_filled();
    return alive();
  }

  FUSED_RNN_DEVICE Vector<float, 2> pair(int part, int pair) const {
    return at<const Vector<float, 2>>(shared_, 0)[part * places * 2 + pair];
  }

 private:
  // The blocks whose sums a warp adds up, and how many of these are in flight at a time.
  static constexpr int own = Team::size / parts, together = own < 8 ? own : 8;
  static_assert(Team::size % parts == 0 && own % together == 0 && places % 32 == 0);

  FUSED_RNN_DEVICE static void add(float (&total)[4], const Sums& sums) {
    FUSED_RNN_UNROLL
    for (int i = 0; i < 4; ++i) {
      if constexpr (as_floats)
        total[i] += __builtin_bit_cast(float, sums.values[i]);
      else
        total[i] += i % 2 ? high_of<Travelling>(sums.values[i / 2]) : low_of<Travelling>(sums.values[i / 2]);
    }
  }

  Sums* const places_;
  unsigned char* const shared_;
};

#endif

}  // namespace fused_rnn::cuda

// From a call to what is launched: how the grid divides the work, where everything stands in shared memory and in the
// workspace, and which weights stay on the chip. Runs on the host.
#pragma once

#include <algorithm>
#include <array>
#include <limits>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "api.h"
#include "backward.h"
#include "cost.h"
#include "forward.h"

namespace fused_rnn::cuda {

// Hands out aligned pieces of memory; without a base address it only counts.
class Arena {
 public:
  explicit Arena(void* base = nullptr) : base_(static_cast<unsigned char*>(base)) {}

  // The offset of a new piece, in bytes.
  template <typename T>
  int64_t take(int64_t size, int64_t alignment = 16) {
    const int64_t offset = round_up(used_, alignment);
    used_ = offset + size * static_cast<int64_t>(sizeof(T));
    return offset;
  }
  template <typename T>
  T* array(int64_t size) {
    const int64_t offset = take<T>(size, 256);
    return base_ ? reinterpret_cast<T*>(base_ + offset) : nullptr;
  }
  int64_t used() const { return used_; }

 private:
  unsigned char* base_;
  int64_t used_ = 0;
};

// Of T, B, I and H: kernels count in 32 bits, up to 8 values for each unit.
constexpr int64_t largest_size = std::numeric_limits<int>::max() / 8;

// What is launched: the operands, what is prepared before, and the size of the grid.
template <typename Q, typename S>
struct Launch {
  Q q;
  Preparation<S> preparation;
  int64_t blocks, shared_bytes, workspace_bytes;
};

// What the plans of both directions have in common. Q is ForwardSequence or BackwardSequence.
template <typename Q, typename S>
class Planner {
 public:
  using Stored = S;

  // What the plan takes, of which a division that does not fit takes too much, even without any weights in shared
  // memory.
  int64_t blocks() const { return int64_t{q_.teams} * q_.parts; }
  int64_t shared_bytes() const { return shared_bytes_; }
  bool possible() const { return shared_bytes_ <= chip_.shared_bytes && blocks() <= chip_.multiprocessors; }

  // The plan in figures.
  Plan plan() {
    Plan plan{};
    plan.division = {q_.sequences, q_.parts, 1};
    for (const State<S>* s : states()) plan.division.segments = std::max(plan.division.segments, s->segments);
    plan.teams = q_.teams;
    for (const ProductWork& p : work().products) {
      plan.held += static_cast<int>(p.blocks - p.resident - p.streamed);
      plan.resident += static_cast<int>(p.resident);
      plan.streamed += static_cast<int>(p.streamed);
    }
    plan.shared_bytes = shared_bytes_;
    plan.workspace_bytes = launch(nullptr).workspace_bytes;
    plan.nanoseconds = nanoseconds();
    return plan;
  }

  // The plan with its operands in a workspace; without one to learn its size.
  Launch<Q, S> launch(void* workspace) {
    Arena arena(workspace);
    Launch<Q, S> launch{};
    for (const Weights& w : weights()) {
      Packing<S>& p = launch.preparation.packings[launch.preparation.count++];
      p = w.packing;
      p.parts = q_.parts;
      p.depth = w.state->depth;
      p.to = arena.array<S>(p.size());
      w.product->packed = p.to;
    }
    launch.preparation.cleared = arena.array<uint32_t>(0);
    const int64_t start = arena.used();
    q_.arrivals = arena.array<unsigned>(q_.teams);
    q_.failed = arena.array<unsigned>(1);
    for (State<S>* s : states())
      if (!q_.local) s->exchanged = arena.array<S>(int64_t{2} * q_.teams * s->segments * s->size);
    launch.preparation.words = (arena.used() - start) / 4;
    launch.q = q_;
    launch.blocks = blocks();
    launch.shared_bytes = shared_bytes_;
    launch.workspace_bytes = arena.used();
    return launch;
  }

 protected:
  // Weights that a product multiplies a state with; the packing's parts, depth and place are filled in later.
  struct Weights {
    ProductPlan<S>* product;
    State<S>* state;
    Packing<S> packing;
  };

  // phases: of a step, each ended by a meeting of the team.
  Planner(const Layer& layer, const Chip& chip, int phases) : chip_(chip), phases_(phases) {
    // larger sizes than the kernels can count are refused before they run
    const auto number = [](int64_t size) { return static_cast<int>(std::min(size, largest_size)); };
    q_.T = number(layer.T), q_.B = number(layer.B), q_.I = number(layer.I), q_.H = number(layer.H);
    q_.reverse = layer.reverse;
    q_.lengths = layer.lengths;
    q_.timed_out = layer.timed_out;
    q_.keep_h = static_cast<const S*>(layer.keep_h), q_.keep_c = static_cast<const S*>(layer.keep_c);
  }

  // The states and products that the cell has; weights of the first products are the first to stay on the chip.
  virtual std::vector<State<S>*> states() = 0;
  virtual std::vector<Weights> weights() = 0;
  virtual void set_depths() = 0;
  // Everything in shared memory but states and weights.
  virtual void place(Arena&) = 0;

  using Key = std::array<int64_t, 8>;
  using Known = std::map<Key, Division>;

  // Choose the division that costs least, which is remembered. Finer parts than `most_parts` would leave tiles of
  // outputs partly empty.
  void choose(int64_t most_parts, const Division& forced, Known& known) {
    static std::mutex mutex;
    const std::lock_guard<std::mutex> lock(mutex);
    const Key key{q_.B,         q_.I,           q_.H, chip_.multiprocessors, chip_.shared_bytes, forced.sequences,
                  forced.parts, forced.segments};
    if (known.count(key) == 0) known[key] = best(most_parts, forced);
    try_out(known[key]);
  }

  Q q_{};

 private:
  // What a division comes to: whether it does not fit, and its cost or, where it does not, the bytes that it would
  // take.
  using Cost = std::pair<bool, double>;

  Division best(int64_t most_parts, const Division& forced) {
    Division best;
    Cost least;
    for (const int sequences : tiles(forced))
      for (const int parts : team_sizes(sequences, most_parts, forced))
        for (const int segments : counts_of_segments(sequences, forced)) {
          const Division division{sequences, parts, segments};
          const Cost cost = try_out(division);
          if (best.sequences == 0 || cost < least) best = division, least = cost;
        }
    return best;
  }

  std::vector<int> tiles(const Division& forced) const {
    if (forced.sequences > 0) return {forced.sequences};
    std::vector<int> found{tile_sequences};
    while (found.back() < std::min(q_.B, 64)) found.push_back(2 * found.back());
    return found;
  }

  std::vector<int> team_sizes(int sequences, int64_t most_parts, const Division& forced) const {
    if (forced.parts > 0) return {forced.parts};
    const int most = static_cast<int>(std::min<int64_t>(most_parts, chip_.multiprocessors));
    const int at_once = static_cast<int>(chip_.multiprocessors / divide_up(q_.B, sequences));  // a team for each tile
    std::vector<int> found;
    if (at_once > 1) found.push_back(std::min(most, at_once));
    for (int parts = 1; parts < most; parts *= 2) found.push_back(parts);
    found.push_back(most);
    return found;
  }

  // Until a segment is small beside what else is in shared memory.
  std::vector<int> counts_of_segments(int sequences, const Division& forced) {
    if (forced.segments > 0) return {forced.segments};
    const int64_t most = divide_up(deepest(), block_depth);
    const int64_t bytes = sequences * most * block_depth * int64_t{sizeof(S)};
    std::vector<int> found{1};
    while (found.back() < most && bytes / found.back() > chip_.shared_bytes / 16)
      found.push_back(static_cast<int>(std::min<int64_t>(2 * found.back(), most)));
    return found;
  }

  int64_t deepest() {
    set_depths();
    int64_t depth = 0;
    for (const State<S>* s : states()) depth = std::max<int64_t>(depth, s->depth);
    return depth;
  }

  Cost try_out(const Division& d) {
    q_.sequences = d.sequences;
    q_.units = static_cast<int>(divide_up(q_.H, d.parts));
    q_.parts = static_cast<int>(divide_up(q_.H, q_.units));
    q_.features = static_cast<int>(divide_up(q_.I, q_.parts));
    const int64_t teams = std::max<int64_t>(1, chip_.multiprocessors / q_.parts);
    q_.teams = static_cast<int>(std::min(divide_up(q_.B, d.sequences), teams));
    q_.local = q_.parts == 1 && d.segments == 1;
    lay_out(d.segments);
    if (q_.local && !possible()) {
      q_.local = false;
      lay_out(d.segments);
    }
    return possible() ? Cost{false, nanoseconds()} : Cost{true, static_cast<double>(shared_bytes_)};
  }

  void lay_out(int segments) {
    const int64_t span = round_up(divide_up(deepest(), segments), block_depth);
    shared_bytes_ = q_.sequences * span * int64_t{sizeof(S)};
    if (shared_bytes_ > chip_.shared_bytes) return;  // and sizes might not even be numbers that the kernels can count
    for (State<S>* s : states()) set_segments(*s, span);
    for (const Weights& w : weights()) set_division(*w.product, w.packing.gates * w.packing.own, *w.state);
    Arena arena;
    place(arena);
    int64_t fetched = 0;
    for (State<S>* s : states()) {
      if (q_.local) s->local = static_cast<int>(arena.take<S>(s->size));
      fetched = std::max<int64_t>(fetched, int64_t{s->size} * std::min(s->segments, 2));
    }
    q_.segments = static_cast<int>(arena.take<S>(q_.local ? 0 : fetched));
    make_resident(arena);
    shared_bytes_ = arena.used();
  }

  void set_segments(State<S>& s, int64_t span) const {
    s.span = static_cast<int>(std::min(span, round_up(s.depth, block_depth)));
    s.segments = static_cast<int>(divide_up(s.depth, s.span));
    s.size = state_size<S>(q_.sequences, s.span);
  }

  static void set_division(ProductPlan<S>& p, int outputs, const State<S>& s) {
    p.outputs = outputs;
    p.tiles = static_cast<int>(divide_up(outputs, block_outputs));
    p.depth_blocks = static_cast<int>(divide_up(s.depth, block_depth));
    p.span_blocks = s.span / block_depth;
    p.groups = std::min(p.tiles, warps);
    p.parts = std::min(warps / p.groups, p.span_blocks);
  }

  // Blocks of weights that the warp with the most takes.
  static int64_t blocks_of_warp(const ProductPlan<S>& p) {
    const int64_t full = p.depth_blocks / p.span_blocks, rest = p.depth_blocks % p.span_blocks;
    return divide_up(p.tiles, p.groups) * (full * divide_up(p.span_blocks, p.parts) + divide_up(rest, p.parts));
  }

  // Give what is left of shared memory to weights that registers do not hold.
  void make_resident(Arena& arena) {
    const std::vector<Weights> products = weights();
    for (size_t nth = 0; nth < products.size(); ++nth) {
      ProductPlan<S>& p = *products[nth].product;
      const int64_t wanted = blocks_of_warp(p) - held(products.size(), nth);
      const int64_t room = (chip_.shared_bytes - round_up(arena.used(), 16)) / (block_bytes * warps);
      p.resident = static_cast<int>(std::max<int64_t>(0, std::min(wanted, room)));
      p.shared = static_cast<int>(arena.take<S>(p.resident * int64_t{warps} * block_size));
    }
  }

  static int64_t held(size_t products, size_t nth) {
    return held_blocks<S>(static_cast<int>(products), static_cast<int>(nth));
  }

  // What a step does, as far as it takes time.
  Work work() {
    Work work{q_.sequences, q_.parts, blocks(), phases_, divide_up(int64_t{q_.sequences} * q_.units, threads), {}};
    const std::vector<Weights> all = weights();
    for (size_t nth = 0; nth < all.size(); ++nth) {
      const ProductPlan<S>& p = *all[nth].product;
      const State<S>& s = *all[nth].state;
      const int64_t blocks = blocks_of_warp(p), held = std::min(blocks, Planner::held(all.size(), nth));
      work.products.push_back({blocks, p.resident, blocks - held - p.resident, s.segments, 0});
      if (!q_.local) work.products.back().fetched_bytes = int64_t{s.size} * s.segments * int64_t{sizeof(S)};
    }
    return work;
  }

  // Of a step of all tiles.
  double nanoseconds() {
    const int64_t in_turn = divide_up(divide_up(q_.B, q_.sequences), q_.teams);
    return static_cast<double>(in_turn) * cost::of_step<S>(work(), chip_);
  }

  static constexpr int64_t block_bytes = int64_t{block_size} * sizeof(S);
  const Chip chip_;
  const int phases_;
  int64_t shared_bytes_ = 0;
};

template <typename T>
int64_t sums_size(const T& q, int parts, int outputs) {
  return int64_t{parts} * q.sequences * sums_stride(outputs);
}

template <typename Cell, Modulates modulates, typename S>
class ForwardPlanner final : public Planner<ForwardSequence<S>, S> {
  using Base = Planner<ForwardSequence<S>, S>;
  using Weights = typename Base::Weights;
  using C = Computed<S>;
  using Base::q_;
  static constexpr bool multiplicative = modulates != Modulates::nothing, of_input = modulates == Modulates::input;

 public:
  ForwardPlanner(const ForwardCall& call, const Chip& chip, const Division& forced)
      : Base(call, chip, 1 + Cell::reset_before + multiplicative), call_(call) {
    const auto array = [](const void* p) { return static_cast<const S*>(p); };
    q_.projected = array(call.projected), q_.x = array(call.input);
    q_.h_0 = array(call.h_0), q_.c_0 = array(call.c_0);
    q_.bias_ih = array(call.bias_ih), q_.bias_hh = array(call.bias_hh), q_.bias_m = array(call.bias_m);
    q_.output = static_cast<S*>(call.output), q_.h_n = static_cast<S*>(call.h_n);
    q_.c_n = static_cast<S*>(call.c_n);
    q_.cells = static_cast<S*>(call.cells), q_.saved = static_cast<S*>(call.saved);
    static typename Base::Known known;
    this->choose(divide_up(q_.H, divide_up(block_outputs, Cell::gates)), forced, known);
  }

 private:
  std::vector<State<S>*> states() override {
    std::vector<State<S>*> all{&q_.h};
    if (Cell::reset_before) all.push_back(&q_.s);
    if (multiplicative) all.push_back(&q_.x_hat);
    return all;
  }

  void set_depths() override {
    q_.h.depth = q_.s.depth = q_.H;
    q_.x_hat.depth = q_.I;
  }

  std::vector<Weights> weights() override {
    const auto array = [](const void* p) { return static_cast<const S*>(p); };
    const int G = Cell::reset_before ? 2 : Cell::gates, units = q_.units;
    const int64_t H = q_.H, I = q_.I;
    const S* const U = array(call_.weight_hh);
    State<S>* const state = modulates == Modulates::hidden ? &q_.x_hat : &q_.h;
    std::vector<Weights> all{{&q_.recurrent, state, {U, nullptr, 0, G, q_.H, units, 0, H * H, H, 1}}};
    if (Cell::reset_before)
      all.push_back({&q_.candidate, &q_.s, {U + 2 * H * H, nullptr, 0, 1, q_.H, units, 0, 0, H, 1}});
    if (of_input) {
      const S* const W = array(call_.weight_ih);
      all.push_back({&q_.input, &q_.x_hat, {W, nullptr, 0, Cell::gates, q_.H, units, 0, H * I, I, 1}});
    }
    if (multiplicative) {
      const S* const U_m = array(call_.weight_mhh);
      all.push_back({&q_.modulation, &q_.h, {U_m, nullptr, 0, 1, q_.I, q_.features, 0, 0, H, 1}});
    }
    return all;
  }

  void place(Arena& arena) override {
    const int64_t n = q_.sequences, units = q_.units;
    const int columns = staged_stride<S>(of_input ? q_.features : q_.units);
    const auto sums = [&](const ProductPlan<S>& p) { return sums_size(q_, p.parts, p.outputs); };
    q_.limits = static_cast<int>(arena.take<int>(n));
    q_.states = static_cast<int>(arena.take<C>(n * units * (1 + Cell::has_cell_state + Cell::reset_before)));
    q_.staged = static_cast<int>(arena.take<S>(2 * forward_staged<Cell, modulates> * n * columns));
    q_.biases = static_cast<int>(arena.take<C>(2 * Cell::gates * units + q_.features));
    // of an absent product the sums take nothing
    q_.sums = static_cast<int>(arena.take<C>(std::max({sums(q_.recurrent), sums(q_.candidate), sums(q_.modulation)})));
    q_.more_sums = static_cast<int>(arena.take<C>(sums(q_.input)));
  }

  const ForwardCall call_;
};

template <typename Cell, Modulates modulates, typename S>
class BackwardPlanner final : public Planner<BackwardSequence<S>, S> {
  using Base = Planner<BackwardSequence<S>, S>;
  using Weights = typename Base::Weights;
  using C = Computed<S>;
  using Base::q_;
  static constexpr bool multiplicative = modulates != Modulates::nothing, of_hidden = modulates == Modulates::hidden;

 public:
  BackwardPlanner(const BackwardCall& call, const Chip& chip, const Division& forced)
      : Base(call, chip, 1 + Cell::reset_before + multiplicative), call_(call) {
    const auto array = [](const void* p) { return static_cast<const S*>(p); };
    q_.x = array(call.input), q_.h_0 = array(call.h_0), q_.c_0 = array(call.c_0);
    q_.output = array(call.output), q_.cells = array(call.cells), q_.saved = array(call.saved);
    q_.d_output = array(call.d_output), q_.d_h_n = array(call.d_h_n), q_.d_c_n = array(call.d_c_n);
    q_.d_cells = array(call.d_cells);
    q_.d_h_0 = static_cast<S*>(call.d_h_0), q_.d_c_0 = static_cast<S*>(call.d_c_0);
    q_.d = static_cast<S*>(call.d), q_.d_x = static_cast<S*>(call.d_input);
    q_.gradient_clip = static_cast<C>(call.gradient_clip);
    static typename Base::Known known;
    this->choose(divide_up(q_.H, block_outputs), forced, known);
  }

 private:
  std::vector<State<S>*> states() override {
    std::vector<State<S>*> all{&q_.d_gates};
    if (Cell::reset_before || (Cell::n_apart && multiplicative)) all.push_back(&q_.d_n);
    if (has_q<Cell>) all.push_back(&q_.d_q);
    if (multiplicative) all.push_back(&q_.d_m);
    return all;
  }

  void set_depths() override {
    q_.d_gates.depth = gates_together<Cell> * q_.H;
    q_.d_n.depth = q_.d_q.depth = q_.H;
    q_.d_m.depth = q_.I;
  }

  std::vector<Weights> weights() override {
    const auto array = [](const void* p) { return static_cast<const S*>(p); };
    const int64_t H = q_.H, I = q_.I;
    const S* const U = array(call_.weight_hh);
    const auto of_units = [&](const S* from) { return Packing<S>{from, nullptr, 0, 1, q_.H, q_.units, 0, 0, 1, H}; };
    const auto of_features = [&](const S* from) {
      return Packing<S>{from, nullptr, 0, 1, q_.I, q_.features, 0, 0, 1, I};
    };
    std::vector<Weights> all;
    if (!of_hidden) all.push_back({&q_.recurrent, &q_.d_gates, of_units(U)});
    if (Cell::n_apart) all.push_back({&q_.recurrent_n, has_q<Cell> ? &q_.d_q : &q_.d_n, of_units(U + 2 * H * H)});
    if (multiplicative) {
      const S* const W = of_hidden ? U : array(call_.weight_ih);
      all.push_back({&q_.input, &q_.d_gates, of_features(W)});
      if (Cell::n_apart) all.push_back({&q_.input_n, &q_.d_n, of_features(W + 2 * H * I)});
      all.push_back({&q_.modulation, &q_.d_m, of_units(array(call_.weight_mhh))});
    }
    return all;
  }

  void place(Arena& arena) override {
    const int64_t n = q_.sequences, units = q_.units;
    q_.limits = static_cast<int>(arena.take<int>(n));
    q_.states = static_cast<int>(arena.take<C>(n * units * (1 + Cell::has_cell_state)));
    q_.staged = static_cast<int>(arena.take<S>(2 * backward_staged<Cell> * n * staged_stride<S>(q_.units)));
    const int parts = q_.recurrent.parts + q_.recurrent_n.parts + q_.modulation.parts;
    q_.sums = static_cast<int>(arena.take<C>(sums_size(q_, parts, q_.units)));
    q_.more_sums = static_cast<int>(arena.take<C>(sums_size(q_, q_.input.parts + q_.input_n.parts, q_.input.outputs)));
  }

  const BackwardCall call_;
};

}  // namespace fused_rnn::cuda

// From a call to what is launched: how the grid divides the work, where everything stands in shared memory and in the
// workspace, and which weights stay on the chip. Runs on the host.
#pragma once

#include <algorithm>
#include <array>
#include <limits>
#include <map>
#include <mutex>
#include <vector>

#include "api.h"
#include "backward.h"
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

// Clock cycles that a step is thought to take, to compare plans by. Rough figures for Hopper, of published
// measurements and arithmetic; not yet measured with these kernels.
namespace cost {
constexpr double meeting = 1700, fetch = 700, next_segment = 250, product = 100;
constexpr double shared_bandwidth = 128;           // bytes per cycle
constexpr double l2_bandwidth = 24, l2_port = 64;  // of each multiprocessor when all read, and at most
constexpr double matrix_block = 25;                // a block of weights times 8 sequences, for each scheduler
constexpr double multiply_block = 256, double_block = 512;
}  // namespace cost

// Of T, B, I and H: kernels count in 32 bits, up to 8 values for each unit.
constexpr int64_t largest_size = std::numeric_limits<int>::max() / 8;

template <typename Q, typename S>
struct Plan {
  Q q;
  Preparation<S> preparation;
  int64_t blocks, shared_bytes, workspace_bytes;
};

// What the plans of both directions have in common. Q is ForwardSequence or BackwardSequence.
template <typename Q, typename S>
class Planner {
 public:
  using Stored = S;

  // Whether there is enough shared memory, if need be without any weights in it.
  bool possible() const { return shared_bytes_ <= chip_.shared_bytes; }

  // Whether some weights stay neither in registers nor in shared memory.
  bool streams() {
    const std::vector<Weights> products = weights();
    for (size_t nth = 0; nth < products.size(); ++nth)
      if (streamed_blocks(*products[nth].product, held(products.size(), nth)) > 0) return true;
    return false;
  }

  // The plan with its operands in a workspace; without one to learn its size.
  Plan<Q, S> plan(void* workspace) {
    Arena arena(workspace);
    Plan<Q, S> plan{};
    for (const Weights& w : weights()) {
      Packing<S>& p = plan.preparation.packings[plan.preparation.count++];
      p = w.packing;
      p.parts = q_.parts;
      p.depth = w.state->depth;
      p.to = arena.array<S>(p.size());
      w.product->packed = p.to;
    }
    plan.preparation.cleared = arena.array<uint32_t>(0);
    const int64_t start = arena.used();
    q_.arrivals = arena.array<unsigned>(q_.teams);
    q_.failed = arena.array<unsigned>(1);
    for (State<S>* s : states())
      if (!q_.local) s->exchanged = arena.array<S>(int64_t{2} * q_.teams * s->segments * s->size);
    plan.preparation.words = (arena.used() - start) / 4;
    plan.q = q_;
    plan.blocks = int64_t{q_.teams} * q_.parts;
    plan.shared_bytes = shared_bytes_;
    plan.workspace_bytes = arena.used();
    return plan;
  }

 protected:
  // Weights that a product multiplies a state with; the packing's parts, depth and place are filled in later.
  struct Weights {
    ProductPlan<S>* product;
    State<S>* state;
    Packing<S> packing;
  };

  Planner(const Layer& layer, const Chip& chip) : chip_(chip) {
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

  // How a plan may be: the tile of sequences, the parts of a team, and the most bytes of a segment of a state.
  struct Candidate {
    int sequences, parts;
    int64_t segment_bytes;
  };
  using Key = std::array<int64_t, 7>;

  // Choose the plan that costs least, which is remembered. Finer parts than `most_parts` would leave tiles of outputs
  // partly empty; a step has so many phases.
  void choose(int64_t most_parts, int phases, std::map<Key, Candidate>& known) {
    static std::mutex mutex;
    const std::lock_guard<std::mutex> lock(mutex);
    const Key key{
        q_.B, q_.I, q_.H, chip_.multiprocessors, chip_.shared_bytes, chip_.forced_sequences, chip_.forced_parts};
    if (known.count(key) == 0) known[key] = best(most_parts, phases);
    try_out(known[key], phases);
  }

  Q q_{};

 private:
  Candidate best(int64_t most_parts, int phases) {
    Candidate best{tile_sequences, 1, chip_.shared_bytes};
    double least = std::numeric_limits<double>::infinity();
    const auto compare = [&](int sequences, int64_t parts) {
      for (const int64_t share : {1, 4, 8, 16}) {  // of shared memory for a segment
        const Candidate candidate{sequences, static_cast<int>(parts), chip_.shared_bytes / share};
        const double cycles = try_out(candidate, phases);
        if (cycles < least) best = candidate, least = cycles;
      }
    };
    if (chip_.forced_parts > 0) {
      best.sequences = chip_.forced_sequences, best.parts = chip_.forced_parts;
      compare(best.sequences, best.parts);
      return best;
    }
    const int64_t most = std::min<int64_t>(most_parts, chip_.multiprocessors);
    for (int sequences = tile_sequences; sequences <= 64; sequences *= 2) {
      const int64_t at_once = chip_.multiprocessors / divide_up(q_.B, sequences);  // parts, with a team for each tile
      if (at_once > 1) compare(sequences, std::min(most, at_once));
      for (int64_t parts = 1; parts < most; parts *= 2) compare(sequences, parts);
      compare(sequences, most);
      if (sequences >= q_.B) break;
    }
    return best;
  }

  // Lay out a plan and estimate its cost, which is infinite if it does not fit.
  double try_out(const Candidate& c, int phases) {
    q_.sequences = c.sequences;
    q_.units = static_cast<int>(divide_up(q_.H, c.parts));
    q_.parts = static_cast<int>(divide_up(q_.H, q_.units));
    q_.features = static_cast<int>(divide_up(q_.I, q_.parts));
    const int64_t teams = std::max<int64_t>(1, chip_.multiprocessors / q_.parts);
    q_.teams = static_cast<int>(std::min(divide_up(q_.B, c.sequences), teams));
    q_.local = q_.parts == 1;
    lay_out(c.segment_bytes);
    if (q_.local && !possible()) {
      q_.local = false;
      lay_out(c.segment_bytes);
    }
    return possible() ? cycles(phases) : std::numeric_limits<double>::infinity();
  }

  void lay_out(int64_t segment_bytes) {
    set_depths();
    for (State<S>* s : states()) set_segments(*s, segment_bytes);
    for (const Weights& w : weights()) set_division(*w.product, w.packing.gates * w.packing.own, *w.state);
    Arena arena;
    place(arena);
    int64_t segments = 0;
    for (State<S>* s : states()) {
      if (q_.local) s->local = static_cast<int>(arena.take<S>(s->size));
      segments = std::max<int64_t>(segments, int64_t{s->size} * std::min(s->segments, 2));
    }
    q_.segments = static_cast<int>(arena.take<S>(q_.local ? 0 : segments));
    make_resident(arena);
    shared_bytes_ = arena.used();
  }

  void set_segments(State<S>& s, int64_t segment_bytes) const {
    int64_t span = round_up(s.depth, block_depth);
    const int64_t room = segment_bytes / int64_t{sizeof(S)} - state_size<S>(q_.sequences, 0);  // for values
    if (!q_.local) span = std::min(span, std::max<int64_t>(1, room / q_.sequences / block_depth) * block_depth);
    s.span = static_cast<int>(span);
    s.segments = static_cast<int>(divide_up(s.depth, span));
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

  static int64_t streamed_blocks(const ProductPlan<S>& p, int64_t held) {
    return std::max<int64_t>(0, blocks_of_warp(p) - held - p.resident);
  }

  static int64_t held(size_t products, size_t nth) {
    return held_blocks<S>(static_cast<int>(products), static_cast<int>(nth));
  }

  double cycles(int phases) {
    const double active = static_cast<double>(q_.teams) * q_.parts;
    const double l2 = std::min(cost::l2_port, cost::l2_bandwidth * chip_.multiprocessors / active);
    const double block = std::is_same_v<S, double> ? cost::double_block
                         : on_tensor_cores<S>      ? cost::matrix_block
                                                   : cost::multiply_block;
    double sum = q_.parts > 1 ? phases * cost::meeting : 0;
    const std::vector<Weights> products = weights();
    for (size_t nth = 0; nth < products.size(); ++nth) {
      const ProductPlan<S>& p = *products[nth].product;
      const State<S>& s = *products[nth].state;
      const double blocks = blocks_of_warp(p), tiles = q_.sequences / tile_sequences;
      const auto streamed = static_cast<double>(streamed_blocks(p, held(products.size(), nth)));
      sum += cost::product + blocks * tiles * block * warps / 4;
      sum += tiles * warps * block_bytes * (p.resident / cost::shared_bandwidth + streamed / l2);
      if (!q_.local) {
        sum += cost::fetch + cost::next_segment * (s.segments - 1);
        sum += static_cast<double>(s.size) * s.segments * sizeof(S) / l2;
      }
    }
    return sum * static_cast<double>(divide_up(divide_up(q_.B, q_.sequences), q_.teams));
  }

  static constexpr int64_t block_bytes = int64_t{block_size} * sizeof(S);
  const Chip chip_;
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
  ForwardPlanner(const ForwardCall& call, const Chip& chip) : Base(call, chip), call_(call) {
    const auto array = [](const void* p) { return static_cast<const S*>(p); };
    q_.projected = array(call.projected), q_.x = array(call.input);
    q_.h_0 = array(call.h_0), q_.c_0 = array(call.c_0);
    q_.bias_ih = array(call.bias_ih), q_.bias_hh = array(call.bias_hh), q_.bias_m = array(call.bias_m);
    q_.output = static_cast<S*>(call.output), q_.h_n = static_cast<S*>(call.h_n);
    q_.c_n = static_cast<S*>(call.c_n);
    q_.cells = static_cast<S*>(call.cells), q_.saved = static_cast<S*>(call.saved);
    static std::map<typename Base::Key, typename Base::Candidate> known;
    this->choose(divide_up(q_.H, divide_up(block_outputs, Cell::gates)), 1 + Cell::reset_before + multiplicative,
                 known);
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
  BackwardPlanner(const BackwardCall& call, const Chip& chip) : Base(call, chip), call_(call) {
    const auto array = [](const void* p) { return static_cast<const S*>(p); };
    q_.x = array(call.input), q_.h_0 = array(call.h_0), q_.c_0 = array(call.c_0);
    q_.output = array(call.output), q_.cells = array(call.cells), q_.saved = array(call.saved);
    q_.d_output = array(call.d_output), q_.d_h_n = array(call.d_h_n), q_.d_c_n = array(call.d_c_n);
    q_.d_cells = array(call.d_cells);
    q_.d_h_0 = static_cast<S*>(call.d_h_0), q_.d_c_0 = static_cast<S*>(call.d_c_0);
    q_.d = static_cast<S*>(call.d), q_.d_x = static_cast<S*>(call.d_input);
    q_.gradient_clip = static_cast<C>(call.gradient_clip);
    static std::map<typename Base::Key, typename Base::Candidate> known;
    this->choose(divide_up(q_.H, block_outputs), 1 + Cell::reset_before + multiplicative, known);
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

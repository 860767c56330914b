// What the plans of both directions have in common. The planner lays out one division of the work after the other:
// where everything stands in shared memory, which weights stay on the chip, and by these what a step costs. It keeps
// the cheapest and makes of it what is launched. Runs on the host.
#pragma once

#include <algorithm>
#include <array>
#include <limits>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "api.h"
#include "block.h"
#include "cost.h"

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

// Q is ForwardSequence or BackwardSequence.
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

  // A step of the cell: its phases, each ended by a meeting of the team; the values of a unit, and those of a feature.
  struct Step {
    int phases, gates, scaled;
  };

  Planner(const Layer& layer, const Chip& chip, const Step& step) : chip_(chip), step_(step) {
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
    // also with units by the 16 bytes, so that their columns are copied in such pieces
    const auto add = [&](int parts) {
      const int64_t units = round_up(divide_up(q_.H, parts), 16 / sizeof(S));
      for (const int64_t count : {int64_t{parts}, divide_up(q_.H, units)}) found.push_back(static_cast<int>(count));
    };
    if (at_once > 1) add(std::min(most, at_once));
    for (int parts = 1; parts < most; parts *= 2) add(parts);
    add(most);
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

  // What a step of a tile takes of a block.
  Work work() {
    const auto of_thread = [&](int of_sequence) { return divide_up(int64_t{q_.sequences} * of_sequence, threads); };
    const int64_t values = step_.gates * of_thread(q_.units) + step_.scaled * of_thread(q_.features);
    const bool aligned = q_.units * sizeof(S) % 16 == 0 && q_.H * sizeof(S) % 16 == 0;
    Work work{q_.sequences / tile_sequences, q_.parts, step_.phases, values, aligned ? 0 : step_.gates, {}};
    const std::vector<Weights> all = weights();
    for (size_t nth = 0; nth < all.size(); ++nth) {
      const ProductPlan<S>& p = *all[nth].product;
      const State<S>& s = *all[nth].state;
      const int64_t blocks = blocks_of_warp(p), held = std::min(blocks, Planner::held(all.size(), nth));
      const int64_t all_blocks = int64_t{p.tiles} * p.depth_blocks;
      work.products.push_back({all_blocks, blocks, p.resident, blocks - held - p.resident, s.segments, 0});
      if (!q_.local) work.products.back().fetched_bytes = int64_t{s.size} * s.segments * int64_t{sizeof(S)};
    }
    return work;
  }

  // Of a step of all tiles.
  double nanoseconds() {
    const int64_t in_turn = divide_up(divide_up(q_.B, q_.sequences), q_.teams);
    return static_cast<double>(in_turn) * cost::nanoseconds<S>(work());
  }

  static constexpr int64_t block_bytes = int64_t{block_size} * sizeof(S);
  const Chip chip_;
  const Step step_;
  int64_t shared_bytes_ = 0;
};

}  // namespace fused_rnn::cuda

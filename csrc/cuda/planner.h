// The choice of a division: every candidate is laid out, and the cheapest that fits is taken. It is a pure function of
// description, device and what is forced, and is remembered, because it takes longer than a launch. Runs on the host.
#pragma once

#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "cost.h"

namespace fused_rnn::cuda {

namespace planning {

inline std::vector<int> tiles(const Description& d, const Division& forced) {
  if (forced.sequences > 0) return {forced.sequences};
  std::vector<int> found{octet};
  while (found.back() < std::min<int64_t>(d.B, 64)) found.push_back(2 * found.back());
  return found;
}

inline std::vector<int> team_sizes(const Description& d, const Chip& chip, int sequences, const Division& forced) {
  if (forced.exchange == ExchangeId::one_block) return {1};
  if (forced.parts > 0) return {forced.parts};
  const int most = static_cast<int>(std::min<int64_t>(d.most_parts, chip.multiprocessors));
  const int at_once = static_cast<int>(chip.multiprocessors / divide_up(d.B, sequences));  // if all tiles run at once
  std::vector<int> found;
  // also with units in multiples of 16 bytes, so that their columns are copied in such pieces
  const auto add = [&](int parts) {
    const int64_t units = round_up(divide_up(d.H, parts), 16 / d.number.bytes);
    for (const int64_t count : {int64_t{parts}, divide_up(d.H, units)}) found.push_back(static_cast<int>(count));
  };
  if (at_once > 1) add(std::min(most, at_once));
  for (int parts = 1; parts < most; parts *= 2) add(parts);
  add(most);
  return found;
}

// Candidate numbers of segments: doubled until a segment is small compared with shared memory.
inline std::vector<int> counts_of_segments(const Description& d, const Chip& chip, int sequences,
                                           const Division& forced) {
  if (forced.exchange == ExchangeId::one_block) return {1};
  if (forced.segments > 0) return {forced.segments};
  const int64_t most = divide_up(d.deepest(), fragment_k);
  const int64_t bytes = sequences * most * fragment_k * d.number.bytes;
  std::vector<int> found{1};
  while (found.back() < most && bytes / found.back() > chip.shared_bytes / 16)
    found.push_back(static_cast<int>(std::min<int64_t>(2 * found.back(), most)));
  return found;
}

// The layout with the forced exchange. If none is forced, one_block is taken where the team is one block and its states
// fit.
inline Layout with_exchange(const Description& d, const Chip& chip, Division division, const Division& forced) {
  division.exchange = forced.exchange;
  if (forced.exchange != ExchangeId::chosen) return lay_out(d, chip, division);
  if (divide_up(d.H, divide_up(d.H, division.parts)) == 1 && division.segments == 1) {
    division.exchange = ExchangeId::one_block;
    const Layout layout = lay_out(d, chip, division);
    if (fits(layout, chip)) return layout;
  }
  division.exchange = ExchangeId::l2;
  return lay_out(d, chip, division);
}

}  // namespace planning

// The cheapest layout that fits. If none fits, the one that needs the least shared memory, for the message.
inline Layout choose(const Description& d, const Chip& chip, const Division& forced) {
  Layout best;
  std::pair<bool, double> least;  // whether it does not fit; its cost, or else those bytes
  bool first = true;
  for (const int sequences : planning::tiles(d, forced))
    for (const int parts : planning::team_sizes(d, chip, sequences, forced))
      for (const int segments : planning::counts_of_segments(d, chip, sequences, forced)) {
        const Layout layout = planning::with_exchange(d, chip, {sequences, parts, segments}, forced);
        const bool possible = fits(layout, chip);
        const std::pair cost{!possible, possible ? nanoseconds(d, layout) : static_cast<double>(layout.shared_bytes)};
        if (first || cost < least) best = layout, least = cost;
        first = false;
      }
  return best;
}

// The figures of a layout, for reports.
inline Plan figures(const Description& d, const Layout& layout) {
  Plan plan{};
  plan.division = layout.division;
  plan.teams = layout.teams;
  plan.shared_bytes = layout.shared_bytes;
  plan.workspace_bytes = layout.workspace_bytes;
  for (int i = 0; i < most_products; ++i) {
    if (d.products[i].gates == 0) continue;
    const ProductWork work = work_of(d, layout, i);
    plan.held += static_cast<int>(work.most - work.resident - work.streamed);
    plan.resident += static_cast<int>(work.resident);
    plan.streamed += static_cast<int>(work.streamed);
  }
  plan.nanoseconds = nanoseconds(d, layout);
  return plan;
}

// Why a layout cannot run, or an empty string.
inline std::string refusal(const Description& d, const Layout& layout, const Chip& chip, const Division& forced) {
  if (fits(layout, chip)) return "";
  const std::string features = d.cell.multiplicative() ? " and I = " + std::to_string(d.I) : "";
  const std::string sizes = "H = " + std::to_string(d.H) + features;
  const std::string bytes = std::to_string(chip.shared_bytes), blocks = std::to_string(chip.multiprocessors);
  if (forced == Division())
    return "the layer is too large for this device: its " + bytes +
           " bytes of shared memory per block do not hold the states of " + sizes + " shared among " + blocks +
           " multiprocessors";
  const std::string needed =
      layout.blocks() > chip.multiprocessors
          ? std::to_string(layout.blocks()) + " blocks at the same time, and this device has " + blocks +
                " multiprocessors"
          : std::to_string(layout.shared_bytes) + " bytes of shared memory in each block, and this device has " + bytes;
  return "the plan " + text(forced) + ", which FUSED_RNN_CUDA_PLAN forces, does not fit: with " + sizes +
         " it needs at least " + needed;
}

// A choice, remembered for the life of the process.
struct Planned {
  Description description;
  Layout layout;
  Plan plan;
  std::string refusal;
};

inline const Planned& planned(const Description& d, const Chip& chip, const Division& forced) {
  using Key = std::array<int64_t, 18>;
  static std::mutex mutex;
  static std::map<Key, Planned> known;
  const CellShape& c = d.cell;
  const Key key{d.forward,
                d.number.bytes,
                d.number.on_tensor_cores,
                static_cast<int64_t>(c.modulates),
                c.gates,
                c.saved,
                c.has_cell_state,
                c.reset_before,
                c.n_apart,
                d.B,
                d.I,
                d.H,
                chip.multiprocessors,
                chip.shared_bytes,
                forced.sequences,
                forced.parts,
                forced.segments,
                static_cast<int64_t>(forced.exchange)};
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find(key);
  if (found != known.end()) return found->second;
  const Layout layout = choose(d, chip, forced);
  const std::string refused = refusal(d, layout, chip, forced);
  return known[key] = {d, layout, refused.empty() ? figures(d, layout) : Plan{}, refused};
}

}  // namespace fused_rnn::cuda

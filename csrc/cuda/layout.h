// Makes a layout from a description and a division: who owns what, how warps divide each product, and where everything
// lies in a block's shared memory and in the workspace. Runs on the host.
#pragma once

#include <algorithm>

#include "api.h"
#include "arena.h"
#include "describe.h"
#include "exchange/either.h"
#include "exchange/l2.h"
#include "exchange/one_block.h"

namespace fused_rnn::cuda {

// The exchange that block kernels are compiled with; dispatch_exchange calls f with the one that a division names.
using ChosenExchange = Either<OneBlockExchange, L2Exchange>;

template <typename F>
auto dispatch_exchange(const Division& division, const F& f) {
  return division.exchange == ExchangeId::one_block ? f(OneBlockExchange()) : f(L2Exchange());
}

inline bool fits(const Layout& layout, const Chip& chip) {
  return layout.shared_bytes <= chip.shared_bytes && layout.blocks() <= chip.multiprocessors;
}

// The number of fragments of the warp that has the most.
inline int64_t fragments_of_warp(const ProductLayout& p) {
  const int64_t full = p.k_fragments / p.span_fragments, rest = p.k_fragments % p.span_fragments;
  return divide_up(p.strips, p.groups) * (full * divide_up(p.span_fragments, p.splits) + divide_up(rest, p.splits));
}

namespace laying_out {

inline void divide_units(const Description& d, const Chip& chip, const Division& division, Layout& layout) {
  layout.units = static_cast<int>(divide_up(d.H, division.parts));
  const int parts = static_cast<int>(divide_up(d.H, layout.units));
  layout.features = static_cast<int>(divide_up(d.I, parts));
  const int64_t teams = std::max<int64_t>(1, chip.multiprocessors / parts);
  layout.teams = static_cast<int>(std::min(divide_up(d.B, division.sequences), teams));
  layout.division = {division.sequences, parts, 1, division.exchange};
}

inline void divide_states(const Description& d, int64_t span, Layout& layout) {
  for (int i = 0; i < most_states; ++i) {
    if (d.k[i] == 0) continue;
    StateLayout& s = layout.states[i];
    s.k = static_cast<int>(d.k[i]);
    s.span = static_cast<int>(std::min(span, round_up(s.k, fragment_k)));
    s.segments = static_cast<int>(divide_up(s.k, s.span));
    s.size = state_size(d.number.on_tensor_cores, layout.division.sequences, s.span);
    layout.division.segments = std::max(layout.division.segments, s.segments);
  }
}

inline void divide_products(const Description& d, Layout& layout) {
  for (int i = 0; i < most_products; ++i) {
    const ProductShape& shape = d.products[i];
    if (shape.gates == 0) continue;
    const StateLayout& s = layout.states[shape.state];
    ProductLayout& p = layout.products[i];
    p.outputs = shape.gates * (shape.features ? layout.features : layout.units);
    p.strips = static_cast<int>(divide_up(p.outputs, fragment_outputs));
    p.k_fragments = static_cast<int>(divide_up(s.k, fragment_k));
    p.span_fragments = s.span / fragment_k;
    p.groups = std::min(p.strips, warps);
    p.splits = std::min(warps / p.groups, p.span_fragments);
  }
}

// The bytes of the sums in one of the two places.
inline int64_t bytes_of_sums(const Description& d, const Layout& layout, int place) {
  int64_t all = 0, most = 0;
  for (int i = 0; i < most_products; ++i) {
    if (d.products[i].gates == 0 || d.products[i].sums != place) continue;
    const ProductLayout& p = layout.products[i];
    const int64_t values = int64_t{p.splits} * layout.division.sequences * sums_stride(p.outputs);
    all += values;
    most = std::max(most, values);
  }
  return (d.sums_side_by_side ? all : most) * d.number.computed_bytes;
}

// Place everything in shared memory but states and weights.
inline void place_values(const Description& d, Layout& layout, Arena& arena) {
  const auto take = [&](int64_t bytes) { return static_cast<int>(arena.take(bytes)); };
  const int64_t n = layout.division.sequences, bytes = d.number.bytes, computed = d.number.computed_bytes;
  const int columns = staged_stride(d.number.bytes, d.staged_features ? layout.features : layout.units);
  layout.limits = take(n * int64_t{sizeof(int)});
  layout.carried = take(n * layout.units * d.carried * computed);
  layout.staged = take(2 * d.staged * n * columns * bytes);
  layout.biases = take((d.biases * layout.units + d.scaled_biases * layout.features) * computed);
  for (int place : {0, 1}) layout.sums[place] = take(bytes_of_sums(d, layout, place));
}

// Use the rest of shared memory for weights that registers do not hold.
inline void place_weights(const Description& d, const Chip& chip, Layout& layout, Arena& arena) {
  const int64_t bytes = int64_t{fragment_size} * d.number.bytes * warps;
  for (int i = 0; i < most_products; ++i) {
    if (d.products[i].gates == 0) continue;
    ProductLayout& p = layout.products[i];
    const int64_t wanted = fragments_of_warp(p) - d.held(i);
    const int64_t room = (chip.shared_bytes - round_up(arena.used(), 16)) / bytes;
    p.resident = static_cast<int>(std::max<int64_t>(0, std::min(wanted, room)));
    p.shared = static_cast<int>(arena.take(p.resident * bytes));
  }
}

// Place the packed weights, and then what is zeroed before a call.
inline void place_workspace(const Description& d, Layout& layout) {
  Arena arena(256);
  for (int i = 0; i < most_products; ++i) {
    if (d.products[i].gates == 0) continue;
    ProductLayout& p = layout.products[i];
    p.packed = arena.take(int64_t{layout.division.parts} * p.strips * p.k_fragments * fragment_size * d.number.bytes);
  }
  layout.cleared = arena.take(0);
  dispatch_exchange(layout.division, [&](auto exchange) { exchange.reserve_workspace(layout, d.number, arena); });
  layout.workspace_bytes = arena.used();
}

}  // namespace laying_out

// The layout of a division. If it does not fit, it says so by needing more shared memory per block or more blocks than
// there are, even with no weights in shared memory.
inline Layout lay_out(const Description& d, const Chip& chip, const Division& division) {
  Layout layout{};
  laying_out::divide_units(d, chip, division, layout);
  const int64_t span = round_up(divide_up(d.deepest(), division.segments), fragment_k);
  layout.shared_bytes = division.sequences * span * d.number.bytes;
  if (layout.shared_bytes > chip.shared_bytes) return layout;  // the kernels' int sizes might overflow
  laying_out::divide_states(d, span, layout);
  laying_out::divide_products(d, layout);
  Arena arena(16);
  laying_out::place_values(d, layout, arena);
  dispatch_exchange(layout.division, [&](auto exchange) { exchange.reserve_shared(layout, d.number, arena); });
  laying_out::place_weights(d, chip, layout, arena);
  layout.shared_bytes = arena.used();
  laying_out::place_workspace(d, layout);
  return layout;
}

}  // namespace fused_rnn::cuda

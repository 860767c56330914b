// The choice among the sizes that warp kernels are compiled for. A pure function of sizes, device and what is forced.
// Runs on the host.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "../api.h"
#include "../exchange/cluster.h"

namespace fused_rnn::cuda::cluster {

// A kernel as the planner sees it.
struct Candidate {
  int K, features, blocks, octets;
  int own_octets;                        // octets that a warp runs the cell for
  int threads, shared_bytes, registers;  // per block, per block, per thread at least
  int held, resident;                    // weights of a warp in registers and in shared memory, in fragments of a
                                         // matrix instruction
  int phases;                            // exchanges per step
  int terms;                             // terms of a number in products
  int received;                          // bytes that a block receives in a step
  ExchangeId exchange;                   // cluster or messages
  int64_t places;                        // bytes of device memory that a team needs for messages
};

struct Choice {
  int index = -1;  // the candidate's, or -1 if none fits
  int clusters = 0;
  double nanoseconds = 0;
  std::string refusal;
};

// The clusters or teams of a candidate that run at the same time and share no SM.
inline int64_t apart(const Candidate& c, const Chip& chip) {
  if (c.exchange == ExchangeId::messages) return chip.clusters[0] > 0 ? chip.multiprocessors / c.blocks : 0;
  int index = 0;
  while (1 << index < c.blocks) ++index;
  return chip.clusters[index];
}

// Likewise with several small blocks on one SM.
inline int64_t at_once(const Candidate& c, const Chip& chip) {
  if (c.exchange == ExchangeId::messages) return apart(c, chip);
  const int64_t by_registers = 65536 / (int64_t{c.threads} * c.registers),
                by_memory = chip.shared_bytes / c.shared_bytes;
  return apart(c, chip) * std::max<int64_t>(1, std::min(by_registers, by_memory));
}

// What several terms of a number add to a step of an octet: they are received at 28 bytes a nanosecond, and six
// products are made in place of one, at 0.64 matrix instructions a cycle. These rates, of an H200, are all that is
// counted.
inline double for_terms(const Candidate& c) {
  if (c.terms == 1) return 0;
  const double sent = c.received - c.received / c.terms, products = (c.held + c.resident) / c.terms * c.threads / 32;
  return sent / c.octets / 28 + 5 * products * 0.9;
}

// The nanoseconds of a step of a tile, fitted to an H200. A tile's octets go one after the other through the exchange,
// which counts the bytes that a block receives, and through the cells. Warps that share an SM run these in turn, and
// hinder each other where they are many. Weights in shared memory are read at 127 bytes a cycle. For messages it is a
// line through the times of an LSTM kernel that sent its output as the message: 1490 ns for 512 units, and 2258 for
// 1024.
inline double nanoseconds_of(const Candidate& c) {
  if (c.exchange == ExchangeId::messages) return 720 + 0.094 * c.received;
  const int groups = c.K / c.blocks / 8, crowded = std::max(0, groups - 6);
  const double cells = (200 + 25.0 * groups + 10 * crowded * crowded) * c.phases * c.own_octets;
  return cells + 0.105 * c.received / c.terms + for_terms(c) * c.octets + 0.0045 * c.resident * 512 * c.threads / 32;
}

// The factor by which `clusters` clusters make a step longer: blocks that share an SM take turns there, but for those
// in float32, which leave it idle most of the time.
inline double sharing(const Candidate& c, int64_t clusters, const Chip& chip) {
  const auto others = static_cast<double>(divide_up(clusters, apart(c, chip)) - 1);
  return 1 + (c.terms == 1 ? 0.9 : 0.1) * others;
}

// Whether a size agrees with what is forced; zeros leave it open.
inline bool meets(const Candidate& c, const Division& forced) {
  return c.exchange == forced.exchange && (forced.parts == 0 || forced.parts == c.blocks) &&
         (forced.sequences == 0 || forced.sequences == 8 * c.octets);
}

// Whether a size has room for the units, and for the features of x̂, if there are any.
inline bool has_room(const Candidate& c, int64_t H, int64_t features) { return H <= c.K && features <= c.features; }

// Why no candidate fits: a sentence that ends with what there is or what is missing.
inline std::string refusal_of(const std::vector<Candidate>& candidates, int64_t H, int64_t features, const Chip& chip,
                              const Division& forced) {
  const auto number = [](int64_t value) { return std::to_string(value); };
  const bool by_messages = forced.exchange == ExchangeId::messages;
  std::string sizes;
  const Candidate* smallest = nullptr;  // the least shared memory, of those that the device has clusters for
  int blocks = 0;
  for (const Candidate& c : candidates) {
    if (c.exchange != forced.exchange) continue;
    sizes += (sizes.empty() ? "" : "; ") + std::string("H up to ") + number(c.K) +
             (features > 0 ? " and I up to " + number(c.features) : "") + " with parts=" + number(c.blocks) +
             ",sequences=" + number(8 * c.octets);
    if (!has_room(c, H, features) || !meets(c, forced)) continue;
    blocks = c.blocks;
    if (at_once(c, chip) > 0 && (!smallest || c.shared_bytes < smallest->shared_bytes)) smallest = &c;
  }
  const std::string of_features = features > 0 ? " and I = " + number(features) : "";
  if (sizes.empty()) return "kernels by messages are for cells whose blocks exchange once a step, and not for this one";
  if (blocks == 0)
    return std::string("no kernel ") + (by_messages ? "by messages" : "in clusters") +
           " is compiled for H = " + number(H) + of_features + " so, but for " + sizes;
  if (chip.clusters[0] == 0)
    return std::string("kernels ") + (by_messages ? "by messages" : "in clusters") +
           " need a device of compute capability 9.0 or newer, and a library with code for one";
  if (!smallest && by_messages)
    return "a team has " + number(blocks) + " blocks that run at the same time, and this device has " +
           number(chip.multiprocessors) + " multiprocessors";
  if (!smallest) return "this device does not run clusters of " + number(blocks) + " blocks";
  return "with H = " + number(H) + of_features + " it needs at least " + number(smallest->shared_bytes) +
         " bytes of shared memory in each block, and this device has " + number(chip.shared_bytes);
}

// The fastest candidate that fits, among those with the forced exchange.
inline Choice fastest(const std::vector<Candidate>& candidates, int64_t H, int64_t features, int64_t B,
                      const Chip& chip, const Division& forced) {
  Choice best;
  for (int i = 0; i < static_cast<int>(candidates.size()); ++i) {
    const Candidate& c = candidates[i];
    if (!has_room(c, H, features) || !meets(c, forced)) continue;
    if (c.shared_bytes > chip.shared_bytes || at_once(c, chip) == 0) continue;
    const int64_t tiles = divide_up(B, 8 * c.octets), rounds = divide_up(tiles, at_once(c, chip)),
                  clusters = std::min(tiles, at_once(c, chip));
    const double nanoseconds = nanoseconds_of(c) * sharing(c, clusters, chip) * static_cast<double>(rounds);
    if (best.index >= 0 && nanoseconds >= best.nanoseconds) continue;
    best = {i, static_cast<int>(clusters), nanoseconds, ""};
  }
  return best;
}

// Likewise; if the exchange is left open, messages are taken only where no cluster fits.
inline Choice choose(const std::vector<Candidate>& candidates, int64_t H, int64_t features, int64_t B, const Chip& chip,
                     const Division& forced) {
  const bool may_be_cluster = forced.exchange != ExchangeId::messages,
             may_be_messages = forced.exchange != ExchangeId::cluster;
  Division in_cluster = forced, by_messages = forced;
  in_cluster.exchange = ExchangeId::cluster;
  by_messages.exchange = ExchangeId::messages;
  Choice best;
  if (may_be_cluster) best = fastest(candidates, H, features, B, chip, in_cluster);
  if (best.index < 0 && may_be_messages) best = fastest(candidates, H, features, B, chip, by_messages);
  if (best.index >= 0) return best;
  if (may_be_cluster) best.refusal = refusal_of(candidates, H, features, chip, in_cluster);
  if (may_be_cluster && may_be_messages) best.refusal += "; and ";
  if (may_be_messages) best.refusal += refusal_of(candidates, H, features, chip, by_messages);
  return best;
}

}  // namespace fused_rnn::cuda::cluster

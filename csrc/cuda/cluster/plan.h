// The choice among the sizes that kernels of warps are compiled for. A pure function of sizes, device and what is
// forced. Runs on the host.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "../api.h"
#include "../exchange/cluster.h"

namespace fused_rnn::cuda::cluster {

// A kernel as planning sees it.
struct Candidate {
  int K, blocks, octets;
  int threads, shared_bytes, registers;  // of a block, of a block, of a thread at least
  int held, resident;                    // fragments of weights of a matrix instruction that a warp has in registers,
                                         // and in shared memory
  int received;                          // bytes that a block is sent in a step
};

struct Choice {
  int index = -1;  // of the candidate, or -1 where none fits
  int clusters = 0;
  double nanoseconds = 0;
  std::string refusal;
};

// Clusters of a candidate that run at the same time.
inline int64_t at_once(const Candidate& c, const Chip& chip) {
  int index = 0;
  while (1 << index < c.blocks) ++index;
  // several small blocks share a multiprocessor
  const int64_t by_registers = 65536 / (int64_t{c.threads} * c.registers),
                by_memory = chip.shared_bytes / c.shared_bytes;
  return chip.clusters[index] * std::max<int64_t>(1, std::min(by_registers, by_memory));
}

// Of a step of a tile, fitted to an H200: a tile's octets go one after the other through the exchange, of which a block
// is sent so many bytes, and through the cells, which warps that share a multiprocessor hand to it in turn; weights in
// shared memory are read at 127 bytes a cycle.
inline double nanoseconds_of(const Candidate& c) {
  const double octet = 200 + 0.105 * c.received / c.octets + 25.0 * (c.K / c.blocks / 8);
  return octet * c.octets + 0.0045 * c.resident * 512 * c.threads / 32;
}

// Whether a size can be what is forced; zeros leave it open.
inline bool meets(const Candidate& c, const Division& forced) {
  return (forced.parts == 0 || forced.parts == c.blocks) && (forced.sequences == 0 || forced.sequences == 8 * c.octets);
}

inline std::string sizes_in_words(const std::vector<Candidate>& candidates) {
  std::string result;
  for (const Candidate& c : candidates)
    result += (result.empty() ? "" : "; ") + std::string("H up to ") + std::to_string(c.K) +
              " with parts=" + std::to_string(c.blocks) + ",sequences=" + std::to_string(8 * c.octets);
  return result;
}

// The fastest candidate that fits.
inline Choice choose(const std::vector<Candidate>& candidates, int64_t H, int64_t B, const Chip& chip,
                     const Division& forced) {
  Choice best;
  bool large_enough = false;
  for (int i = 0; i < static_cast<int>(candidates.size()); ++i) {
    const Candidate& c = candidates[i];
    if (c.K < H || !meets(c, forced)) continue;
    large_enough = true;
    if (c.shared_bytes > chip.shared_bytes || at_once(c, chip) == 0) continue;
    const int64_t tiles = divide_up(B, 8 * c.octets), rounds = divide_up(tiles, at_once(c, chip));
    const double nanoseconds = nanoseconds_of(c) * static_cast<double>(rounds);
    if (best.index >= 0 && nanoseconds >= best.nanoseconds) continue;
    best = {i, static_cast<int>(std::min(tiles, at_once(c, chip))), nanoseconds, ""};
  }
  if (best.index >= 0) return best;
  best.refusal = large_enough ? "this device does not run clusters of so many blocks, or gives them too little shared "
                                "memory"
                              : "kernels in clusters are compiled for " + sizes_in_words(candidates) + ", and H is " +
                                    std::to_string(H);
  return best;
}

}  // namespace fused_rnn::cuda::cluster

// The product of a block's weights with the state of a tile of sequences: how warps divide it, and where the weights
// are.
//
// A warp takes the same blocks of weights in every step of a sequence, in an order that never changes. So it keeps the
// first ones in registers, the next ones in shared memory, and reads the others from the second-level cache each time.
// Warps that share an output each sum a part of the depth; whoever reads the sums adds the parts, in a fixed order.
#pragma once

#include "fragment.h"

namespace fused_rnn::cuda {

// Threads of a block, and 4-byte registers of each that may hold weights. Tests on the host make them few.
#ifndef FUSED_RNN_THREADS
#  define FUSED_RNN_THREADS 256
#endif
#ifndef FUSED_RNN_WEIGHT_REGISTERS
#  define FUSED_RNN_WEIGHT_REGISTERS 128
#endif

constexpr int threads = FUSED_RNN_THREADS, warps = threads / 32;

// Blocks of weights that a warp holds in registers for the nth product of a kernel: as many as the compiler can hold
// without spilling others. A kernel of many products needs more registers for itself, and multiply-adds need more than
// matrix instructions do; float64 is not about speed.
template <typename S>
constexpr int held_blocks(int products, int nth) {
  const int full = FUSED_RNN_WEIGHT_REGISTERS * 4 / static_cast<int>(lane_values * sizeof(S));
  const int most = std::is_same_v<S, double> ? 0 : on_tensor_cores<S> ? full : full / 2;
  const int blocks = products > 2 ? most / 2 : most;
  return (blocks + products - 1 - nth) / products;
}

// A state that products read: `depth` values of each sequence, in segments of `span` steps of depth, a multiple of 64.
// It lies in shared memory if the team is one block, otherwise in global memory where the team's blocks exchange it.
template <typename S>
struct State {
  S* exchanged;  // [turns, teams, segments, size]
  int depth, span, segments;
  int size;   // values of a segment
  int local;  // bytes into shared memory
};

// A product as the host plans it. Outputs are those of one part of a team.
template <typename S>
struct ProductPlan {
  const S* packed;  // [parts of the team, tiles, depth_blocks] blocks
  int outputs;
  int tiles, depth_blocks;  // of weights: 16 outputs, 64 steps of depth
  int span_blocks;          // of a segment of the state
  int groups, parts;        // warps are groups x parts; a group takes every so manieth tile, a part a part of the depth
  int resident;             // blocks of each warp that shared memory holds
  int shared;               // bytes into shared memory
};

HOST_DEVICE constexpr int sums_stride(int outputs) {  // 4 modulo 16, so that neither writes nor reads conflict
  return static_cast<int>(round_up(outputs, block_outputs)) + 4;
}

// Sums of one or several products with as many outputs, whose parts follow each other: [parts, sequences, outputs].
template <typename C>
struct Sums {
  C* data;
  int stride, sequences;

  FUSED_RNN_DEVICE C* at(int part, int sequence, int output) const {
    return data + (part * sequences + sequence) * stride + output;
  }
  // The sums of n outputs that stand `distance` apart, for one sequence.
  template <int n>
  FUSED_RNN_DEVICE void totals(int parts, int sequence, int output, int distance, C (&sums)[n]) const {
    const C* const first = at(0, sequence, output);
    FUSED_RNN_UNROLL
    for (int i = 0; i < n; ++i) sums[i] = first[i * distance];
    FUSED_RNN_UNROLL_BY(2)
    for (int part = 1; part < parts; ++part) {
      FUSED_RNN_UNROLL
      for (int i = 0; i < n; ++i) sums[i] += first[part * sequences * stride + i * distance];
    }
  }
  FUSED_RNN_DEVICE C total(int parts, int sequence, int output) const {
    C sum[1];
    totals(parts, sequence, output, 0, sum);
    return sum[0];
  }
};

// One warp's part of a product.
template <typename S, int held>
class Product {
  using C = Computed<S>;

 public:
  // Loads the weights that stay; needs a barrier before the first product.
  FUSED_RNN_DEVICE Product(const ProductPlan<S>& plan, int team_part, unsigned char* shared)
      : plan_(plan),
        group_(warp() % plan.groups),
        part_(warp() / plan.groups),
        own_tiles_(part_ < plan.parts ? (plan.tiles - group_ + plan.groups - 1) / plan.groups : 0),
        own_depth_(divide_up(plan.span_blocks - part_, plan.parts)),
        own_rest_(divide_up(plan.depth_blocks % plan.span_blocks - part_, plan.parts)),
        packed_(plan.packed + int64_t{team_part} * plan.tiles * plan.depth_blocks * block_size),
        resident_(reinterpret_cast<S*>(shared + plan.shared) + warp() * plan.resident * block_size) {
    Cursor cursor = begin(0);
    FUSED_RNN_UNROLL
    for (int i = 0; i < held; ++i)
      if (exists(cursor)) {
        FUSED_RNN_UNROLL
        for (int p = 0; p < pieces<S>; ++p) held_[i][p] = from_global(packed_ + place(cursor), p);
        advance(cursor);
      }
    for (int i = 0; i < plan.resident && exists(cursor); ++i) {
      copy_block(resident_ + i * block_size, packed_ + place(cursor));
      advance(cursor);
    }
    copy_async_commit();
    copy_async_wait<0>();
  }

  // The products with a segment of the state, for all sequences of the tile; added to the sums of earlier segments.
  // Parts of the sums count from `first_part` on. Barriers are the caller's.
  FUSED_RNN_DEVICE void multiply(const S* state, int span, int segment, const Sums<C>& sums, int first_part) const {
    for (int tile = 0; tile < sums.sequences / tile_sequences; ++tile)
      multiply(state, span, segment, sums, first_part, tile);
  }

 private:
  // A warp's place in the order of its blocks: by segment, tile of outputs and depth within the segment.
  struct Cursor {
    int segment, tile, block;
  };

  FUSED_RNN_DEVICE static int warp() { return static_cast<int>(threadIdx.x) / 32; }
  FUSED_RNN_DEVICE int segment_blocks(int segment) const {
    const int rest = plan_.depth_blocks - segment * plan_.span_blocks;
    return rest < plan_.span_blocks ? rest : plan_.span_blocks;
  }
  // How many of the blocks of a segment are this warp's.
  FUSED_RNN_DEVICE int own_blocks(int segment) const {
    return own_tiles_ * (segment_blocks(segment) == plan_.span_blocks ? own_depth_ : own_rest_);
  }

  FUSED_RNN_DEVICE Cursor begin(int segment) const { return {segment, group_, part_}; }
  FUSED_RNN_DEVICE bool last_of_tile(const Cursor& c) const {
    return c.block + plan_.parts >= segment_blocks(c.segment);
  }
  FUSED_RNN_DEVICE bool exists(const Cursor& c) const {
    return c.segment * plan_.span_blocks < plan_.depth_blocks && own_blocks(c.segment) > 0;
  }
  FUSED_RNN_DEVICE void advance(Cursor& c) const {
    if (!last_of_tile(c)) {
      c.block += plan_.parts;
      return;
    }
    c.block = part_;
    c.tile += plan_.groups;
    if (c.tile >= plan_.tiles) c = begin(c.segment + 1);
  }

  FUSED_RNN_DEVICE int64_t place(const Cursor& c) const {
    return (int64_t{c.tile} * plan_.depth_blocks + c.segment * plan_.span_blocks + c.block) * block_size;
  }
  FUSED_RNN_DEVICE static Piece<S> from_global(const S* block, int piece) {
    return load_piece(block, piece, [](const auto* p) { return load_l2(p); });
  }
  FUSED_RNN_DEVICE static Piece<S> from_shared(const S* block, int piece) {
    return load_piece(block, piece, [](const auto* p) { return *p; });
  }
  FUSED_RNN_DEVICE static void copy_block(S* to, const S* from) {
    constexpr int each = 16 / sizeof(S);
    FUSED_RNN_UNROLL
    for (int i = 0; i < block_size; i += 32 * each)
      copy_async<16>(to + i + threadIdx.x % 32 * each, from + i + threadIdx.x % 32 * each);
  }

  FUSED_RNN_DEVICE void multiply(const S* state, int span, int segment, const Sums<C>& sums, int first_part,
                                 int tile) const {
    const int first = segment * own_blocks(0), end = first + own_blocks(segment);
    Cursor cursor = begin(segment);
    C* const to = sums.at(first_part + part_, tile * tile_sequences, 0);
    Accumulator<S> sum;
    const auto add = [&](int piece, const Piece<S>& weights) {
      sum.add(weights, state, tile, cursor.block * block_depth + piece * Piece<S>::depth, span);
    };
    const auto finish_block = [&] {
      if (last_of_tile(cursor)) {
        sum.put(to + cursor.tile * block_outputs, sums.stride, segment > 0);
        sum = {};
      }
      advance(cursor);
    };
    FUSED_RNN_UNROLL
    for (int i = 0; i < held; ++i)
      if (i >= first && i < end) {
        FUSED_RNN_UNROLL
        for (int p = 0; p < pieces<S>; ++p) add(p, held_[i][p]);
        finish_block();
      }
    int i = first > held ? first : held;
    for (; i < end && i < held + plan_.resident; ++i) {
      FUSED_RNN_UNROLL_BY(2)
      for (int p = 0; p < pieces<S>; ++p) add(p, from_shared(resident_ + (i - held) * block_size, p));
      finish_block();
    }
    for (; i < end; ++i) {
      FUSED_RNN_UNROLL_BY(2)
      for (int p = 0; p < pieces<S>; ++p) add(p, from_global(packed_ + place(cursor), p));
      finish_block();
    }
  }

  const ProductPlan<S>& plan_;
  const int group_, part_;                      // of this warp
  const int own_tiles_, own_depth_, own_rest_;  // blocks: of outputs, and of the depth of a whole or the last segment
  const S* packed_;
  S* resident_;
  Piece<S> held_[held > 0 ? held : 1][pieces<S>];
};

// In place of a product that a cell lacks.
struct NoProduct {
  template <typename... Arguments>
  FUSED_RNN_DEVICE explicit NoProduct(const Arguments&...) {}
};

}  // namespace fused_rnn::cuda

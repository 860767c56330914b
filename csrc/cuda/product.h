// The product of a block's weights with the state of a tile of sequences: how warps divide it, and where the weights
// are.
//
// A warp uses the same fragments of weights in every step, always in the same order. It keeps the first ones in
// registers and the next ones in shared memory, and reads the others from L2 in every step. Warps with the same outputs
// each sum a share of K; the reader of the sums adds up these splits, in a fixed order.
#pragma once

#include "fragment.h"

namespace fused_rnn::cuda {

// The sums [splits, sequences, outputs] of one product, or of several that have the same outputs and append their
// splits.
template <typename C>
struct Sums {
  C* data;
  int stride, sequences;

  FUSED_RNN_DEVICE C* at(int split, int sequence, int output) const {
    return data + (split * sequences + sequence) * stride + output;
  }
  // The sums over all splits of n outputs that lie `distance` apart, for one sequence.
  template <int n>
  FUSED_RNN_DEVICE void totals(int splits, int sequence, int output, int distance, C (&sums)[n]) const {
    const C* const first = at(0, sequence, output);
    FUSED_RNN_UNROLL
    for (int i = 0; i < n; ++i) sums[i] = first[i * distance];
    FUSED_RNN_UNROLL_BY(2)
    for (int split = 1; split < splits; ++split) {
      FUSED_RNN_UNROLL
      for (int i = 0; i < n; ++i) sums[i] += first[split * sequences * stride + i * distance];
    }
  }
  FUSED_RNN_DEVICE C total(int splits, int sequence, int output) const {
    C sum[1];
    totals(splits, sequence, output, 0, sum);
    return sum[0];
  }
};

// One warp's share of a product.
template <typename S, int held>
class Product {
  using C = Computed<S>;

 public:
  // Loads the weights that stay on the chip; a barrier must follow before the first product.
  FUSED_RNN_DEVICE Product(const ProductLayout& layout, const unsigned char* workspace, int part, unsigned char* shared)
      : layout_(layout),
        group_(warp() % layout.groups),
        split_(warp() / layout.groups),
        own_strips_(split_ < layout.splits ? (layout.strips - group_ + layout.groups - 1) / layout.groups : 0),
        own_span_(divide_up(layout.span_fragments - split_, layout.splits)),
        own_rest_(divide_up(layout.k_fragments % layout.span_fragments - split_, layout.splits)),
        packed_(reinterpret_cast<const S*>(workspace + layout.packed) +
                int64_t{part} * layout.strips * layout.k_fragments * fragment_size),
        resident_(reinterpret_cast<S*>(shared + layout.shared) + warp() * layout.resident * fragment_size) {
    Cursor cursor = begin(0);
    FUSED_RNN_UNROLL
    for (int i = 0; i < held; ++i)
      if (exists(cursor)) {
        FUSED_RNN_UNROLL
        for (int p = 0; p < pieces<S>; ++p) held_[i][p] = from_global(packed_ + place(cursor), p);
        advance(cursor);
      }
    for (int i = 0; i < layout.resident && exists(cursor); ++i) {
      copy_fragment(resident_ + i * fragment_size, packed_ + place(cursor));
      advance(cursor);
    }
    copy_async_commit();
    copy_async_wait<0>();
  }

  // Multiply with a segment of the state, for all sequences of the tile, and add to the sums of earlier segments. This
  // product's splits begin at `first_split`. The caller places the barriers.
  FUSED_RNN_DEVICE void multiply(const S* state, int span, int segment, const Sums<C>& sums, int first_split) const {
    for (int n = 0; n < sums.sequences / octet; ++n) multiply(state, span, segment, sums, first_split, n);
  }

 private:
  // A warp's position in the order of its fragments: by segment, by strip, and by K within the segment.
  struct Cursor {
    int segment, strip, fragment;
  };

  FUSED_RNN_DEVICE static int warp() { return static_cast<int>(threadIdx.x) / 32; }
  FUSED_RNN_DEVICE int segment_fragments(int segment) const {
    const int rest = layout_.k_fragments - segment * layout_.span_fragments;
    return rest < layout_.span_fragments ? rest : layout_.span_fragments;
  }
  // The number of this warp's fragments in a segment.
  FUSED_RNN_DEVICE int own_fragments(int segment) const {
    return own_strips_ * (segment_fragments(segment) == layout_.span_fragments ? own_span_ : own_rest_);
  }

  FUSED_RNN_DEVICE Cursor begin(int segment) const { return {segment, group_, split_}; }
  FUSED_RNN_DEVICE bool last_of_strip(const Cursor& c) const {
    return c.fragment + layout_.splits >= segment_fragments(c.segment);
  }
  FUSED_RNN_DEVICE bool exists(const Cursor& c) const {
    return c.segment * layout_.span_fragments < layout_.k_fragments && own_fragments(c.segment) > 0;
  }
  FUSED_RNN_DEVICE void advance(Cursor& c) const {
    if (!last_of_strip(c)) {
      c.fragment += layout_.splits;
      return;
    }
    c.fragment = split_;
    c.strip += layout_.groups;
    if (c.strip >= layout_.strips) c = begin(c.segment + 1);
  }

  FUSED_RNN_DEVICE int64_t place(const Cursor& c) const {
    return (int64_t{c.strip} * layout_.k_fragments + c.segment * layout_.span_fragments + c.fragment) * fragment_size;
  }
  FUSED_RNN_DEVICE static Piece<S> from_global(const S* fragment, int piece) {
    return load_piece(fragment, piece, [](const auto* p) { return load_l2(p); });
  }
  FUSED_RNN_DEVICE static Piece<S> from_shared(const S* fragment, int piece) {
    return load_piece(fragment, piece, [](const auto* p) { return *p; });
  }
  FUSED_RNN_DEVICE static void copy_fragment(S* to, const S* from) {
    constexpr int each = 16 / sizeof(S);
    FUSED_RNN_UNROLL
    for (int i = 0; i < fragment_size; i += 32 * each)
      copy_async<16>(to + i + threadIdx.x % 32 * each, from + i + threadIdx.x % 32 * each);
  }

  FUSED_RNN_DEVICE void multiply(const S* state, int span, int segment, const Sums<C>& sums, int first_split,
                                 int n) const {
    const int first = segment * own_fragments(0), end = first + own_fragments(segment);
    Cursor cursor = begin(segment);
    C* const to = sums.at(first_split + split_, n * octet, 0);
    Accumulator<S> sum;
    const auto add = [&](int piece, const Piece<S>& weights) {
      sum.add(weights, state, n, cursor.fragment * fragment_k + piece * Piece<S>::k, span);
    };
    const auto finish_fragment = [&] {
      if (last_of_strip(cursor)) {
        sum.put(to + cursor.strip * fragment_outputs, sums.stride, segment > 0);
        sum = {};
      }
      advance(cursor);
    };
    FUSED_RNN_UNROLL
    for (int i = 0; i < held; ++i)
      if (i >= first && i < end) {
        FUSED_RNN_UNROLL
        for (int p = 0; p < pieces<S>; ++p) add(p, held_[i][p]);
        finish_fragment();
      }
    int i = first > held ? first : held;
    for (; i < end && i < held + layout_.resident; ++i) {
      FUSED_RNN_UNROLL_BY(2)
      for (int p = 0; p < pieces<S>; ++p) add(p, from_shared(resident_ + (i - held) * fragment_size, p));
      finish_fragment();
    }
    for (; i < end; ++i) {
      FUSED_RNN_UNROLL_BY(2)
      for (int p = 0; p < pieces<S>; ++p) add(p, from_global(packed_ + place(cursor), p));
      finish_fragment();
    }
  }

  const ProductLayout& layout_;
  const int group_, split_;                     // this warp's
  const int own_strips_, own_span_, own_rest_;  // the last two: fragments per strip, in a full and in the last segment
  const S* packed_;
  S* resident_;
  Piece<S> held_[held > 0 ? held : 1][pieces<S>];
};

// Stands in for a product that a cell lacks.
struct NoProduct {
  template <typename... Arguments>
  FUSED_RNN_DEVICE explicit NoProduct(const Arguments&...) {}
};

}  // namespace fused_rnn::cuda

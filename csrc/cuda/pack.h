// Weights packed in the order of the lanes, and the kernel that packs them before a sequence starts.
#pragma once

#include "fragment.h"

namespace fused_rnn::cuda {

// A matrix to be packed in fragments. The outputs of each part of a team are `own` units for one gate after the other.
// The value for (gate, unit, k) is at `from` + gate * gate_stride + unit * unit_stride + k * k_stride.
template <typename S>
struct Packing {
  const S* from;
  S* to;  // [parts, divide_up(gates * own, 16), divide_up(k, 64)] fragments
  int parts, gates, units, own, k;
  int64_t gate_stride, unit_stride, k_stride;

  HOST_DEVICE int64_t strips() const { return divide_up(gates * own, fragment_outputs); }
  HOST_DEVICE int64_t size() const { return parts * strips() * round_up(k, fragment_k) * fragment_outputs; }
};

// Pack one value; `index` counts through [fragment, lane, value].
template <typename S>
FUSED_RNN_DEVICE void pack(const Packing<S>& p, int64_t index) {
  const int i = index % lane_values, lane = index / lane_values % 32;
  const int64_t fragment = index / fragment_size, k_fragments = divide_up(p.k, fragment_k);
  const int64_t strip = fragment / k_fragments, part = strip / p.strips();
  const int output = static_cast<int>(strip % p.strips()) * fragment_outputs + fragment_output<S>(lane, i);
  const int k = static_cast<int>(fragment % k_fragments) * fragment_k + fragment_column<S>(lane, i);
  const int gate = output / p.own;
  const int64_t unit = part * p.own + output % p.own;
  S value{};
  if (gate < p.gates && unit < p.units && k < p.k)
    value = p.from[gate * p.gate_stride + unit * p.unit_stride + k * p.k_stride];
  p.to[fragment * fragment_size + fragment_place<S>(lane, i)] = value;
}

// What is done before a sequence starts: weights are packed, and the memory that blocks exchange data through is
// zeroed.
template <typename S>
struct Preparation {
  int count;
  Packing<S> packings[most_products];
  uint32_t* cleared;
  int64_t words;
};

template <typename S>
FUSED_RNN_KERNEL prepare_workspace(const Preparation<S> p) {
  const int64_t first = int64_t{blockIdx.x} * blockDim.x + threadIdx.x, step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = first; i < p.words; i += step) p.cleared[i] = 0;
  for (int n = 0; n < p.count; ++n)
    for (int64_t i = first; i < p.packings[n].size(); i += step) pack(p.packings[n], i);
}

}  // namespace fused_rnn::cuda

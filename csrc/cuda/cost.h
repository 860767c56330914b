// The estimated time of a step, by which the planner compares divisions.
//
// The figures, with those of the exchanges, are for an H200 (132 SMs at 1,980 MHz). These ten numbers were fitted to
// the times of 457 plans of 23 layers that `python -m benchmarks.gpu.plans` measured there
// (benchmarks/results/plans-nvidia-h200.json), less the time to pack the weights: by least squares of the relative
// error, to the 256 plans within 2.5 times the fastest of their layer. On these the estimate is off by 10 % (root mean
// square), and the chosen plan, where it was timed, is at most 3 % slower than the fastest. Fitted without the layer in
// question it is off by 13 %, and the chosen plan is at most 14 % slower.
#pragma once

#include "describe.h"
#include "layout.h"

namespace fused_rnn::cuda {

// The work of one block for a product in the step of one tile, in fragments of weights: those of all warps, those of
// the warp with the most, and of the latter those in shared memory and those read from L2.
struct ProductWork {
  int64_t all, most, resident, streamed;
};

inline ProductWork work_of(const Description& d, const Layout& layout, int product) {
  const ProductLayout& p = layout.products[product];
  const int64_t most = fragments_of_warp(p), held = std::min<int64_t>(most, d.held(product));
  return {int64_t{p.strips} * p.k_fragments, most, p.resident, most - held - p.resident};
}

namespace cost {

// All constants are in nanoseconds. `product` includes what a step does once; `next_segment` is for each further
// segment of a state.
constexpr double product = 690, next_segment = 880;
// A fragment of weights times 8 sequences. In 16-bit types warps mostly wait, so the warp with the most counts; the
// multiply-adds of all warps share the SM. At the rates matrix_shared_rate and multiply_add_shared_rate of the
// micro-measurements, the arithmetic alone of one fragment in each of eight warps takes 70 and 774 clocks. float64 was
// not measured: half the rate is assumed.
constexpr double matrix_fragment = 103, multiply_fragment = 688, double_fragment = 2 * multiply_fragment;
constexpr double streamed_byte = 0.0090;  // per byte, of the weights of all warps
// `value` is for one gate of a unit, with all its work but the product; `unaligned_run` for a run of columns copied in
// pieces of 4 bytes in place of 16, which was seen to cost in 16-bit types alone.
constexpr double value = 218, unaligned_run = 188;

inline double of_fragments(const Number& number, const ProductWork& work) {
  if (number.on_tensor_cores) return matrix_fragment * static_cast<double>(work.most);
  const double fragment = number.bytes == 8 ? double_fragment : multiply_fragment;
  return fragment * static_cast<double>(work.all) / warps;
}

inline double of_product(const Description& d, const Layout& layout, int product_number) {
  const ProductWork work = work_of(d, layout, product_number);
  const StateLayout& s = layout.states[d.products[product_number].state];
  const int64_t octets = layout.division.sequences / octet;
  const int64_t fetched = int64_t{s.size} * s.segments * d.number.bytes;
  const int64_t streamed = octets * work.streamed * fragment_size * d.number.bytes * warps;
  const double of_byte = dispatch_exchange(layout.division, [](auto exchange) { return exchange.of_byte; });
  return product + next_segment * (s.segments - 1) + of_byte * static_cast<double>(fetched) +
         of_fragments(d.number, work) * static_cast<double>(octets) + streamed_byte * static_cast<double>(streamed);
}

// The pre-activations that the busiest thread makes, or their gradients, and the runs of columns that are not aligned.
inline double of_values(const Description& d, const Layout& layout) {
  const auto of_thread = [&](int each) { return divide_up(int64_t{layout.division.sequences} * each, threads); };
  const int64_t values = d.values * of_thread(layout.units) + d.scaled * of_thread(layout.features);
  const bool aligned = layout.units * d.number.bytes % 16 == 0 && d.H * d.number.bytes % 16 == 0;
  const int runs = d.number.on_tensor_cores && !aligned ? d.values : 0;
  return value * static_cast<double>(values) + unaligned_run * runs;
}

}  // namespace cost

// The time of a step of all tiles.
inline double nanoseconds(const Description& d, const Layout& layout) {
  const double phase =
      dispatch_exchange(layout.division, [&](auto exchange) { return exchange.of_phase(layout.division.parts); });
  double sum = cost::of_values(d, layout) + d.phases * phase;
  for (int i = 0; i < most_products; ++i)
    if (d.products[i].gates > 0) sum += cost::of_product(d, layout, i);
  const int64_t in_turn = divide_up(divide_up(d.B, layout.division.sequences), layout.teams);
  return static_cast<double>(in_turn) * sum;
}

}  // namespace fused_rnn::cuda

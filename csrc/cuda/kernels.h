// The choice of a kernel by cell and type at run time, for whoever launches: the CUDA runtime or the host shim.
#pragma once

#include "backward.h"
#include "forward.h"

namespace fused_rnn::cuda {

// Call f with values of the cell's type and of true or false, for the multiplicative modifier.
template <typename F>
auto dispatch_kernel(CellId cell, bool multiplicative, const F& f) {
  return dispatch_cell(
      cell, [&](auto base) { return multiplicative ? f(base, std::true_type()) : f(base, std::false_type()); });
}

// A kernel and the bytes of shared memory that it takes.
template <typename Sequence>
struct Kernel {
  void (*run)(Sequence);
  int64_t shared_bytes;
};

template <typename C, typename S>
Kernel<const ForwardSequence<C, S>> forward_kernel(CellId cell, bool multiplicative, const ForwardSequence<C, S>& q) {
  return dispatch_kernel(cell, multiplicative, [&](auto base, auto modified) {
    using Cell = decltype(base);
    constexpr bool modifies = decltype(modified)::value;
    const int64_t size = forward_shared_size<Cell, modifies>(q.I, q.H, q.parts, q.resident);
    return Kernel<const ForwardSequence<C, S>>{run_forward<Cell, modifies, C, S>, size * int64_t{sizeof(C)}};
  });
}

template <typename C, typename S>
Kernel<const BackwardSequence<C, S>> backward_kernel(CellId cell, bool multiplicative,
                                                     const BackwardSequence<C, S>& q) {
  return dispatch_kernel(cell, multiplicative, [&](auto base, auto modified) {
    using Cell = decltype(base);
    constexpr bool modifies = decltype(modified)::value;
    const int64_t size = backward_shared_size<Cell, modifies>(q.I, q.H, q.parts, q.resident);
    return Kernel<const BackwardSequence<C, S>>{run_backward<Cell, modifies, C, S>, size * int64_t{sizeof(C)}};
  });
}

}  // namespace fused_rnn::cuda

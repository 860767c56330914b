// All kernels of csrc/cuda in float32 and bfloat16, for the compiler's report.

#include "../../csrc/cuda/kernels.h"

using namespace fused_rnn;
using namespace fused_rnn::cuda;

template <typename C, typename S>
void launch_both(CellId cell, bool multiplicative, const ForwardSequence<C, S>& f, const BackwardSequence<C, S>& b) {
  forward_kernel(cell, multiplicative, f).run<<<1, threads>>>(f);
  backward_kernel(cell, multiplicative, b).run<<<1, threads>>>(b);
}

template void launch_both(CellId, bool, const ForwardSequence<float, float>&, const BackwardSequence<float, float>&);
template void launch_both(CellId, bool, const ForwardSequence<float, BFloat16>&,
                          const BackwardSequence<float, BFloat16>&);

// Warp kernels for nvcc, a few or, if EXHAUSTIVE is defined, more; tests/test_cluster_sass.py reads their machine code.

#include "../../csrc/cuda/cluster/backward.h"
#include "../../csrc/cuda/cluster/forward.h"

namespace fused_rnn::cuda::cluster {

#define INSTANTIATE(Cell, S, ...)                                                                                    \
  template FUSED_RNN_KERNEL run_forward<Cell, S, Size<__VA_ARGS__>>(FUSED_RNN_PARAMETER Operands<S, ForwardArrays>); \
  template FUSED_RNN_KERNEL run_backward<Cell, S, Size<__VA_ARGS__>>(FUSED_RNN_PARAMETER Operands<S, BackwardArrays>)

using ModulatedLstm = Modulated<Lstm, Modulates::input>;
using ModulatedLstmHidden = Modulated<Lstm, Modulates::hidden>;
using ModulatedGru = Modulated<Gru, Modulates::input>;

INSTANTIATE(Lstm, BFloat16, 128, 1, 1, 1);
INSTANTIATE(Lstm, BFloat16, 512, 16, 2, 1);
INSTANTIATE(ModulatedGru, BFloat16, 512, 16, 2, 1, 128);
INSTANTIATE(Lstm, float, 256, 16, 4, 1);

#ifdef EXHAUSTIVE
INSTANTIATE(Lstm, BFloat16, 512, 16, 2, 2);
INSTANTIATE(GruResetAfter, Half, 256, 8, 2, 2);
INSTANTIATE(Gru, BFloat16, 512, 16, 2, 1);
INSTANTIATE(ModulatedLstm, BFloat16, 512, 16, 2, 1, 128);
INSTANTIATE(ModulatedLstmHidden, BFloat16, 512, 16, 2, 1, 512);

INSTANTIATE(Lstm, float, 128, 4, 2, 1);
INSTANTIATE(Lstm, float, 256, 8, 2, 2);
INSTANTIATE(GruResetAfter, float, 128, 4, 2, 2);
INSTANTIATE(Gru, float, 256, 16, 4, 1);
INSTANTIATE(ModulatedLstm, float, 256, 16, 4, 1, 128);
INSTANTIATE(ModulatedLstmHidden, float, 256, 16, 4, 1, 256);
INSTANTIATE(ModulatedGru, float, 256, 16, 4, 1, 128);
#endif

}  // namespace fused_rnn::cuda::cluster

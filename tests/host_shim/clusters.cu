// Kernels of warps for the GPU's compiler, of which tests/test_cluster_sass.py reads the machine code.

#include "../../csrc/cuda/cluster/backward.h"
#include "../../csrc/cuda/cluster/forward.h"

namespace fused_rnn::cuda::cluster {

#define INSTANTIATE(Cell, S, ...)                                                                                    \
  template FUSED_RNN_KERNEL run_forward<Cell, S, Size<__VA_ARGS__>>(FUSED_RNN_PARAMETER Operands<S, ForwardArrays>); \
  template FUSED_RNN_KERNEL run_backward<Cell, S, Size<__VA_ARGS__>>(FUSED_RNN_PARAMETER Operands<S, BackwardArrays>)

INSTANTIATE(Lstm, BFloat16, 128, 1, 1, 1);
INSTANTIATE(Lstm, BFloat16, 512, 16, 2, 1);
INSTANTIATE(GruResetAfter, Half, 256, 8, 2, 2);

}  // namespace fused_rnn::cuda::cluster

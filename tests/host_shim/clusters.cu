// Kernels of warps for the GPU's compiler, of which tests/test_cluster_sass.py reads the machine code.

#include "../../csrc/cuda/cluster/backward.h"
#include "../../csrc/cuda/cluster/forward.h"

namespace fused_rnn::cuda::cluster {

#define INSTANTIATE_FORWARD(Cell, S, ...) \
  template FUSED_RNN_KERNEL run_forward<Cell, S, Size<__VA_ARGS__>>(FUSED_RNN_PARAMETER Operands<S, ForwardArrays>)
#define INSTANTIATE_BACKWARD(Cell, S, ...) \
  template FUSED_RNN_KERNEL run_backward<Cell, S, Size<__VA_ARGS__>>(FUSED_RNN_PARAMETER Operands<S, BackwardArrays>)
#define INSTANTIATE(Cell, S, ...)            \
  INSTANTIATE_FORWARD(Cell, S, __VA_ARGS__); \
  INSTANTIATE_BACKWARD(Cell, S, __VA_ARGS__)

using ModulatedLstm = Modulated<Lstm, Modulates::input>;
using ModulatedLstmHidden = Modulated<Lstm, Modulates::hidden>;
using ModulatedGru = Modulated<Gru, Modulates::input>;

INSTANTIATE(Lstm, BFloat16, 128, 1, 1, 1);
INSTANTIATE(Lstm, BFloat16, 512, 16, 2, 1);
INSTANTIATE(GruResetAfter, Half, 256, 8, 2, 2);
INSTANTIATE_BACKWARD(Gru, BFloat16, 512, 16, 2, 1);
INSTANTIATE_BACKWARD(ModulatedLstm, BFloat16, 512, 16, 2, 1, 128);
INSTANTIATE_BACKWARD(ModulatedLstmHidden, BFloat16, 512, 16, 2, 1, 512);
INSTANTIATE_BACKWARD(ModulatedGru, BFloat16, 512, 16, 2, 1, 128);

}  // namespace fused_rnn::cuda::cluster

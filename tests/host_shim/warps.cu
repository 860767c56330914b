// The kernels of warps for the GPU's compiler, in the sizes that their registers are counted for.

#include "warp_lstm.h"
#include "warp_sums.h"

namespace fused_rnn::cuda {

template __global__ void warp_lstm<BFloat16, 128, 4, 1, 1>(FUSED_RNN_PARAMETER WarpLstm<BFloat16>);
template __global__ void warp_lstm<Half, 128, 4, 1, 1>(FUSED_RNN_PARAMETER WarpLstm<Half>);
template __global__ void warp_lstm<BFloat16, 512, 16, 2, 1>(FUSED_RNN_PARAMETER WarpLstm<BFloat16>);
template __global__ void warp_lstm<BFloat16, 512, 16, 4, 2>(FUSED_RNN_PARAMETER WarpLstm<BFloat16>);
template __global__ void warp_sums<Half, 128, 4>(FUSED_RNN_PARAMETER WarpSums<Half>);
template __global__ void warp_sums<BFloat16, 512, 16>(FUSED_RNN_PARAMETER WarpSums<BFloat16>);

}  // namespace fused_rnn::cuda

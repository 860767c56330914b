// The backward kernels of warps for tensors of type float16.

#include "../launch.h"

namespace fused_rnn::cuda {
FUSED_RNN_INSTANTIATE_CLUSTER(template, BackwardCall, Half);
}  // namespace fused_rnn::cuda

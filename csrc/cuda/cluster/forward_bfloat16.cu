// The forward kernels of warps for tensors of type bfloat16.

#include "../launch.h"

namespace fused_rnn::cuda {
FUSED_RNN_INSTANTIATE_CLUSTER(template, ForwardCall, BFloat16);
}  // namespace fused_rnn::cuda

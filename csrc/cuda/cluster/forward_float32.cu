// The forward kernels of warps for tensors of type float32.

#include "../launch.h"

namespace fused_rnn::cuda {
FUSED_RNN_INSTANTIATE_CLUSTER(template, ForwardCall, float);
}  // namespace fused_rnn::cuda

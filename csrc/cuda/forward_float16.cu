// The forward kernels for tensors of type float16.

#include "launch.h"

namespace fused_rnn::cuda {
FUSED_RNN_INSTANTIATE(template, ForwardCall, Half);
}  // namespace fused_rnn::cuda

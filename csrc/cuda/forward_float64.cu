// The forward kernels for tensors of type float64.

#include "launch.h"

namespace fused_rnn::cuda {
FUSED_RNN_INSTANTIATE(template, ForwardCall, double);
}  // namespace fused_rnn::cuda

// The backward kernels for tensors of type float32.

#include "launch.h"

namespace fused_rnn::cuda {
FUSED_RNN_INSTANTIATE(template, BackwardCall, float);
}  // namespace fused_rnn::cuda

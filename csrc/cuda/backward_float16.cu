// The backward kernels for tensors of type float16.

#include "launch.h"

namespace fused_rnn::cuda {
FUSED_RNN_INSTANTIATE(template, BackwardCall, Half);
}  // namespace fused_rnn::cuda

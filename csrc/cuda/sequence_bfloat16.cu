// The kernels for tensors of type bfloat16.

#include "launch.h"

namespace fused_rnn::cuda {
FUSED_RNN_SEQUENCES(template, BFloat16);
}  // namespace fused_rnn::cuda

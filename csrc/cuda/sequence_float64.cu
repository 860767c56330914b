// The kernels for tensors of type float64.

#include "launch.h"

namespace fused_rnn::cuda {
FUSED_RNN_SEQUENCES(template, double);
}  // namespace fused_rnn::cuda

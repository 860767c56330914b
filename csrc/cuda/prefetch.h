// Fetching values ahead of the step that reads them. Apart from device.h, which the measured kernels of clusters share.
#pragma once

#include "device.h"

namespace fused_rnn::cuda {

// Start to bring a value from global memory to L1. On the host, where nothing waits for memory, it does nothing.
FUSED_RNN_DEVICE void prefetch([[maybe_unused]] const void* value) {
#ifdef __CUDA_ARCH__
  asm volatile("prefetch.global.L1 [%0];" ::"l"(value));
#endif
}

}  // namespace fused_rnn::cuda

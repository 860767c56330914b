// The launch of kernels through the CUDA runtime. A file for each type of tensors and each direction instantiates what
// is declared here, so that they compile side by side.
#pragma once

#include <cuda_runtime.h>

#include "dispatch.h"

namespace fused_rnn::cuda {

struct StreamLauncher {
  template <typename P>
  std::string launch(void (*kernel)(P), int64_t blocks, int64_t shared_bytes, const Attributes& attributes,
                     const P& operands, void* stream) const {
    cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
    if (error == cudaSuccess) {
      cudaLaunchAttribute cooperative{};
      cooperative.id = cudaLaunchAttributeCooperative;
      cooperative.val.cooperative = attributes.cooperative;
      cudaLaunchConfig_t config{};
      config.gridDim = dim3(static_cast<unsigned>(blocks));
      config.blockDim = dim3(threads);
      config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
      config.stream = static_cast<cudaStream_t>(stream);
      config.attrs = &cooperative;
      config.numAttrs = 1;
      void* arguments[] = {const_cast<void*>(static_cast<const void*>(&operands))};
      error = cudaLaunchKernelExC(&config, reinterpret_cast<const void*>(kernel), arguments);
    }
    if (error == cudaSuccess) return "";
    cudaGetLastError();  // or the next call of anybody would report it again
    return std::string(cudaGetErrorName(error)) + ": " + cudaGetErrorString(error) + " (launch of " +
           std::to_string(blocks) + " blocks of " + std::to_string(threads) + " threads with " +
           std::to_string(shared_bytes) + " bytes of shared memory each)";
  }
};

// An instantiation: with `template` in the file that compiles it, with `extern template` elsewhere.
#define FUSED_RNN_INSTANTIATE(instantiate, Call, S) \
  instantiate Prepared prepare_as<S>(const Call&, const Chip&, const Division&, const StreamLauncher&)

}  // namespace fused_rnn::cuda

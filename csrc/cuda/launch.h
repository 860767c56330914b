// Launches kernels through the CUDA runtime. There is a file for each tensor type and each direction that instantiates
// what is declared here, so that they compile in parallel.
#pragma once

#include <cuda_runtime.h>

#include "dispatch.h"

namespace fused_rnn::cuda {

constexpr int portable_cluster = 8;  // blocks, which every GPU with clusters supports

constexpr int64_t allowed_shared_bytes = 48 * 1024;  // dynamic shared memory of a block that needs no permission

class StreamLauncher {
 public:
  explicit StreamLauncher(const Chip& chip) : most_shared_bytes_(chip.shared_bytes) {}

  template <typename P>
  std::string launch(void (*kernel)(P), int64_t blocks, int64_t shared_bytes, const Attributes& attributes,
                     const P& operands, void* stream) const {
    const auto* const address = reinterpret_cast<const void*>(kernel);
    cudaError_t error = cudaSuccess;
    // always the same permission: it is the function's, and another thread may be about to launch that, too
    if (shared_bytes > allowed_shared_bytes)
      error = cudaFuncSetAttribute(address, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   static_cast<int>(most_shared_bytes_));
    if (error == cudaSuccess && attributes.cluster > portable_cluster)
      error = cudaFuncSetAttribute(address, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
    if (error == cudaSuccess) {
      cudaLaunchAttribute wanted[2] = {};
      wanted[0].id = cudaLaunchAttributeCooperative;
      wanted[0].val.cooperative = attributes.cooperative;
      wanted[1].id = cudaLaunchAttributeClusterDimension;
      wanted[1].val.clusterDim.x = static_cast<unsigned>(attributes.cluster);
      wanted[1].val.clusterDim.y = wanted[1].val.clusterDim.z = 1;
      cudaLaunchConfig_t config{};
      config.gridDim = dim3(static_cast<unsigned>(blocks));
      config.blockDim = dim3(static_cast<unsigned>(attributes.threads));
      config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
      config.stream = static_cast<cudaStream_t>(stream);
      config.attrs = wanted;
      config.numAttrs = attributes.cluster > 0 ? 2 : 1;  // older GPUs have no clusters
      void* arguments[] = {const_cast<void*>(static_cast<const void*>(&operands))};
      error = cudaLaunchKernelExC(&config, address, arguments);
    }
    if (error == cudaSuccess) return "";
    cudaGetLastError();  // clears the error: else the process's next CUDA call would report it
    return std::string(cudaGetErrorName(error)) + ": " + cudaGetErrorString(error) + " (launch of " +
           std::to_string(blocks) + " blocks of " + std::to_string(attributes.threads) + " threads with " +
           std::to_string(shared_bytes) + " bytes of shared memory each" +
           (attributes.cluster > 1 ? ", in clusters of " + std::to_string(attributes.cluster) : "") + ")";
  }

 private:
  int64_t most_shared_bytes_;  // that a block can have
};

// An explicit instantiation: `template` in the file that compiles it, `extern template` elsewhere.
#define FUSED_RNN_INSTANTIATE(instantiate, Call, S) \
  instantiate Prepared prepare_as<S>(const Call&, const Chip&, const Division&, const StreamLauncher&)

// The warp kernels are instantiated in files of their own, in cluster/.
#define FUSED_RNN_INSTANTIATE_CLUSTER(instantiate, Call, S) \
  instantiate Prepared cluster::prepare_as<S>(const Call&, const Chip&, const Division&, const StreamLauncher&)

FUSED_RNN_INSTANTIATE_CLUSTER(extern template, ForwardCall, float);
FUSED_RNN_INSTANTIATE_CLUSTER(extern template, BackwardCall, float);
FUSED_RNN_INSTANTIATE_CLUSTER(extern template, ForwardCall, BFloat16);
FUSED_RNN_INSTANTIATE_CLUSTER(extern template, ForwardCall, Half);
FUSED_RNN_INSTANTIATE_CLUSTER(extern template, BackwardCall, BFloat16);
FUSED_RNN_INSTANTIATE_CLUSTER(extern template, BackwardCall, Half);

}  // namespace fused_rnn::cuda

// The launch of a kernel and memory that it and its caller share: on the host shim, or where nvcc compiles this on the
// GPU, so that one program checks kernels on both. Conversions are those of types.h, which host and device have.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "../../csrc/cuda/device.h"

namespace launching {

using fused_rnn::BFloat16;
using fused_rnn::Half;

inline float value_of(float value) { return value; }
inline float value_of(BFloat16 value) { return fused_rnn::bfloat16_to_float(value); }
inline float value_of(Half value) { return fused_rnn::half_to_float(value); }

template <typename S>
S rounded(float value) {
  if constexpr (std::is_same_v<S, BFloat16>)
    return fused_rnn::float_to_bfloat16(value);
  else if constexpr (std::is_same_v<S, Half>)
    return fused_rnn::float_to_half(value);
  else
    return value;
}

struct Shape {
  unsigned blocks, threads;
  size_t shared_bytes;
  unsigned cluster;
  unsigned seed = 0;      // of the host shim
  bool gives_up = false;  // likewise: a wait is expected to fail
};

#ifndef __CUDACC__

template <typename T>
using Memory = std::vector<T>;

template <typename Q>
void launch(const Shape& shape, void (*kernel)(Q), const std::remove_const_t<Q>& q) {
  host_shim::Launch on_host{{shape.blocks}, {shape.threads}, shape.shared_bytes, shape.seed, uint64_t{1} << 20};
  on_host.cluster = shape.cluster;
  on_host.gives_up = shape.gives_up;
  host_shim::launch(on_host, kernel, q);
}

#else

inline void require(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

template <typename T>
struct ManagedAllocator {
  using value_type = T;
  T* allocate(size_t n) {
    void* memory = nullptr;
    require(cudaMallocManaged(&memory, n * sizeof(T)), "cudaMallocManaged");
    return static_cast<T*>(memory);
  }
  void deallocate(T* memory, size_t) { cudaFree(memory); }
  bool operator==(const ManagedAllocator&) const { return true; }
  bool operator!=(const ManagedAllocator&) const { return false; }
};

template <typename T>
using Memory = std::vector<T, ManagedAllocator<T> >;

template <typename Q>
void launch(const Shape& shape, void (*kernel)(Q), const std::remove_const_t<Q>& q) {
  const auto* const address = reinterpret_cast<const void*>(kernel);
  require(cudaFuncSetAttribute(address, cudaFuncAttributeMaxDynamicSharedMemorySize, shape.shared_bytes), "shared");
  require(cudaFuncSetAttribute(address, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), "clusters");
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {shape.cluster, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(shape.blocks);
  config.blockDim = dim3(shape.threads);
  config.dynamicSmemBytes = shape.shared_bytes;
  config.attrs = &cluster;
  config.numAttrs = 1;
  void* arguments[] = {const_cast<void*>(static_cast<const void*>(&q))};
  require(cudaLaunchKernelExC(&config, address, arguments), "launch");
  require(cudaDeviceSynchronize(), "kernel");
}

#endif

}  // namespace launching

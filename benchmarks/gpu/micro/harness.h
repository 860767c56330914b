// The harness of the micro-measurements: it allocates, launches and times, checks what a kernel computed, and prints.
// Only for nvcc, as part of the one program, micro.cu.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace fused_rnn::cuda {

constexpr int repetitions = 9;

inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}
#define CHECK(call) check(call, #call)

inline void expect(bool condition, const std::string& what) {
  if (!condition) throw std::runtime_error("wrong result: " + what);
}

// Device memory that starts as zeros.
template <typename T>
class Array {
 public:
  explicit Array(size_t size) : size_(size) {
    CHECK(cudaMalloc(&data_, size * sizeof(T)));
    clear();
  }
  ~Array() { cudaFree(data_); }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;

  T* data() const { return data_; }
  void clear() { CHECK(cudaMemsetAsync(data_, 0, size_ * sizeof(T))); }
  std::vector<T> read() const {
    std::vector<T> values(size_);
    CHECK(cudaMemcpy(values.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost));
    return values;
  }

 private:
  size_t size_;
  T* data_ = nullptr;
};

class Event {
 public:
  Event() { CHECK(cudaEventCreate(&event_)); }
  ~Event() { cudaEventDestroy(event_); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  void record() { CHECK(cudaEventRecord(event_)); }
  float since(const Event& start) {
    CHECK(cudaEventSynchronize(event_));
    float ms = 0;
    CHECK(cudaEventElapsedTime(&ms, start.event_, event_));
    return ms;
  }

 private:
  cudaEvent_t event_{};
};

// The device ----------------------------------------------------------------------------------------------------------

inline cudaDeviceProp device;

inline int shared_limit() { return static_cast<int>(device.sharedMemPerBlockOptin); }

// 2, 4, 8, ... blocks, and one on every SM.
inline std::vector<unsigned> block_counts() {
  std::vector<unsigned> counts;
  const auto all = static_cast<unsigned>(device.multiProcessorCount);
  for (unsigned blocks = 2; blocks < all; blocks *= 2) counts.push_back(blocks);
  counts.push_back(all);
  return counts;
}

// Output --------------------------------------------------------------------------------------------------------------

using Parameters = std::vector<std::pair<std::string, long long>>;

inline void print_head(const std::string& name, const Parameters& parameters) {
  std::printf("{\"name\": \"%s\"", name.c_str());
  for (const auto& [key, value] : parameters) std::printf(", \"%s\": %lld", key.c_str(), value);
}

inline void print(const std::string& name, const Parameters& parameters, const char* unit,
                  const std::vector<double>& values) {
  print_head(name, parameters);
  std::printf(", \"unit\": \"%s\", \"values\": [", unit);
  for (size_t i = 0; i < values.size(); ++i) std::printf("%s%.6g", i ? ", " : "", values[i]);
  std::printf("]}\n");
  std::fflush(stdout);
}

inline void print_error(const std::string& name, const Parameters& parameters, std::string text) {
  std::replace(text.begin(), text.end(), '"', '\'');
  std::replace(text.begin(), text.end(), '\n', ' ');
  print_head(name, parameters);
  std::printf(", \"error\": \"%s\"}\n", text.c_str());
  std::fflush(stdout);
}

inline bool any_failed = false;

// Measure, and print the values or the error. Exits if the device is lost.
inline void attempt(const std::string& name, const Parameters& parameters, const char* unit,
                    const std::function<std::vector<double>()>& measure) {
  try {
    print(name, parameters, unit, measure());
  } catch (const std::exception& error) {
    any_failed = true;
    print_error(name, parameters, error.what());
    cudaGetLastError();
    if (cudaDeviceSynchronize() != cudaSuccess) std::exit(1);
  }
}

// Launching -----------------------------------------------------------------------------------------------------------

// Launch with all blocks resident at once, or fail.
template <typename Q>
void launch_grid(void (*kernel)(Q), unsigned blocks, unsigned block_threads, std::remove_const_t<Q> q) {
  void* arguments[] = {&q};
  CHECK(cudaLaunchCooperativeKernel(reinterpret_cast<void*>(kernel), dim3(blocks), dim3(block_threads), arguments, 0,
                                    nullptr));
}

struct ClusterLaunch {
  unsigned size, clusters, threads;
  size_t shared_bytes;
};

template <typename Q>
void launch_clusters(void (*kernel)(Q), const ClusterLaunch& shape, std::remove_const_t<Q> q) {
  if (shape.size > 8) CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {shape.size, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(shape.size * shape.clusters);
  config.blockDim = dim3(shape.threads);
  config.dynamicSmemBytes = shape.shared_bytes;
  config.attrs = &attribute;
  config.numAttrs = 1;
  if (shape.clusters > 1) {
    int most = 0;
    CHECK(cudaOccupancyMaxActiveClusters(&most, kernel, &config));
    config.gridDim = dim3(shape.size * std::min<unsigned>(shape.clusters, most));
    expect(most > 0, "no such cluster fits the device");
  }
  CHECK(cudaLaunchKernelEx(&config, kernel, q));
  CHECK(cudaGetLastError());
}

// µs per round, from launches with N and with 2N rounds.
inline std::vector<double> us_per_round(int rounds, const std::function<void(int)>& launch) {
  Event begin, middle, end;
  launch(rounds);
  std::vector<double> values;
  for (int i = 0; i < repetitions; ++i) {
    begin.record();
    launch(rounds);
    middle.record();
    launch(2 * rounds);
    end.record();
    const double both = end.since(middle), one = middle.since(begin);
    values.push_back(1000 * (both - one) / rounds);
  }
  return values;
}

}  // namespace fused_rnn::cuda

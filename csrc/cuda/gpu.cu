// The GPUs of this machine, and the word that kernels set when they time out.

#include <atomic>
#include <map>
#include <mutex>
#include <stdexcept>
#include <vector>

#include "architectures.h"
#include "gpu.h"

namespace fused_rnn::cuda {
namespace {

constexpr int oldest = 80, oldest_with_clusters = 90;  // compute capability

#define FUSED_RNN_TEXT(tokens) #tokens
#define FUSED_RNN_TEXT_OF(macro) FUSED_RNN_TEXT(macro)
constexpr char built[] = FUSED_RNN_TEXT_OF(FUSED_RNN_CUDA_CODE);  // what setup.py had compiled

// The text of an error. It is cleared, so that no later call reports it again.
std::string text(cudaError_t error) {
  cudaGetLastError();
  return cudaGetErrorString(error);
}

// Allows calls while a CUDA graph is being captured. CUDA refuses those that might wait for the device; none here does.
class AllowedInCapture {
 public:
  AllowedInCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~AllowedInCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  AllowedInCapture(const AllowedInCapture&) = delete;
  AllowedInCapture& operator=(const AllowedInCapture&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

std::string version(int number) { return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10); }

// What is wrong with the driver.
std::string driver() {
  int found = 0;
  cudaDriverGetVersion(&found);
  if (found == 0) return "there is no NVIDIA driver";
  return "the NVIDIA driver is for CUDA " + version(found) + ", the kernels were built with CUDA " +
         version(CUDART_VERSION);
}

struct Machine {
  std::string error;  // why there are no GPUs
  std::vector<Gpu> gpus;
};

__global__ void nothing() {}

// How many clusters of `blocks` blocks run at the same time if each block takes all the shared memory that it can have;
// zero if the device refuses.
int clusters_at_once(int blocks, int64_t shared_bytes) {
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = static_cast<unsigned>(blocks);
  cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(32);
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.attrs = &cluster;
  config.numAttrs = 1;
  int count = 0;
  const bool answered =
      cudaFuncSetAttribute(nothing, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)) ==
          cudaSuccess &&
      cudaFuncSetAttribute(nothing, cudaFuncAttributeNonPortableClusterSizeAllowed, 1) == cudaSuccess &&
      cudaOccupancyMaxActiveClusters(&count, nothing, &config) == cudaSuccess;
  if (!answered) cudaGetLastError();  // else the process's next CUDA call would report it
  return answered ? count : 0;
}

Gpu look_at(int index) {
  cudaDeviceProp properties;
  const cudaError_t error = cudaGetDeviceProperties(&properties, index);
  if (error != cudaSuccess) throw std::runtime_error("fused_rnn: GPU " + std::to_string(index) + ": " + text(error));
  return {properties.name, 10 * properties.major + properties.minor, properties.multiProcessorCount,
          static_cast<int64_t>(properties.sharedMemPerBlockOptin)};
}

Machine look_around() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  Machine machine;
  if (error == cudaErrorInsufficientDriver)
    machine.error = "CUDA finds no GPU: " + driver();
  else if (error != cudaSuccess)
    machine.error = "CUDA finds no GPU: " + text(error);
  for (int index = 0; index < count; ++index) machine.gpus.push_back(look_at(index));
  return machine;
}

const Machine& machine() {
  static const Machine found = look_around();
  return found;
}

std::atomic<unsigned*> the_word{nullptr};  // null until it is allocated

// Allocate the word, which is never freed: a kernel may write to it at any time.
unsigned* allocate_word() {
  const AllowedInCapture allowed;
  void* memory = nullptr;
  const cudaError_t error = cudaHostAlloc(&memory, sizeof(unsigned), cudaHostAllocMapped | cudaHostAllocPortable);
  if (error != cudaSuccess) throw std::runtime_error("fused_rnn: no memory that host and GPU share: " + text(error));
  return the_word = new (memory) unsigned(0);
}

}  // namespace

std::string obstacle(int64_t index) {
  const Machine& m = machine();
  if (!m.error.empty()) return m.error;
  if (index < 0 || index >= static_cast<int64_t>(m.gpus.size()))
    return "there is no GPU " + std::to_string(index) + " among the " + std::to_string(m.gpus.size()) +
           " of this machine";
  const Gpu& g = m.gpus[index];
  const std::string is = g.name + " is sm_" + std::to_string(g.compute_capability);
  if (g.compute_capability < oldest) return is + ", and the kernels need sm_" + std::to_string(oldest) + " or newer";
  if (compiled_for(built, g.compute_capability)) return "";
  return is + ", and the library has code for " + built +
         " alone: build it with FUSED_RNN_CUDA_ARCHS=" + std::to_string(g.compute_capability);
}

const Gpu& gpu(int64_t index) { return machine().gpus[index]; }

const Chip& chip(int64_t index) {
  static std::mutex mutex;
  static std::map<int64_t, Chip> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find(index);
  if (found != known.end()) return found->second;
  const Gpu& g = gpu(index);
  Chip chip{.multiprocessors = g.multiprocessors, .shared_bytes = g.shared_bytes, .name = g.name.c_str()};
  // code for older architectures has kernels of clusters, too, but empty ones
  if (compiled_for(built, g.compute_capability) >= oldest_with_clusters) {
    const AllowedInCapture allowed;
    int current = 0;
    cudaGetDevice(&current);
    use(index);
    for (int i = 0; i < cluster_sizes; ++i) chip.clusters[i] = clusters_at_once(1 << i, chip.shared_bytes);
    cudaSetDevice(current);
  }
  return known[index] = chip;
}

void use(int64_t index) {
  const cudaError_t error = cudaSetDevice(static_cast<int>(index));
  if (error != cudaSuccess) throw std::runtime_error("fused_rnn: GPU " + std::to_string(index) + ": " + text(error));
}

unsigned* timed_out_word() {
  static unsigned* const word = allocate_word();
  return word;
}

bool take_timed_out() {
  unsigned* const word = the_word;
  return word && __atomic_load_n(word, __ATOMIC_RELAXED) && __atomic_exchange_n(word, 0u, __ATOMIC_RELAXED);
}

}  // namespace fused_rnn::cuda

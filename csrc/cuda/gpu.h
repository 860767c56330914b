// The GPUs of this machine, as the CUDA runtime describes them; read once. Needs no CUDA headers.
#pragma once

#include <string>

#include "api.h"

namespace fused_rnn::cuda {

struct Gpu {
  std::string name;
  int compute_capability;  // 90 for 9.0
  int multiprocessors;
  int64_t shared_bytes;  // most that a block can have
};

// Why the kernels cannot run on a GPU, or an empty string if they can.
std::string obstacle(int64_t index);

// Only for a GPU without an obstacle.
const Gpu& gpu(int64_t index);

// What plans must know of a GPU. Likewise, and only for a GPU that the process is to use: a context is created there.
const Chip& chip(int64_t index);

// Make a GPU the current one of this library's CUDA runtime, which is a different one from torch's.
void use(int64_t index);

// The word that kernels set when they time out, in host memory that every GPU can write.
unsigned* timed_out_word();

// Whether a kernel has timed out since the last call.
bool take_timed_out();

}  // namespace fused_rnn::cuda

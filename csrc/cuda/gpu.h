// What the CUDA runtime knows of the GPUs of this machine, read once, without its headers.
#pragma once

#include <string>

#include "api.h"

namespace fused_rnn::cuda {

struct Gpu {
  std::string name;
  int compute_capability;  // 90 for 9.0
  int multiprocessors;
  int64_t shared_bytes;  // of a block, at most
};

// Why the kernels cannot run on a GPU, or an empty string if they can.
std::string obstacle(int64_t index);

// Only for a GPU without obstacle.
const Gpu& gpu(int64_t index);

// What plans must know of a GPU, which becomes one of those that the process uses. Likewise.
const Chip& chip(int64_t index);

// Make a GPU the current one of the CUDA runtime in this library, which is another than the runtime that torch brings.
void use(int64_t index);

// The word that kernels set when they time out, in memory of the host that every GPU can write.
unsigned* timed_out_word();

// Whether a kernel timed out since the last look.
bool take_timed_out();

}  // namespace fused_rnn::cuda

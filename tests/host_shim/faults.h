// The faults that tests seed into the small kernels, which the shim must report. One is chosen by name at run time, so
// that one program has them all; the GPU's compiler sees kernels without any.
#pragma once

#include <string_view>

#include "../../csrc/cuda/device.h"

namespace fused_rnn::cuda {

#ifdef __CUDACC__
FUSED_RNN_DEVICE bool fault(const char*) { return false; }
#else
inline std::string_view seeded_fault;

inline bool fault(std::string_view name) { return name == seeded_fault; }
#endif

}  // namespace fused_rnn::cuda

// The kernels of csrc/cuda for whole sequences in float32 and bfloat16, for the compiler's report.

#include "../../csrc/cuda/sequence.h"

using namespace fused_rnn;
using namespace fused_rnn::cuda;

struct Launcher {
  template <typename P>
  std::string launch(void (*kernel)(P), int64_t blocks, int64_t, bool, const P& operands) {
    kernel<<<static_cast<unsigned>(blocks), threads>>>(operands);
    return "";
  }
};

template std::string fused_rnn::cuda::run_as<float>(const ForwardCall&, const Chip&, void*, Launcher&);
template std::string fused_rnn::cuda::run_as<float>(const BackwardCall&, const Chip&, void*, Launcher&);
template std::string fused_rnn::cuda::run_as<BFloat16>(const ForwardCall&, const Chip&, void*, Launcher&);
template std::string fused_rnn::cuda::run_as<BFloat16>(const BackwardCall&, const Chip&, void*, Launcher&);

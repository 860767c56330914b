// Where the kernels of clusters were measured ahead of those of blocks, and right. Made by
// `python -m benchmarks.gpu.choice --write` from benchmarks/results/choice-*.json: rows go when the sources that they
// were measured with change.
#pragma once

#include "choice.h"

namespace fused_rnn::cuda::cluster {

inline constexpr std::array<Measured, 0> measured{};

}  // namespace fused_rnn::cuda::cluster

// The Launcher of csrc/cuda/dispatch.h that runs kernels on the host shim.
#pragma once

#include "../../csrc/cuda/dispatch.h"

namespace fused_rnn::cuda {

struct HostLauncher {
  unsigned seed = 0;
  int missing = 0;  // blocks that do not come, if blocks must run together; in clusters, the store that gets lost

  template <typename P>
  std::string launch(void (*kernel)(const P), int64_t blocks, int64_t shared_bytes, const Attributes& attributes,
                     const P& operands, void* /*stream*/) const {
    try {
      host_shim::Launch shape{{static_cast<unsigned>(blocks)},
                              {static_cast<unsigned>(attributes.threads)},
                              static_cast<size_t>(shared_bytes),
                              seed,
                              uint64_t{1} << 24};
      if (attributes.cooperative) shape.absent = static_cast<unsigned>(missing);
      if (attributes.cluster > 0) {
        shape.cluster = static_cast<unsigned>(attributes.cluster);
        shape.gives_up = missing > 0;
        shape.lost = static_cast<unsigned>(missing);
      }
      host_shim::launch(shape, kernel, operands);
      return "";
    } catch (const std::exception& error) {
      return error.what();
    }
  }
};

}  // namespace fused_rnn::cuda

// Lays out pieces of memory one after the other, as offsets: the address of the whole is not known yet. Runs on the
// host.
#pragma once

#include "shape.h"

namespace fused_rnn::cuda {

class Arena {
 public:
  explicit Arena(int64_t alignment) : alignment_(alignment) {}

  // The offset of a new piece.
  int64_t take(int64_t bytes) {
    const int64_t offset = round_up(used_, alignment_);
    used_ = offset + bytes;
    return offset;
  }
  int64_t used() const { return used_; }

 private:
  const int64_t alignment_;
  int64_t used_ = 0;
};

}  // namespace fused_rnn::cuda

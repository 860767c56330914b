// Where the kernels of clusters are chosen before those of blocks, if nothing forces either: where they were measured
// ahead, and right. measured.h has the table.
#pragma once

#include <array>
#include <cstddef>
#include <string_view>

#include "../api.h"

namespace fused_rnn::cuda::cluster {

// A range of sizes in which the kernels were ahead on a chip, forward and backward together.
struct Measured {
  CellId cell;
  Type type;
  bool whole_rows;                    // whether H is a multiple of 8, or not
  int64_t least_hidden, most_hidden;  // of H, both included
  int64_t least_batch, most_batch;    // of B, both included
  std::string_view chip;              // as CUDA names it
};

// Whether a row of the table covers these sizes on this chip.
template <size_t rows>
constexpr bool measured_ahead(const std::array<Measured, rows>& table, CellId cell, Type type, int64_t H, int64_t B,
                              std::string_view chip) {
  for (const Measured& row : table)
    if (row.cell == cell && row.type == type && row.whole_rows == (H % 8 == 0) && row.least_hidden <= H &&
        H <= row.most_hidden && row.least_batch <= B && B <= row.most_batch && row.chip == chip)
      return true;
  return false;
}

}  // namespace fused_rnn::cuda::cluster

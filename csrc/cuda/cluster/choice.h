// The choice between warp kernels and block kernels if nothing forces either: warp kernels run where they were measured
// to be faster, and right. measured.h has the table.
#pragma once

#include <array>
#include <cstddef>
#include <string_view>

#include "../api.h"

namespace fused_rnn::cuda::cluster {

// A range of sizes in which warp kernels were faster on a chip, forward and backward together.
struct Measured {
  CellId cell;
  Modulates modulates;
  Type type;
  bool whole_rows;                        // whether H and the number of features are multiples of 8
  int64_t least_hidden, most_hidden;      // of H, both included
  int64_t least_batch, most_batch;        // of B, both included
  int64_t least_features, most_features;  // of I, both included, if the input is modulated; else zeros
  std::string_view chip;                  // as CUDA names it
};

// Whether a row of the table covers a layer on this chip.
template <size_t rows>
constexpr bool measured_ahead(const std::array<Measured, rows>& table, const Layer& layer, std::string_view chip) {
  const int64_t features = layer.modulates == Modulates::input ? layer.I : 0;
  const bool whole_rows = layer.H % 8 == 0 && features % 8 == 0;
  const auto within = [](int64_t least, int64_t size, int64_t most) { return least <= size && size <= most; };
  for (const Measured& row : table)
    if (row.cell == layer.cell && row.modulates == layer.modulates && row.type == layer.type &&
        row.whole_rows == whole_rows && within(row.least_hidden, layer.H, row.most_hidden) &&
        within(row.least_batch, layer.B, row.most_batch) && within(row.least_features, features, row.most_features) &&
        row.chip == chip)
      return true;
  return false;
}

}  // namespace fused_rnn::cuda::cluster

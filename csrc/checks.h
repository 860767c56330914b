// The checks that the operators of every device share. Their errors are for callers of an operator itself: they
// keep a kernel from reading or writing out of bounds.
#pragma once

#include <initializer_list>
#include <limits>
#include <sstream>
#include <stdexcept>
#include <string_view>

#include "sequence.h"

namespace fused_rnn {

template <typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  message << "fused_rnn: ";
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

inline CellSpec cell_spec(std::string_view name) {
  constexpr std::string_view prefix = "multiplicative_", suffix = "_hidden";
  Modulates modulates = Modulates::nothing;
  std::string_view base = name;
  if (base.substr(0, prefix.size()) == prefix) {
    modulates = Modulates::input;
    base.remove_prefix(prefix.size());
    if (base.size() > suffix.size() && base.substr(base.size() - suffix.size()) == suffix) {
      modulates = Modulates::hidden;
      base.remove_suffix(suffix.size());
    }
  }
  constexpr struct {
    std::string_view name;
    CellId id;
  } cells[] = {{"rnn_tanh", CellId::rnn_tanh},
               {"rnn_relu", CellId::rnn_relu},
               {"lstm", CellId::lstm},
               {"gru", CellId::gru},
               {"gru_reset_after", CellId::gru_reset_after}};
  for (const auto& known : cells)
    if (known.name == base && (modulates != Modulates::hidden || known.id == CellId::lstm))
      return dispatch_cell(known.id, [&](auto cell) {
        using Cell = decltype(cell);
        return CellSpec{known.id,           modulates,       Cell::gates,
                        Cell::saved,        Cell::gradients, Cell::has_cell_state,
                        Cell::reset_before, Cell::n_apart,   Cell::separates_x};
      });
  fail("unknown cell '", name, "'");
}

inline Save save_named(std::string_view name) {
  if (name == "nothing") return Save::nothing;
  if (name == "states") return Save::states;
  if (name == "everything") return Save::everything;
  fail("save must be 'nothing', 'states' or 'everything', got '", name, "'");
}

// The tensor itself if it is contiguous, because even the library's own test of that is a call of an operator.
inline Tensor contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

// Return a contiguous version of a tensor that must have this shape, and the type and device of `like`.
inline Tensor checked(const char* name, const Tensor& tensor, std::initializer_list<int64_t> shape,
                      const Tensor& like) {
  bool fits = tensor.dim() == static_cast<int64_t>(shape.size());
  for (int64_t i = 0; fits && i < tensor.dim(); ++i) fits = tensor.size(i) == shape.begin()[i];
  if (!fits) {
    std::ostringstream expected, given;
    for (const int64_t size : shape) expected << " " << size;
    for (int64_t i = 0; i < tensor.dim(); ++i) given << " " << tensor.size(i);
    fail(name, " must have shape (", expected.str(), " ), got (", given.str(), " )");
  }
  if (tensor.scalar_type() != like.scalar_type()) fail(name, " and input must have the same dtype");
  if (!(tensor.device() == like.device())) fail(name, " and input must be on the same device");
  return fused_rnn::contiguous(tensor);
}

inline OptionalTensor checked(const char* name, const OptionalTensor& tensor, std::initializer_list<int64_t> shape,
                              const Tensor& like) {
  if (!tensor) return std::nullopt;
  return checked(name, *tensor, shape, like);
}

inline OptionalTensor checked_keep_c(const OptionalTensor& keep_c, const CellSpec& cell,
                                     std::initializer_list<int64_t> shape, const Tensor& like) {
  if (keep_c && !cell.has_cell_state) fail("keep_c goes with cells that have a cell state");
  return checked("keep_c", keep_c, shape, like);
}

// Check the largest magnitude of gradients of pre-activations; 0 means no limit.
inline double checked_gradient_clip(double limit) {
  if (!(limit >= 0)) fail("gradient_clip must be positive, or 0 for none, got ", limit);
  return limit > 0 ? limit : std::numeric_limits<double>::infinity();
}

// Check all but the values, which are on the tensor's device.
inline OptionalTensor checked_lengths(const OptionalTensor& lengths, const Tensor& input) {
  if (!lengths) return std::nullopt;
  if (lengths->scalar_type() != ScalarType::Long) fail("lengths must be an int64 tensor");
  if (lengths->dim() != 1 || lengths->size(0) != input.size(1) || !(lengths->device() == input.device()))
    fail("lengths must have one entry per sequence, B = ", input.size(1), ", and be where input is");
  return fused_rnn::contiguous(*lengths);
}

// Check the steps that begin anew, (T, B).
inline OptionalTensor checked_resets(const OptionalTensor& resets, const Tensor& input) {
  if (!resets) return std::nullopt;
  if (resets->scalar_type() != ScalarType::Bool) fail("resets must be a bool tensor");
  if (resets->dim() != 2 || resets->size(0) != input.size(0) || resets->size(1) != input.size(1) ||
      !(resets->device() == input.device()))
    fail("resets must have one entry per step and sequence, (", input.size(0), " ", input.size(1),
         "), and be where input is");
  return fused_rnn::contiguous(*resets);
}

// Check the initial state of these steps; `initial` is the call's own initial state of this kind.
inline OptionalTensor checked_beginning(const char* name, const OptionalTensor& state, const OptionalTensor& resets,
                                        const OptionalTensor& initial) {
  if (!state) return std::nullopt;
  if (!resets) fail(name, " goes with resets");
  if (!initial) fail(name, " goes with cells that have a cell state");
  return checked(name, *state, {initial->size(0), initial->size(1)}, *initial);
}

}  // namespace fused_rnn

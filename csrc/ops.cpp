// The operators: their schemas, which are those of fused_rnn/operands.py, the checks of their arguments, and their
// registration. fused_rnn/derivatives.py adds shape functions and autograd, and fused_rnn/ops.py has the better error
// messages; the checks here keep direct callers from reading or writing out of bounds. The operators of single steps,
// which fused_rnn/quick.py calls, have neither shape functions nor autograd.

#include <cstring>
#include <vector>

#include "checks.h"
#include "cpu/kernels.h"
#include "tensors.h"

namespace fused_rnn {
namespace {

OptionalTensor checked_lengths_and_values(const OptionalTensor& lengths, int64_t steps, const Tensor& input) {
  const OptionalTensor checked = checked_lengths(lengths, input);
  if (!checked) return checked;
  const auto* values = static_cast<const int64_t*>(checked->const_data_ptr());
  for (int64_t b = 0; b < input.size(1); ++b)
    if (values[b] < 0 || values[b] > steps) fail("lengths must be between 0 and T = ", steps, ", got ", values[b]);
  return checked;
}

Sequence sequence(const Tensor& input, const Tensor& h_0, const OptionalTensor& c_0, const Tensor& weight_ih,
                  const Tensor& weight_hh, const OptionalTensor& bias_ih, const OptionalTensor& bias_hh,
                  const OptionalTensor& weight_mih, const OptionalTensor& weight_mhh, const OptionalTensor& bias_m,
                  const OptionalTensor& lengths, const OptionalTensor& keep_h, const OptionalTensor& keep_c,
                  const std::string& cell_name, bool reverse, const OptionalTensor& resets = {},
                  const OptionalTensor& h_reset = {}, const OptionalTensor& c_reset = {}) {
  const CellSpec cell = cell_spec(cell_name);
  if (input.dim() != 3 || input.numel() == 0) fail("input must be a non-empty (T, B, I) tensor");
  if (h_0.dim() != 2 || h_0.size(1) == 0) fail("h_0 must be a (B, H) tensor with H at least 1");
  if (cell.has_cell_state != c_0.has_value()) fail("c_0 goes with cells that have a cell state, and only with these");
  if (cell.multiplicative() != weight_mih.has_value() || cell.multiplicative() != weight_mhh.has_value())
    fail("weight_mih and weight_mhh go with multiplicative cells, and only with these");
  if (bias_m && cell.modulates != Modulates::input) fail("bias_m goes with multiplicative cells that modulate x");
  if (cell.reset_before && bias_hh) fail("this cell has one bias, bias_ih");
  const int64_t T = input.size(0), B = input.size(1), I = input.size(2), H = h_0.size(1), rows = cell.gates * H;
  const int64_t M = cell.modulated_size(I, H);
  return {cell,
          fused_rnn::contiguous(input),
          checked("h_0", h_0, {B, H}, input),
          checked("c_0", c_0, {B, H}, input),
          {checked("weight_ih", weight_ih, {rows, I}, input), checked("weight_hh", weight_hh, {rows, H}, input),
           checked("bias_ih", bias_ih, {rows}, input), checked("bias_hh", bias_hh, {rows}, input),
           checked("weight_mih", weight_mih, {M, I}, input), checked("weight_mhh", weight_mhh, {M, H}, input),
           checked("bias_m", bias_m, {M}, input)},
          checked_lengths_and_values(lengths, T, input),
          checked("keep_h", keep_h, {T, B, H}, input),
          checked_keep_c(keep_c, cell, {T, B, H}, input),
          checked_resets(resets, input),
          checked_beginning("h_reset", h_reset, resets, h_0),
          checked_beginning("c_reset", c_reset, resets, c_0),
          reverse,
          T,
          B,
          I,
          H};
}

void check_instruction_set() {
  if (!cpu::instruction_set())
    fail("FUSED_RNN_CPU_ISA names none of generic, avx2, avx512, amx that this processor has");
}

// A result, or the placeholder of a missing one; each has memory of its own.
Tensor or_empty(const Tensor& result, const Tensor& like) {
  return result.defined() ? result : empty_beside(like, {0});
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> forward(
    Tensor input, Tensor h_0, OptionalTensor c_0, Tensor weight_ih, Tensor weight_hh, OptionalTensor bias_ih,
    OptionalTensor bias_hh, OptionalTensor weight_mih, OptionalTensor weight_mhh, OptionalTensor bias_m,
    OptionalTensor lengths, OptionalTensor keep_h, OptionalTensor keep_c, std::string cell, bool reverse,
    double gradient_clip, std::string save, OptionalTensor resets, OptionalTensor h_reset, OptionalTensor c_reset) {
  check_instruction_set();
  const Sequence q = sequence(input, h_0, c_0, weight_ih, weight_hh, bias_ih, bias_hh, weight_mih, weight_mhh, bias_m,
                              lengths, keep_h, keep_c, cell, reverse, resets, h_reset, c_reset);
  checked_gradient_clip(gradient_clip);  // the backward pass will read it
  const ForwardResult r = cpu::forward(q, save_named(save));
  return {r.output, r.h_n, or_empty(r.c_n, input), or_empty(r.cells, input), or_empty(r.saved, input)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    OptionalTensor d_output, OptionalTensor d_h_n, OptionalTensor d_c_n, OptionalTensor d_cells, Tensor output,
    Tensor cells, Tensor saved, Tensor input, Tensor h_0, OptionalTensor c_0, Tensor weight_ih, Tensor weight_hh,
    OptionalTensor bias_ih, OptionalTensor bias_hh, OptionalTensor weight_mih, OptionalTensor weight_mhh,
    OptionalTensor bias_m, OptionalTensor lengths, OptionalTensor keep_h, OptionalTensor keep_c, std::string cell,
    bool reverse, double gradient_clip, bool input_gradient, bool weight_gradients, OptionalTensor resets,
    OptionalTensor h_reset, OptionalTensor c_reset) {
  check_instruction_set();
  const Sequence q = sequence(input, h_0, c_0, weight_ih, weight_hh, bias_ih, bias_hh, weight_mih, weight_mhh, bias_m,
                              lengths, keep_h, keep_c, cell, reverse, resets, h_reset, c_reset);
  if (!q.cell.has_cell_state && (d_c_n || d_cells)) fail("d_c_n and d_cells go with cells that have a cell state");
  const BackwardInput b{checked("d_output", d_output, {q.T, q.B, q.H}, input),
                        checked("d_h_n", d_h_n, {q.B, q.H}, input),
                        checked("d_c_n", d_c_n, {q.B, q.H}, input),
                        checked("d_cells", d_cells, {q.T, q.B, q.H}, input),
                        checked("output", output, {q.T, q.B, q.H}, input),
                        q.cell.has_cell_state ? checked("cells", cells, {q.T, q.B, q.H}, input) : cells,
                        checked("saved", saved, {q.T, q.B, q.saved_columns(Save::everything)}, input),
                        checked_gradient_clip(gradient_clip),
                        input_gradient,
                        weight_gradients};
  const BackwardResult r = cpu::backward(q, b);
  const auto given = [&](const Tensor& gradient) { return or_empty(gradient, input); };
  return {given(r.input),      r.h_0,
          given(r.c_0),        given(r.weight_ih),
          given(r.weight_hh),  given(r.bias_ih),
          given(r.bias_hh),    given(r.weight_mih),
          given(r.weight_mhh), given(r.bias_m),
          given(r.h_reset),    given(r.c_reset)};
}

// Single steps -------------------------------------------------------------------------------------------------------
// The two operators above for one time step of cells without multiplicative weights. A step is as short as the transfer
// of arguments and results, so they have only its own operands. Input and states are (B, I) and (B, H), or have another
// dimension of 1 in front, and so do results; a missing state is zeros.

// View a contiguous tensor as one of another shape.
Tensor reshaped(const Tensor& tensor, int64_t rows, int64_t columns, bool stacked) {
  const int64_t sizes[3] = {1, rows, columns}, strides[3] = {rows * columns, columns, 1};
  const int skipped = stacked ? 0 : 1;
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(tensor.get(), 3 - skipped, sizes + skipped, strides + skipped,
                                                        0 /* beyond the offset of the tensor itself */, &handle));
  return Tensor(handle);
}

// Accept two dimensions, or three if stacked, the first of them 1.
Tensor stacked_or_not(const char* name, const Tensor& tensor, const Tensor& input, bool stacked) {
  if (tensor.dim() != input.dim() || (tensor.dim() == 3 ? tensor.size(0) != 1 : tensor.dim() != 2))
    fail(name, " of a single step must have two dimensions, or like the input three, of which the first is 1");
  const Tensor whole = fused_rnn::contiguous(tensor);
  if (stacked == (tensor.dim() == 3)) return whole;
  return reshaped(whole, whole.size(whole.dim() - 2), whole.size(whole.dim() - 1), stacked);
}

Tensor copied(const Tensor& tensor, int64_t rows, int64_t columns, bool stacked) {
  const Tensor copy = stacked ? empty_beside(tensor, {1, rows, columns}) : empty_beside(tensor, {rows, columns});
  std::memcpy(copy.mutable_data_ptr(), tensor.const_data_ptr(), tensor.numel() * tensor.element_size());
  return copy;
}

// Whether the output of a step is all that backward reads.
bool saves_output_alone(const CellSpec& cell) { return cell.id == CellId::rnn_tanh || cell.id == CellId::rnn_relu; }

Sequence one_step(const Tensor& input, const OptionalTensor& h_0, const OptionalTensor& c_0, const Tensor& weight_ih,
                  const Tensor& weight_hh, const OptionalTensor& bias_ih, const OptionalTensor& bias_hh,
                  const std::string& cell) {
  check_instruction_set();
  const Tensor x = stacked_or_not("input", input, input, true);
  if (weight_hh.dim() != 2) fail("weight_hh must have two dimensions");
  const auto state = [&](const char* name, const OptionalTensor& given) {
    return given ? OptionalTensor(stacked_or_not(name, *given, input, false)) : std::nullopt;
  };
  OptionalTensor h = state("h_0", h_0), c = state("c_0", c_0);
  if (!h) {
    const CellSpec spec = cell_spec(cell);
    const int64_t H = weight_hh.size(1);  // of any size, before the other operands are checked
    if (weight_hh.size(0) != spec.gates * H) fail("weight_hh must have ", spec.gates, " rows for each of its columns");
    h = empty_beside(x, {x.size(1), H});
    if (h->numel() > 0) std::memset(h->mutable_data_ptr(), 0, h->numel() * h->element_size());
    if (!c && spec.has_cell_state) c = h;
  }
  const OptionalTensor none;
  return sequence(x, *h, c, weight_ih, weight_hh, bias_ih, bias_hh, none, none, none, none, none, none, cell, false);
}

// Return the output if the input has three dimensions, h_n, and c_n if the cell has it; then, if saving, the other
// values that step_backward reads: cells, if there is c_n, and saved, unless that is the output. States have memory of
// their own, because callers may change them before the backward pass.
std::vector<Tensor> step(const Tensor& input, const OptionalTensor& h_0, const OptionalTensor& c_0,
                         const Tensor& weight_ih, const Tensor& weight_hh, const OptionalTensor& bias_ih,
                         const OptionalTensor& bias_hh, const std::string& cell, bool saving) {
  const Sequence q = one_step(input, h_0, c_0, weight_ih, weight_hh, bias_ih, bias_hh, cell);
  const bool stacked = input.dim() == 3, saves = saving && !saves_output_alone(q.cell);
  const ForwardResult r = cpu::forward(q, saves ? Save::everything : q.c_0 ? Save::states : Save::nothing, false);
  const auto state = [&](const Tensor& found, bool kept) {
    return kept ? copied(found, q.B, q.H, stacked) : reshaped(found, q.B, q.H, stacked);
  };
  std::vector<Tensor> results;
  results.reserve(5);
  if (stacked) results.push_back(r.output);
  results.push_back(state(r.output, stacked || (saving && !saves)));
  if (q.c_0) results.push_back(state(r.cells, saving));
  if (saving && q.c_0) results.push_back(r.cells);
  if (saves)
    results.push_back(r.saved);
  else if (saving && !stacked)
    results.push_back(r.output);
  return results;
}

using StepGradients = std::tuple<OptionalTensor, OptionalTensor, OptionalTensor, OptionalTensor, OptionalTensor,
                                 OptionalTensor, OptionalTensor>;

// Return the gradients of input, states and weights; those that do not exist or are not wanted are empty.
StepGradients step_backward(const OptionalTensor& d_output, const OptionalTensor& d_h_n, const OptionalTensor& d_c_n,
                            const OptionalTensor& cells, const Tensor& saved, const Tensor& input,
                            const OptionalTensor& h_0, const OptionalTensor& c_0, const Tensor& weight_ih,
                            const Tensor& weight_hh, const OptionalTensor& bias_ih, const OptionalTensor& bias_hh,
                            const std::string& cell, bool input_gradient, bool weight_gradients) {
  const Sequence q = one_step(input, h_0, c_0, weight_ih, weight_hh, bias_ih, bias_hh, cell);
  const bool stacked = input.dim() == 3;
  if (q.c_0.has_value() != cells.has_value()) fail("cells goes with cells that have a cell state, and only with these");
  if (!q.c_0 && d_c_n) fail("d_c_n goes with cells that have a cell state");
  const auto of_state = [&](const char* name, const OptionalTensor& given) -> OptionalTensor {
    if (!given) return std::nullopt;
    return checked(name, stacked_or_not(name, *given, input, false), {q.B, q.H}, input);
  };
  const Tensor read = checked("saved", saved, {1, q.B, q.saved_columns(Save::everything)}, input);
  const BackwardInput b{checked("d_output", d_output, {1, q.B, q.H}, input),
                        of_state("d_h_n", d_h_n),
                        of_state("d_c_n", d_c_n),
                        std::nullopt,
                        read,  // in place of outputs, which only later steps read
                        cells ? checked("cells", *cells, {1, q.B, q.H}, input) : read,
                        read,
                        checked_gradient_clip(0),
                        input_gradient,
                        weight_gradients};
  const BackwardResult r = cpu::backward(q, b);
  const auto found = [](const Tensor& gradient) {
    return gradient.defined() ? OptionalTensor(gradient) : std::nullopt;
  };
  const auto state = [&](const Tensor& gradient, const OptionalTensor& given) {
    return given ? OptionalTensor(stacked ? reshaped(gradient, q.B, q.H, true) : gradient) : std::nullopt;
  };
  return {input_gradient && !stacked ? reshaped(r.input, q.B, q.I, false) : found(r.input),
          state(r.h_0, h_0),
          state(r.c_0, c_0),
          found(r.weight_ih),
          found(r.weight_hh),
          found(r.bias_ih),
          found(r.bias_hh)};
}

// Return why this build has no CUDA kernels; empty if it has them.
std::string without_cuda() {
#ifdef FUSED_RNN_WITHOUT_CUDA
  return FUSED_RNN_WITHOUT_CUDA;
#else
  return "";
#endif
}

std::string cpu_instruction_set() {
  check_instruction_set();
  return cpu::instruction_set();
}

}  // namespace
}  // namespace fused_rnn

#define FUSED_RNN_OPERANDS                                                                                        \
  "Tensor input, Tensor h_0, Tensor? c_0, Tensor weight_ih, Tensor weight_hh, Tensor? bias_ih, Tensor? bias_hh, " \
  "Tensor? weight_mih, Tensor? weight_mhh, Tensor? bias_m, Tensor? lengths, Tensor? keep_h, Tensor? keep_c, "     \
  "str cell, bool reverse, float gradient_clip, "

// These come last, for programs that were saved before they existed.
#define FUSED_RNN_LATER ", Tensor? resets=None, Tensor? h_reset=None, Tensor? c_reset=None"

#define FUSED_RNN_STEP                                                                                             \
  "Tensor input, Tensor? h_0, Tensor? c_0, Tensor weight_ih, Tensor weight_hh, Tensor? bias_ih, Tensor? bias_hh, " \
  "str cell, "

#define FUSED_RNN_BACKWARD                                                                                       \
  "(Tensor? d_output, Tensor? d_h_n, Tensor? d_c_n, Tensor? d_cells, Tensor output, "                            \
  "Tensor cells, Tensor saved, " FUSED_RNN_OPERANDS "bool input_gradient, bool weight_gradients" FUSED_RNN_LATER \
  ") -> (Tensor d_input, Tensor d_h_0, Tensor d_c_0, "                                                           \
  "Tensor d_weight_ih, Tensor d_weight_hh, Tensor d_bias_ih, Tensor d_bias_hh, Tensor d_weight_mih, "            \
  "Tensor d_weight_mhh, Tensor d_bias_m, Tensor d_h_reset, Tensor d_c_reset)"

STABLE_TORCH_LIBRARY(fused_rnn, m) {
  m.def("forward(" FUSED_RNN_OPERANDS "str save" FUSED_RNN_LATER
        ") -> (Tensor output, Tensor h_n, Tensor c_n, Tensor cells, Tensor saved)");
  m.def("backward" FUSED_RNN_BACKWARD);
  m.def("backward_from_states" FUSED_RNN_BACKWARD);  // recompute.py implements it by the two above
  m.def("step(" FUSED_RNN_STEP "bool saving) -> Tensor[]");
  m.def("step_backward(Tensor? d_output, Tensor? d_h_n, Tensor? d_c_n, Tensor? cells, Tensor saved, " FUSED_RNN_STEP
        "bool input_gradient, bool weight_gradients) -> (Tensor? d_input, Tensor? d_h_0, Tensor? d_c_0, "
        "Tensor? d_weight_ih, Tensor? d_weight_hh, Tensor? d_bias_ih, Tensor? d_bias_hh)");
  m.def("cpu_instruction_set() -> str");
  m.def("without_cuda() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(fused_rnn, CPU, m) {
  m.impl("forward", TORCH_BOX(&fused_rnn::forward));
  m.impl("backward", TORCH_BOX(&fused_rnn::backward));
  m.impl("step", TORCH_BOX(&fused_rnn::step));
  m.impl("step_backward", TORCH_BOX(&fused_rnn::step_backward));
}

STABLE_TORCH_LIBRARY_IMPL(fused_rnn, CompositeExplicitAutograd, m) {
  m.impl("cpu_instruction_set", TORCH_BOX(&fused_rnn::cpu_instruction_set));
  m.impl("without_cuda", TORCH_BOX(&fused_rnn::without_cuda));
}

// The operators around the CUDA kernels: the time loop alone, forward and backward. fused_rnn/cuda.py calls the
// library's products before and after it, and the whole is fused_rnn::forward and fused_rnn::backward on a GPU.
//
// A call queues work on torch's current stream and returns. It neither waits for the GPU nor reads anything back, so a
// CUDA graph can capture it. For the same reason the values of lengths are not checked: less than 0 counts as 0 and
// more than T as T.

#include <torch/csrc/stable/accelerator.h>

#include <algorithm>
#include <limits>

#include "../checks.h"
#include "../tensors.h"
#include "api.h"
#include "gpu.h"

// Only CUDA builds of torch have this function. The reference is weak, so that the library loads without it.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void** stream);

namespace fused_rnn {
namespace {

using torch::stable::accelerator::DeviceGuard;

// The checked operands that both directions read.
struct Operands {
  CellSpec cell;
  OptionalTensor input;                  // (T, B, I) multiplicative cells; in Krause's mLSTM (T, B, H) W_m x
  Tensor h_0;                            // (B, H)
  OptionalTensor c_0;                    // (B, H) cells with a cell state
  OptionalTensor weight_ih, weight_mhh;  // (G*H, I) if x is modulated, (I, H) multiplicative cells
  Tensor weight_hh;                      // (G*H, H)
  OptionalTensor lengths;
  OptionalTensor keep_h, keep_c;            // (T, B, H)
  OptionalTensor resets, h_reset, c_reset;  // (T, B), (B, H)
  bool reverse;
  int64_t T, B, I, H;
};

CellSpec cell_with_kernels(const std::string& name) {
  const CellSpec cell = cell_spec(name);
  if (cell.modulates == Modulates::input && cell.id != CellId::lstm && cell.id != CellId::gru)
    fail("the CUDA kernels have no cell '", name, "'");
  return cell;
}

// steps: any tensor (T, B, ...) of the call.
Operands operands(const Tensor& steps, const OptionalTensor& input, const Tensor& h_0, const OptionalTensor& c_0,
                  const OptionalTensor& weight_ih, const Tensor& weight_hh, const OptionalTensor& weight_mhh,
                  const OptionalTensor& lengths, const OptionalTensor& keep_h, const OptionalTensor& keep_c,
                  const OptionalTensor& resets, const OptionalTensor& h_reset, const OptionalTensor& c_reset,
                  const std::string& cell_name, bool reverse) {
  const CellSpec cell = cell_with_kernels(cell_name);
  const bool modulates_input = cell.modulates == Modulates::input;
  if (steps.dim() != 3 || steps.numel() == 0) fail("the steps must be a non-empty (T, B, columns) tensor");
  if (h_0.dim() != 2 || h_0.size(1) == 0) fail("h_0 must be a (B, H) tensor with H at least 1");
  if (cell.has_cell_state != c_0.has_value()) fail("c_0 goes with cells that have a cell state, and only with these");
  if (cell.multiplicative() != (input && weight_mhh) || modulates_input != weight_ih.has_value())
    fail(
        "input and weight_mhh go with multiplicative cells, weight_ih with those that modulate x, and only with these");
  if (cell.multiplicative() && (input->dim() != 3 || input->size(2) == 0))
    fail("input must be a (T, B, I) tensor with I at least 1");
  const int64_t T = steps.size(0), B = steps.size(1), H = h_0.size(1), rows = cell.gates * H;
  const int64_t I = modulates_input ? input->size(2) : cell.multiplicative() ? H : 1;
  return {.cell = cell,
          .input = checked("input", input, {T, B, I}, steps),
          .h_0 = checked("h_0", h_0, {B, H}, steps),
          .c_0 = checked("c_0", c_0, {B, H}, steps),
          .weight_ih = checked("weight_ih", weight_ih, {rows, I}, steps),
          .weight_mhh = checked("weight_mhh", weight_mhh, {I, H}, steps),
          .weight_hh = checked("weight_hh", weight_hh, {rows, H}, steps),
          .lengths = checked_lengths(lengths, steps),
          .keep_h = checked("keep_h", keep_h, {T, B, H}, steps),
          .keep_c = checked_keep_c(keep_c, cell, {T, B, H}, steps),
          .resets = checked_resets(resets, steps),
          .h_reset = checked_beginning("h_reset", h_reset, resets, h_0),
          .c_reset = checked_beginning("c_reset", c_reset, resets, c_0),
          .reverse = reverse,
          .T = T,
          .B = B,
          .I = I,
          .H = H};
}

cuda::Type type_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return cuda::Type::float32;
    case ScalarType::Double:
      return cuda::Type::float64;
    case ScalarType::BFloat16:
      return cuda::Type::bfloat16;
    case ScalarType::Half:
      return cuda::Type::float16;
    default:
      fail("the CUDA kernels compute in float32, float64, bfloat16 and float16");
  }
}

const void* address(const Tensor& tensor) { return tensor.const_data_ptr(); }
const void* address(const OptionalTensor& tensor) { return tensor ? tensor->const_data_ptr() : nullptr; }

// Make a call with the operands that both directions have; the rest is null.
template <typename Call>
Call call_with(const Operands& o) {
  Call call{};
  call.cell = o.cell.id;
  call.modulates = o.cell.modulates;
  call.type = type_of(o.h_0);
  call.reverse = o.reverse;
  call.T = o.T;
  call.B = o.B;
  call.I = o.I;
  call.H = o.H;
  call.lengths = static_cast<const int64_t*>(address(o.lengths));
  call.timed_out = cuda::timed_out_word();
  call.beginnings.resets = static_cast<const bool*>(address(o.resets));
  call.beginnings.h_reset = address(o.h_reset);
  call.beginnings.c_reset = address(o.c_reset);
  auto& a = call.arrays;
  a.keep_h = address(o.keep_h);
  a.keep_c = address(o.keep_c);
  a.input = address(o.input);
  a.h_0 = address(o.h_0);
  a.c_0 = address(o.c_0);
  a.weight_ih = address(o.weight_ih);
  a.weight_hh = address(o.weight_hh);
  a.weight_mhh = address(o.weight_mhh);
  return call;
}

void raise_timed_out() {
  if (cuda::take_timed_out())
    fail("a kernel queued earlier on a GPU gave up waiting for its own blocks, and the results of its call are NaN. ",
         "Something else, another process perhaps, held multiprocessors that they needed");
}

// Make the GPU of a tensor the current one; raise if it cannot run the kernels.
DeviceGuard ready(const Tensor& tensor) {
  const int32_t device = tensor.get_device_index();
  const std::string obstacle = cuda::obstacle(device);
  if (!obstacle.empty()) fail(obstacle);
  if (!aoti_torch_get_current_cuda_stream) fail("this torch is a build without CUDA");
  raise_timed_out();
  DeviceGuard guard(device);
  cuda::use(device);
  return guard;
}

// Queue a call on the current stream of `like`'s device, which is the current one.
template <typename Call>
void queue(const Call& call, const Tensor& like) {
  const int32_t device = like.get_device_index();
  const cuda::Prepared ready = cuda::prepare(call, cuda::chip(device), cuda::forced_division());
  if (!ready.refusal.empty()) fail(ready.refusal);
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  const Tensor workspace = empty_beside(like, {ready.plan.workspace_bytes}, aoti_torch_dtype_uint8());
  const std::string error = ready.run(workspace.mutable_data_ptr(), stream);
  if (!error.empty()) fail(error);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> forward(
    Tensor projected, OptionalTensor input, Tensor h_0, OptionalTensor c_0, OptionalTensor weight_ih, Tensor weight_hh,
    OptionalTensor weight_mhh, OptionalTensor bias_m, OptionalTensor bias_ih, OptionalTensor bias_hh,
    OptionalTensor lengths, OptionalTensor keep_h, OptionalTensor keep_c, OptionalTensor resets, OptionalTensor h_reset,
    OptionalTensor c_reset, std::string cell, bool reverse, std::string save) {
  const DeviceGuard guard = ready(projected);
  const Operands o = operands(projected, input, h_0, c_0, weight_ih, weight_hh, weight_mhh, lengths, keep_h, keep_c,
                              resets, h_reset, c_reset, cell, reverse);
  const Save kept = save_named(save);
  const int64_t rows = o.cell.gates * o.H;
  const bool modulates_input = o.cell.modulates == Modulates::input;
  if (bias_m && !modulates_input) fail("bias_m goes with multiplicative cells that modulate x");
  if (o.cell.reset_before && bias_hh) fail("this cell has one bias, bias_ih");
  const Tensor steps = checked("projected", projected, {o.T, o.B, modulates_input ? o.I : rows}, projected);
  const OptionalTensor b = checked("bias_ih", bias_ih, {rows}, projected);
  const OptionalTensor b_h = checked("bias_hh", bias_hh, {rows}, projected);
  const OptionalTensor b_m = checked("bias_m", bias_m, {o.I}, projected);

  const Tensor output = empty_beside(projected, {o.T, o.B, o.H});
  const Tensor h_n = empty_beside(projected, {o.B, o.H});
  const Tensor c_n = o.cell.has_cell_state ? empty_beside(projected, {o.B, o.H}) : empty_beside(projected, {0});
  const auto per_step = [&](int64_t columns) {  // (T, B, columns), or empty
    return columns ? empty_beside(projected, {o.T, o.B, columns}) : empty_beside(projected, {0});
  };
  const Tensor cells = per_step(o.cell.cell_columns(kept, o.H));
  Tensor saved = per_step(o.cell.saved_columns(kept, o.I, o.H));
  // nothing is saved past the end of a sequence, but equal calls must give equal bits
  if (lengths) torch::stable::zero_(saved);

  auto call = call_with<cuda::ForwardCall>(o);
  auto& a = call.arrays;
  a.projected = address(steps);
  a.bias_m = address(b_m);
  a.bias_ih = address(b);
  a.bias_hh = address(b_h);
  a.output = output.mutable_data_ptr();
  a.h_n = h_n.mutable_data_ptr();
  a.c_n = o.cell.has_cell_state ? c_n.mutable_data_ptr() : nullptr;
  a.cells = cells.numel() ? cells.mutable_data_ptr() : nullptr;
  a.saved = saved.numel() ? saved.mutable_data_ptr() : nullptr;
  queue(call, projected);
  return {output, h_n, c_n, cells, saved};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    OptionalTensor d_output, OptionalTensor d_h_n, OptionalTensor d_c_n, OptionalTensor d_cells, Tensor output,
    Tensor cells, Tensor saved, OptionalTensor input, Tensor h_0, OptionalTensor c_0, OptionalTensor weight_ih,
    Tensor weight_hh, OptionalTensor weight_mhh, OptionalTensor lengths, OptionalTensor keep_h, OptionalTensor keep_c,
    OptionalTensor resets, OptionalTensor h_reset, OptionalTensor c_reset, std::string cell, bool reverse,
    double gradient_clip) {
  const DeviceGuard guard = ready(output);
  const Operands o = operands(output, input, h_0, c_0, weight_ih, weight_hh, weight_mhh, lengths, keep_h, keep_c,
                              resets, h_reset, c_reset, cell, reverse);
  if (!o.cell.has_cell_state && (d_c_n || d_cells)) fail("d_c_n and d_cells go with cells that have a cell state");
  const Tensor hidden = checked("output", output, {o.T, o.B, o.H}, output);
  const Tensor c = o.cell.has_cell_state ? checked("cells", cells, {o.T, o.B, o.H}, output) : cells;
  const Tensor kept = checked("saved", saved, {o.T, o.B, o.cell.saved_columns(Save::everything, o.I, o.H)}, output);
  const OptionalTensor d_hidden = checked("d_output", d_output, {o.T, o.B, o.H}, output);
  const OptionalTensor d_h = checked("d_h_n", d_h_n, {o.B, o.H}, output);
  const OptionalTensor d_c = checked("d_c_n", d_c_n, {o.B, o.H}, output);
  const OptionalTensor d_states = checked("d_cells", d_cells, {o.T, o.B, o.H}, output);

  const int64_t inputs = o.cell.modulated_size(o.I, o.H);
  const Tensor d_h_0 = empty_beside(output, {o.B, o.H});
  const Tensor d_c_0 = o.cell.has_cell_state ? empty_beside(output, {o.B, o.H}) : empty_beside(output, {0});
  const Tensor d = empty_beside(output, {o.T, o.B, o.cell.gradients * o.H + inputs});
  const Tensor d_input = inputs ? empty_beside(output, {o.T, o.B, inputs}) : empty_beside(output, {0});
  const int32_t sums =
      output.scalar_type() == ScalarType::Double ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32();
  const auto of_beginning = [&](const OptionalTensor& state) {
    return state ? empty_beside(output, {o.B, o.H}, sums) : empty_beside(output, {0});
  };
  const Tensor d_h_reset = of_beginning(o.h_reset), d_c_reset = of_beginning(o.c_reset);

  auto call = call_with<cuda::BackwardCall>(o);
  auto& a = call.arrays;
  a.d_output = address(d_hidden);
  a.d_h_n = address(d_h);
  a.d_c_n = address(d_c);
  a.d_cells = address(d_states);
  a.output = address(hidden);
  a.cells = o.cell.has_cell_state ? address(c) : nullptr;
  a.saved = address(kept);
  a.d_h_0 = d_h_0.mutable_data_ptr();
  a.d_c_0 = o.cell.has_cell_state ? d_c_0.mutable_data_ptr() : nullptr;
  a.d = d.mutable_data_ptr();
  call.gradient_clip = checked_gradient_clip(gradient_clip);
  a.d_input = inputs ? d_input.mutable_data_ptr() : nullptr;
  if (o.h_reset) call.beginnings.d_h_reset = d_h_reset.mutable_data_ptr();
  if (o.c_reset) call.beginnings.d_c_reset = d_c_reset.mutable_data_ptr();
  queue(call, output);
  return {d_h_0, d_c_0, d, d_input, d_h_reset, d_c_reset};
}

// For fused_rnn/cuda.py: a GPU's description, and why it cannot run the kernels, empty if it can.
std::tuple<std::string, std::string> device(int64_t index) {
  const std::string obstacle = cuda::obstacle(index);
  if (!obstacle.empty()) return {"", obstacle};
  const cuda::Gpu& gpu = cuda::gpu(index);
  return {gpu.name + ", sm_" + std::to_string(gpu.compute_capability), ""};
}

// Return the properties of a supported GPU that plans depend on.
std::tuple<int64_t, int64_t, std::vector<int64_t>, std::string> chip(int64_t index) {
  const std::string obstacle = cuda::obstacle(index);
  if (!obstacle.empty()) fail(obstacle);
  const cuda::Chip& chip = cuda::chip(index);
  return {chip.multiprocessors, chip.shared_bytes, {std::begin(chip.clusters), std::end(chip.clusters)}, chip.name};
}

cuda::Type type_named(std::string_view name) {
  if (name == "float32") return cuda::Type::float32;
  if (name == "float64") return cuda::Type::float64;
  if (name == "bfloat16") return cuda::Type::bfloat16;
  if (name == "float16") return cuda::Type::float16;
  fail("dtype must be float32, float64, bfloat16 or float16, got '", name, "'");
}

// Return the plan of a call on any device, which need not be present. I matters only to cells that modulate x.
std::tuple<std::string, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, double> plan(
    std::string cell_name, std::string direction, std::string dtype, int64_t B, int64_t I, int64_t H,
    int64_t multiprocessors, int64_t shared_bytes, std::vector<int64_t> clusters, std::string chip_name,
    std::string forced, bool resets) {
  const CellSpec cell = cell_with_kernels(cell_name);
  for (const int64_t size : {B, I, H, multiprocessors, shared_bytes})
    if (size < 1) fail("B, I, H, multiprocessors and shared_bytes must be at least 1, got ", size);
  cuda::Layer layer{};
  layer.cell = cell.id, layer.modulates = cell.modulates, layer.type = type_named(dtype);
  layer.T = 1, layer.B = B, layer.H = H;
  layer.beginnings.resets = resets ? &resets : nullptr;  // any pointer but null
  layer.I = cell.multiplicative() ? cell.modulated_size(I, H) : 1;
  constexpr int64_t most = std::numeric_limits<int>::max();
  cuda::Chip chip{.multiprocessors = static_cast<int>(std::min(multiprocessors, most)), .shared_bytes = shared_bytes};
  if (clusters.size() != cuda::cluster_sizes) fail("clusters must be how many of 1, 2, 4, 8 and 16 blocks run at once");
  for (int i = 0; i < cuda::cluster_sizes; ++i) chip.clusters[i] = static_cast<int>(std::min(clusters[i], most));
  chip.name = chip_name.c_str();
  const cuda::Division division = cuda::division_named(forced);
  if (direction != "forward" && direction != "backward")
    fail("direction must be 'forward' or 'backward', got '", direction, "'");
  const cuda::Prepared ready = direction == "forward"
                                   ? cuda::prepare(cuda::ForwardCall{layer, {}}, chip, division)
                                   : cuda::prepare(cuda::BackwardCall{layer, {}, 0.0}, chip, division);
  if (!ready.refusal.empty()) fail(ready.refusal);
  const cuda::Plan& p = ready.plan;
  const cuda::Division& made = p.division;
  return {std::string(cuda::exchange_names[static_cast<int>(made.exchange)]),
          made.sequences,
          made.parts,
          made.segments,
          p.teams,
          p.held,
          p.resident,
          p.streamed,
          p.shared_bytes,
          p.workspace_bytes,
          p.nanoseconds};
}

}  // namespace
}  // namespace fused_rnn

STABLE_TORCH_LIBRARY_FRAGMENT(fused_rnn, m) {
  m.def(
      "cuda_forward(Tensor projected, Tensor? input, Tensor h_0, Tensor? c_0, Tensor? weight_ih, Tensor weight_hh, "
      "Tensor? weight_mhh, Tensor? bias_m, Tensor? bias_ih, Tensor? bias_hh, Tensor? lengths, Tensor? keep_h, Tensor? "
      "keep_c, Tensor? resets, Tensor? h_reset, Tensor? c_reset, "
      "str cell, bool reverse, str save) -> (Tensor output, Tensor h_n, Tensor c_n, Tensor cells, Tensor saved)");
  m.def(
      "cuda_backward(Tensor? d_output, Tensor? d_h_n, Tensor? d_c_n, Tensor? d_cells, Tensor output, Tensor cells, "
      "Tensor saved, Tensor? input, Tensor h_0, Tensor? c_0, Tensor? weight_ih, Tensor weight_hh, Tensor? weight_mhh, "
      "Tensor? lengths, Tensor? keep_h, Tensor? keep_c, Tensor? resets, Tensor? h_reset, Tensor? c_reset, "
      "str cell, bool reverse, float gradient_clip) -> (Tensor d_h_0, "
      "Tensor d_c_0, Tensor d, Tensor d_input, Tensor d_h_reset, Tensor d_c_reset)");
  m.def("cuda_device(int index) -> (str name, str obstacle)");
  m.def("cuda_chip(int index) -> (int multiprocessors, int shared_bytes, int[] clusters, str name)");
  m.def(
      "cuda_plan(str cell, str direction, str dtype, int B, int I, int H, int multiprocessors, int shared_bytes, "
      "int[] clusters, str chip, str forced, bool resets=False) -> (str exchange, int sequences, int parts, int "
      "segments, int teams, int "
      "held, int resident, int streamed, int shared_bytes, int workspace_bytes, float nanoseconds)");
  m.def("cuda_raise_timed_out() -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fused_rnn, CUDA, m) {
  m.impl("cuda_forward", TORCH_BOX(&fused_rnn::forward));
  m.impl("cuda_backward", TORCH_BOX(&fused_rnn::backward));
}

STABLE_TORCH_LIBRARY_IMPL(fused_rnn, CompositeExplicitAutograd, m) {
  m.impl("cuda_device", TORCH_BOX(&fused_rnn::device));
  m.impl("cuda_chip", TORCH_BOX(&fused_rnn::chip));
  m.impl("cuda_plan", TORCH_BOX(&fused_rnn::plan));
  m.impl("cuda_raise_timed_out", TORCH_BOX(&fused_rnn::raise_timed_out));
}

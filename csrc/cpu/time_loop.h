// The common parts of both directions of the CPU time loop: memory, library products, packed weights, the cut of the
// sequence into chunks, and the division of a step among threads.
//
// A sequence runs in chunks of some hundred rows (time steps x sequences). Everything that is off the sequential
// path is one library product per chunk, before the steps that need it or after those that fill it, while the rows
// are still in the cache; so the only intermediates of T*B rows are those that backward needs. schedule.h defines the
// rows of a chunk.
#pragma once

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <memory>
#include <new>
#include <type_traits>
#include <utility>
#include <vector>

#include "../tensors.h"
#include "kernels.h"
#include "schedule.h"

// MKL's product of bfloat16 matrices to a float matrix, if torch is built with MKL.
extern "C" __attribute__((weak)) void gemm_bf16bf16f32_64_(const char* transposed_a, const char* transposed_b,
                                                           const int64_t* m, const int64_t* n, const int64_t* k,
                                                           const float* alpha, const void* a, const int64_t* a_stride,
                                                           const void* b, const int64_t* b_stride, const float* beta,
                                                           float* c, const int64_t* c_stride);

namespace fused_rnn::cpu {

template <typename C>
constexpr ScalarType scalar_type = std::is_same_v<C, double> ? ScalarType::Double : ScalarType::Float;

// The number of a type in the C interface.
inline int32_t code(ScalarType type) {
  return type == ScalarType::Float    ? aoti_torch_dtype_float32()
         : type == ScalarType::Double ? aoti_torch_dtype_float64()
                                      : aoti_torch_dtype_bfloat16();
}

inline int64_t bytes_of(ScalarType type) {
  return type == ScalarType::Double ? sizeof(double) : type == ScalarType::Float ? sizeof(float) : sizeof(BFloat16);
}

inline Tensor empty(std::initializer_list<int64_t> shape, ScalarType type) {
  return fused_rnn::empty(shape, code(type), aoti_torch_device_type_cpu(), 0);
}

// Return a tensor (T, B, n) of zeros, in memory that the system clears page by page on the first write, so that steps
// which sequences do not have take neither time nor memory.
inline Tensor zeros(int64_t T, int64_t B, int64_t n, ScalarType type) {
  constexpr uintptr_t line = 64;
  const int64_t bytes = T * B * n * bytes_of(type);
  void* memory = std::calloc(bytes + line, 1);
  if (!memory) throw std::runtime_error("fused_rnn: not enough memory for " + std::to_string(bytes) + " bytes");
  void* first = reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(memory) + line - 1) / line * line);
  return torch::stable::from_blob(first, {T, B, n}, {B * n, n, 1}, torch::headeronly::DeviceType::CPU, type,
                                  [memory](void*) { std::free(memory); });
}

// Memory for the duration of a call: tensors for products by the library, arrays for our own. The first arrays are in
// the object itself if they are small, because a single step takes little longer than an allocation.
class Workspace {
 public:
  Workspace() {}  // leaves the memory uninitialised

  template <typename C>
  Tensor tensor(std::initializer_list<int64_t> shape) const {
    return empty(shape, scalar_type<C>);
  }

  template <typename C>
  C* array(int64_t size) {
    const size_t bytes = (static_cast<size_t>(size) * sizeof(C) + line_bytes - 1) / line_bytes * line_bytes;
    if (bytes <= sizeof(near_) - used_) {
      used_ += bytes;
      return reinterpret_cast<C*>(near_ + used_ - bytes);
    }
    kept_.emplace_back(::operator new(bytes, line));
    return static_cast<C*>(kept_.back().get());
  }

 private:
  static constexpr size_t line_bytes = 64;
  static constexpr std::align_val_t line{line_bytes};
  struct Free {
    void operator()(void* memory) const { ::operator delete(memory, line); }
  };

  alignas(line_bytes) char near_[1 << 14];
  size_t used_ = 0;  // bytes of those
  std::vector<std::unique_ptr<void, Free>> kept_;
};

// Convert values of the caller's tensors to the type of computations, and back.
template <typename S, typename C>
void load(const S* from, int64_t count, C* to) {
  if constexpr (std::is_same_v<C, S>)
    std::copy_n(from, count, to);
  else
    std::transform(from, from + count, to, [](S value) { return bfloat16_to_float(value); });
}
template <typename S, typename C>
void store(const C* from, int64_t count, S* to) {
  if constexpr (std::is_same_v<S, BFloat16>)
    std::transform(from, from + count, to, [](C value) { return float_to_bfloat16(static_cast<float>(value)); });
  else
    std::copy_n(from, count, to);
}

// Return the tensor itself, or its values in the type of computations.
template <typename C>
Tensor computed(const Tensor& tensor) {
  return tensor.scalar_type() == scalar_type<C> ? tensor : torch::stable::to(tensor, scalar_type<C>);
}

// Return the tensor itself, or its values as the library multiplies them: bfloat16 if our own products use that, too.
template <typename C, typename S>
Tensor factor(const Tensor& tensor) {
  const bool rounds = kernels<C, S>().weight_bytes < int64_t{sizeof(C)} && gemm_bf16bf16f32_64_;
  const ScalarType type = rounds ? ScalarType::BFloat16 : scalar_type<C>;
  return tensor.scalar_type() == type ? tensor : torch::stable::to(tensor, type);
}

// Return the tensor itself, or its values in the type of `like`.
inline Tensor stored(const Tensor& tensor, const Tensor& like) {
  return tensor.scalar_type() == like.scalar_type() ? tensor : torch::stable::to(tensor, like.scalar_type());
}

inline Tensor rows_of(const Tensor& matrix, Range r) {
  return torch::stable::narrow(const_cast<Tensor&>(matrix), 0, r.begin, r.end - r.begin);
}
inline Tensor columns_of(const Tensor& matrix, Range r) {
  return torch::stable::narrow(const_cast<Tensor&>(matrix), 1, r.begin, r.end - r.begin);
}
inline Tensor transposed(const Tensor& matrix) { return torch::stable::transpose(matrix, 0, 1); }
inline Tensor flattened(const Tensor& t) { return torch::stable::view(t, {t.size(0) * t.size(1), t.size(2)}); }

// Return the rows of a chunk in the schedule's order: a part of the caller's tensor (T, B, n), or a copy if they are
// not adjacent there.
template <typename S>
Tensor rows_at(const Tensor& t, const Schedule& schedule, const Chunk& chunk) {
  const int64_t n = t.size(2), first = chunk.time * t.size(1);
  if (schedule.together(chunk)) return rows_of(flattened(t), {first, first + chunk.rows});
  const Tensor rows = empty({chunk.rows, n}, t.scalar_type());
  schedule.for_rows(chunk, [from = const_data<S>(t), to = data<S>(rows), n](int64_t row, int64_t at) {
    std::copy_n(from + at * n, n, to + row * n);
  });
  return rows;
}

// A matrix as BLAS takes it, in column-major order.
struct BlasMatrix {
  explicit BlasMatrix(const Tensor& m)
      : data(m.const_data_ptr()),
        order(m.stride(1) == 1 ? 'N' : 'T'),
        // the stride of a single row or column is arbitrary
        stride(m.stride(1) == 1 ? std::max(m.stride(0), m.size(1)) : std::max(m.stride(1), m.size(0))) {}

  const void* data;
  char order;
  int64_t stride;
};

// Compute out = a b + beta out from bfloat16 operands, with float sums like `out`.
inline void add_rounded_product(const Tensor& out, const Tensor& a, const Tensor& b, float beta) {
  const BlasMatrix left(b), right(a), result(out);
  const int64_t rows = out.size(1), columns = out.size(0), depth = a.size(1);
  const float alpha = 1;
  gemm_bf16bf16f32_64_(&left.order, &right.order, &rows, &columns, &depth, &alpha, left.data, &left.stride, right.data,
                       &right.stride, &beta, static_cast<float*>(out.mutable_data_ptr()), &result.stride);
}

// Makes its thread treat subnormal numbers as zero, as operands and as results. Gradients that vanish over many steps
// pass through them, and x86 processors compute with them a hundred times slower, other processors hardly. Every thread
// that runs steps or products has one, but only there: a thread started while the flag is set inherits it permanently.
class FlushSubnormals {
 public:
#ifdef __SSE2__
  FlushSubnormals() : before_(__builtin_ia32_stmxcsr()) { __builtin_ia32_ldmxcsr(before_ | flush); }
  ~FlushSubnormals() { __builtin_ia32_ldmxcsr(before_); }
  FlushSubnormals(const FlushSubnormals&) = delete;
  FlushSubnormals& operator=(const FlushSubnormals&) = delete;

 private:
  static constexpr unsigned flush = 0x8040;  // results, bit 15; operands, bit 6
  const unsigned before_;
#endif
};

// Return each thread's share of the items.
inline int64_t share(int64_t items) {
  const int64_t threads = torch::stable::get_num_threads();
  return (items + threads - 1) / threads;
}

constexpr int64_t worth_a_meeting = 1 << 17;  // multiplications and additions that justify a synchronisation

// Return the same, or all items if they are too little work to synchronise threads.
inline int64_t share(int64_t items, int64_t work) { return work < worth_a_meeting ? items : share(items); }

// Return rows of a matrix, or of a vector repeated, as a tensor unknown to autograd, in any thread.
inline Tensor unrecorded_rows(const Tensor& m, Range r) {
  const bool vector = m.dim() == 1;
  const int64_t sizes[] = {r.end - r.begin, m.size(vector ? 0 : 1)},
                strides[] = {vector ? 0 : m.stride(0), vector ? m.stride(0) : m.stride(1)};
  const int64_t distance = r.begin * strides[0] * bytes_of(m.scalar_type());
  auto* first = static_cast<char*>(const_cast<void*>(m.const_data_ptr())) + distance;
  AtenTensorHandle tensor = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_create_tensor_from_blob(first, 2, sizes, strides, 0, code(m.scalar_type()),
                                                            aoti_torch_device_type_cpu(), 0, &tensor));
  return Tensor(tensor);
}

// out = a b + beta addend, by the BLAS library; bfloat16 operands with a float result are added to `out` only.
struct LibraryProduct {
  Tensor out, addend, a, b;
  double beta;

  void multiply(Range rows) const {
    const Tensor sum = unrecorded_rows(out, rows);
    const bool adds_to_itself = addend.const_data_ptr() == out.const_data_ptr();
    const Tensor first = adds_to_itself ? sum : unrecorded_rows(addend, rows);
    TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(sum.get(), first.get(), unrecorded_rows(a, rows).get(),
                                                    unrecorded_rows(b, {0, b.size(0)}).get(), beta, 1.0));
  }
};

// Jobs that threads share with a single synchronisation: each thread does its share of the items of every job, one job
// after the other. So a job may read the results of an earlier one for the same items, if they are equally many. The
// items of library products are rows, because the library's own threads would compute with subnormal numbers; in
// bfloat16 the library runs the product by itself, at once.
class Jobs {
 public:
  void add(int64_t items, std::function<void(Range)> job) { all_.push_back({items, share(items), std::move(job)}); }

  void add(const LibraryProduct& p) {
    if (p.a.scalar_type() != p.out.scalar_type())
      add_rounded_product(p.out, p.a, p.b, static_cast<float>(p.beta));
    else
      add(p.out.size(0), [p](Range rows) { p.multiply(rows); });
  }

  void run() const {
    if (all_.empty()) return;
    torch::stable::parallel_for(0, torch::stable::get_num_threads(), 1, [&](int64_t begin, int64_t end) {
      [[maybe_unused]] const FlushSubnormals flush;
      for (const Job& job : all_) {
        const Range range{begin * job.share, std::min(end * job.share, job.items)};
        if (range.begin < range.end) job.run(range);
      }
    });
  }

 private:
  struct Job {
    int64_t items, share;
    std::function<void(Range)> run;
  };

  std::vector<Job> all_;
};

inline void product(const LibraryProduct& p) {
  if (p.out.size(0) == 1 && p.a.scalar_type() == p.out.scalar_type())
    return p.multiply({0, 1});  // the library may start threads for it
  Jobs jobs;
  jobs.add(p);
  jobs.run();
}

template <typename S>
const S* data_or_null(const OptionalTensor& tensor) {
  return tensor ? const_data<S>(*tensor) : nullptr;
}

// Whether a call is too short for packing to pay; then every product reads the weights in the caller's tensors. A step
// takes longer that way, up to twice as long, but packing takes as long as tens of products. Measured on AVX-512 with H
// from 64 to 256, T and B from 1 to 64, float32, for the LSTM's forward pass with either kind of weights: the
// break-even is between 8 rows (H=64) and 32 (H=256). Such a call is a single chunk.
inline bool leaves_unpacked(const Schedule& schedule) { return schedule.rows() <= few_rows; }

// Make a matrix of these parts with the sum of two biases, packed unless `unpacked`.
template <typename C, typename S>
Matrix<C, S> matrix(Workspace& workspace, bool unpacked, int64_t gates, int64_t units, const S* bias,
                    const S* other_bias, std::initializer_list<MatrixPart<S>> parts) {
  Matrix<C, S> m{nullptr, 0, gates, units, bias, other_bias};
  std::copy(parts.begin(), parts.end(), m.parts);
  for (const auto& part : parts) m.depth += part.depth;
  if (unpacked) return m;
  const Kernels<C, S>& k = kernels<C, S>();
  m.packed = workspace.array<C>(k.packed_size(m.depth, gates, units));
  k.pack(m);
  return m;
}

// A phase of every step; `panels` is the number of panels of its matrix, or 0 if it has none.
template <typename Phase>
struct PhaseSize {
  Phase phase;
  int64_t panels;
};

// The division of a step among threads. By rows they never synchronise within a chunk, but each of them reads all the
// weights. By panels each reads its part of the weights, and all synchronise after every phase.
enum class Split { none, rows, panels };

constexpr int64_t cached_bytes = 7 << 18;  // the share of the second-level cache that weights may fill

// weights: elements of the packed recurrent matrix.
inline Split choose_split(int64_t batch, int64_t weights, int64_t element_size) {
  const int64_t threads = torch::stable::get_num_threads();
  constexpr int64_t rows_that_hide_a_fetch = 64;  // per thread, with weights from beyond the second level
  if (threads == 1) return Split::none;
  const bool cached = weights * element_size <= cached_bytes;
  if (batch >= (cached ? 2 : rows_that_hide_a_fetch) * threads) return Split::rows;
  return batch * weights >= worth_a_meeting ? Split::panels : Split::none;
}

// The work before and after the phases of a step, for some rows; each is empty if there is none.
struct Around {
  std::function<void(int64_t s, Range rows)> before, after;
};

// Run the phases of the steps from `first` towards `last`, in either order: run(step_at(s), phase, rows, panels). At
// most `batch` sequences run in each.
template <typename Phase, typename StepAt, typename Run>
void run_steps(Split split, int64_t batch, int64_t first, int64_t last, const std::vector<PhaseSize<Phase>>& phases,
               const StepAt& step_at, const Run& run, const Around& around) {
  const int64_t direction = first <= last ? 1 : -1;
  const auto run_rows = [&](int64_t begin, int64_t end) {
    [[maybe_unused]] const FlushSubnormals flush;
    for (int64_t s = first; s != last; s += direction) {
      const auto step = step_at(s);
      const Range running{begin, std::min(end, step.running.count)};
      if (running.begin >= running.end) continue;
      if (around.before) around.before(s, running);
      for (const auto& [phase, panels] : phases) run(step, phase, running, Range{0, panels});
      if (around.after) around.after(s, running);
    }
  };
  if (split == Split::none) return run_rows(0, batch);
  if (split == Split::rows) return torch::stable::parallel_for(0, batch, share(batch), run_rows);
  for (int64_t s = first; s != last; s += direction) {
    const auto step = step_at(s);
    const int64_t count = step.running.count;
    if (around.before) around.before(s, {0, count});
    for (const auto& [phase, panels] : phases) {
      if (panels == 0)
        torch::stable::parallel_for(0, count, share(count), [&, phase = phase](int64_t begin, int64_t end) {
          [[maybe_unused]] const FlushSubnormals flush;
          run(step, phase, Range{begin, end}, Range{0, 0});
        });
      else
        torch::stable::parallel_for(0, panels, share(panels), [&, phase = phase](int64_t begin, int64_t end) {
          [[maybe_unused]] const FlushSubnormals flush;
          run(step, phase, Range{0, count}, Range{begin, end});
        });
    }
    if (around.after) around.after(s, {0, count});
  }
}

// Call f with values of the types (of computations, stored) for a tensor of this dtype.
template <typename F>
auto dispatch_types(ScalarType type, const F& f) {
  switch (type) {
    case ScalarType::Float:
      return f(float(), float());
    case ScalarType::Double:
      return f(double(), double());
    case ScalarType::BFloat16:
      return f(float(), BFloat16());
    default:
      throw std::runtime_error("fused_rnn: the CPU backend takes float32, float64 and bfloat16");
  }
}

}  // namespace fused_rnn::cpu

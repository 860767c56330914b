// The kernels of whole sequences on the host shim, as a library for tests/test_cuda_kernels.py: the caller fills in the
// operands, this file launches the kernel of a cell and type. Built with -DRACES it is a program instead, which runs
// every cell on random operands for a sanitizer to watch.

#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

#include "../../csrc/cuda/kernels.h"

using namespace fused_rnn;
using namespace fused_rnn::cuda;

namespace {

unsigned blocks_of(int batch, int parts) { return static_cast<unsigned>(divide_up(batch, tile_rows) * parts); }

template <typename Sequence>
void launch(const Kernel<const Sequence>& kernel, const Sequence& q, unsigned seed) {
  const host_shim::Launch shape{
      {blocks_of(q.B, q.parts)}, {threads}, static_cast<size_t>(kernel.shared_bytes), seed, uint64_t{1} << 24};
  host_shim::launch(shape, kernel.run, q);
}

// f with values of the types (computed in, stored).
template <typename F>
void dispatch_types(const std::string& type, const F& f) {
  if (type == "float32") return f(float(), float());
  if (type == "float64") return f(double(), double());
  if (type == "bfloat16") return f(float(), BFloat16());
  if (type == "float16") return f(float(), Half());
  throw std::runtime_error("unknown type " + type);
}

}  // namespace

#ifndef RACES

// Launch a kernel on a ForwardSequence or BackwardSequence of the type; returns null, or what went wrong.
extern "C" const char* run_sequence(bool backward, int cell, bool multiplicative, const char* type,
                                    const void* sequence, unsigned seed) {
  static std::string message;
  try {
    dispatch_types(type, [&](auto computed, auto stored) {
      using C = decltype(computed);
      using S = decltype(stored);
      const auto id = static_cast<CellId>(cell);
      if (backward) {
        const auto& q = *static_cast<const BackwardSequence<C, S>*>(sequence);
        launch(backward_kernel<C, S>(id, multiplicative, q), q, seed);
      } else {
        const auto& q = *static_cast<const ForwardSequence<C, S>*>(sequence);
        launch(forward_kernel<C, S>(id, multiplicative, q), q, seed);
      }
    });
    return nullptr;
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
}

#else

namespace {

// Memory of a run, with small numbers in it.
class Memory {
 public:
  float* array(size_t size) {
    kept_.emplace_back(size);
    for (float& value : kept_.back()) value = static_cast<float>(++drawn_ * 7919 % 101) / 101.0f - 0.5f;
    return kept_.back().data();
  }

 private:
  std::vector<std::vector<float> > kept_;
  size_t drawn_ = 0;
};

void run_cell(CellId cell, bool multiplicative, bool reverse, unsigned seed) {
  constexpr int T = 3, B = tile_rows + 1, I = 3, H = 5, G = 4, saved = 5 * H + I, parts = 2;
  Memory m;
  std::vector<int64_t> lengths(B, T);
  lengths[0] = 1, lengths[B - 1] = 2;
  std::vector<unsigned> arrivals(2 * blocks_of(B, 1));
  unsigned failed = 0;
  ForwardSequence<float, float> q{T, B, I, H, reverse, parts, seed % 2 == 0, lengths.data()};
  q.weight_hh = m.array(H * G * H), q.bias_hh = m.array(G * H), q.weight_ih = m.array(I * G * H);
  q.bias_ih = m.array(G * H), q.weight_mhh = m.array(H * I), q.projected = m.array(T * B * (G * H + I));
  q.x = m.array(T * B * I), q.c_0 = m.array(B * H), q.h = m.array(2 * B * H), q.s = m.array(B * H);
  q.x_hat = m.array(B * I), q.output = m.array(T * B * H), q.h_n = m.array(B * H), q.c_n = m.array(B * H);
  q.saved = m.array(T * B * saved), q.arrivals = arrivals.data(), q.failed = &failed;
  launch(forward_kernel(cell, multiplicative, q), q, seed);

  BackwardSequence<float, float> b{T, B, I, H, reverse, parts, seed % 2 == 0, lengths.data()};
  b.weight_hh = q.weight_hh, b.weight_ih = q.weight_ih, b.weight_mhh = q.weight_mhh, b.x = q.x;
  b.h_0 = m.array(B * H), b.c_0 = q.c_0, b.output = q.output, b.saved = q.saved, b.d_output = m.array(T * B * H);
  b.dh = m.array(B * H), b.dc = m.array(B * H), b.d = m.array(T * B * (G * H + I)), b.dx = m.array(T * B * I);
  b.arrivals = arrivals.data() + blocks_of(B, 1), b.failed = &failed;
  launch(backward_kernel(cell, multiplicative, b), b, seed);
  if (failed) throw std::runtime_error("a block did not come in time");
}

}  // namespace

int main(int, char** arguments) try {
  const auto seed = static_cast<unsigned>(std::atoi(arguments[1]));
  for (const CellId cell : {CellId::rnn_tanh, CellId::rnn_relu, CellId::lstm, CellId::gru, CellId::gru_reset_after})
    for (const bool multiplicative : {false, true}) run_cell(cell, multiplicative, seed % 3 == 0, seed);
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}

#endif

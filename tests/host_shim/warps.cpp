// The kernels of warps against plain loops in double precision, on the host shim or on a GPU: `warps NAME SEED`. Exits
// with 0 if all is right, else says on stderr what is not and exits with 1. With SHORT only a few sizes are compiled.

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "launch.h"
#include "warp_lstm.h"
#include "warp_sums.h"

using namespace fused_rnn;
using namespace fused_rnn::cuda;
using launching::Memory;
using launching::rounded;
using launching::Shape;
using launching::value_of;

namespace {

void expect(bool condition, const std::string& what) {
  if (!condition) throw std::runtime_error("wrong " + what);
}

// Numbers between -range and range without a pattern.
float noise(size_t i, float range) {
  return range * (static_cast<float>((i * 2654435761u >> 8) % 4099) / 2049.0f - 1.0f);
}

template <typename S>
Memory<S> noises(size_t n, float range, size_t first) {
  Memory<S> values(n);
  for (size_t i = 0; i < n; ++i) values[i] = rounded<S>(noise(first + i, range));
  return values;
}

double sigmoid_of(double x) { return 1 / (1 + std::exp(-x)); }

// The launch of a grid of clusters, each of which takes tile after tile.
template <typename Block>
Shape shape_of(unsigned clusters, unsigned blocks, unsigned seed) {
  return {clusters * blocks, Block::threads, Block::shared_bytes, blocks, seed};
}

template <typename S, int H>
struct Lstm {
  int T, B;
  Memory<S> projected = noises<S>(size_t(T) * B * 4 * H, 1.5f, 1);
  Memory<S> weight = noises<S>(size_t{4} * H * H, 2.0f / std::sqrt(float{H}), 77);
  Memory<S> h_0 = noises<S>(size_t(B) * H, 0.9f, 4242);
  Memory<S> output = Memory<S>(size_t(T) * B * H);
  Memory<float> c = Memory<float>(size_t(B) * H);

  double gate(int t, int b, int g, int u, const std::vector<double>& h) const {
    double sum = value_of(projected[((size_t(t) * B + b) * (H / 8) + u / 8) * 32 + g * 8 + u % 8]);
    for (int k = 0; k < H; ++k) sum += double{value_of(weight[(size_t{1} * g * H + u) * H + k])} * h[k];
    return sum;
  }

  // The largest error of any output or cell state.
  double error() const {
    double most = 0;
    for (int b = 0; b < B; ++b) {
      std::vector<double> h(H), cell(H);
      for (int u = 0; u < H; ++u) h[u] = value_of(h_0[size_t(b) * H + u]);
      for (int t = 0; t < T; ++t) {
        std::vector<double> next(H);
        for (int u = 0; u < H; ++u) {
          cell[u] = sigmoid_of(gate(t, b, 1, u, h)) * cell[u] +
                    sigmoid_of(gate(t, b, 0, u, h)) * std::tanh(gate(t, b, 2, u, h));
          next[u] = sigmoid_of(gate(t, b, 3, u, h)) * std::tanh(cell[u]);
          const double off = std::fabs(value_of(output[(size_t(t) * B + b) * H + u]) - next[u]);
          most = off <= most ? most : off;  // also if it is NaN
        }
        h = next;
      }
      for (int u = 0; u < H; ++u) most = std::fmax(most, std::fabs(c[size_t(b) * H + u] - cell[u]));
    }
    return most;
  }
};

template <typename S, int H, int blocks, int shares, int octets>
void check_lstm(unsigned seed) {
  constexpr int clusters = blocks < 8 ? 2 : 1, tiles = clusters + 1;
  Lstm<S, H> q{5, tiles * 8 * octets};
  Memory<unsigned> failed(1);
  launching::launch(shape_of<WarpLstmBlock<S, H, blocks, shares, octets>>(clusters, blocks, seed),
                    warp_lstm<S, H, blocks, shares, octets>,
                    WarpLstm<S>{q.T, tiles, q.projected.data(), q.weight.data(), q.h_0.data(), q.output.data(),
                                q.c.data(), failed.data()});
  expect(failed[0] == 0, "flag of failure");
  const double error = q.error();
  expect(error < 0.01, "output, by " + std::to_string(error));
}

// A wait fails somewhere in the kernel: it ends nevertheless, says so, and leaves NaN.
template <typename S, int H, int blocks, int shares, int octets>
void check_failing_lstm(unsigned seed) {
  Lstm<S, H> q{5, 8 * octets};
  Memory<unsigned> failed(1);
  auto shape = shape_of<WarpLstmBlock<S, H, blocks, shares, octets>>(1, blocks, seed);
  shape.gives_up = true;
  launching::launch(shape, warp_lstm<S, H, blocks, shares, octets>,
                    WarpLstm<S>{q.T, 1, q.projected.data(), q.weight.data(), q.h_0.data(), q.output.data(), q.c.data(),
                                failed.data()});
  expect(failed[0] == 1, "flag of failure");
  for (size_t i = size_t(q.T - 1) * q.B * H; i < q.output.size(); ++i)
    expect(std::isnan(value_of(q.output[i])), "output after a failure");
}

template <typename S, int H, int blocks>
void check_sums(unsigned seed) {
  constexpr int clusters = blocks < 8 ? 2 : 1, tiles = clusters + 1, steps = 5, batch = 8 * tiles;
  const auto x = noises<float>(size_t{steps} * batch * H, 1.0f, 9);
  const auto weight = noises<S>(size_t{H} * H, 3.0f / std::sqrt(float{H}), 99);
  Memory<float> s(x.size());
  Memory<unsigned> failed(1);
  launching::launch(shape_of<WarpSumsBlock<S, H, blocks>>(clusters, blocks, seed), warp_sums<S, H, blocks>,
                    WarpSums<S>{steps, tiles, x.data(), weight.data(), s.data(), failed.data()});
  expect(failed[0] == 0, "flag of failure");
  for (int b = 0; b < batch; ++b) {
    std::vector<double> y(H, 0);
    for (int t = 0; t < steps; ++t) {
      std::vector<double> next(H);
      for (int u = 0; u < H; ++u) {
        const size_t place = (size_t(t) * batch + b) * H + u;
        double sum = x[place];
        for (int k = 0; k < H; ++k) sum += double{value_of(weight[size_t(u) * H + k])} * y[k];
        expect(std::fabs(s[place] - sum) < 0.02, "sum, by " + std::to_string(s[place] - sum));
        next[u] = sum / (1 + std::fabs(sum));
      }
      y = next;
    }
  }
}

const std::map<std::string, void (*)(unsigned seed)> checks = {
    {"lstm-4-2", check_lstm<BFloat16, 64, 4, 2, 1>},
    {"lstm-8-2", check_lstm<BFloat16, 128, 8, 2, 1>},
    {"failing-lstm-4-2", check_failing_lstm<BFloat16, 64, 4, 2, 1>},
    {"sums-4", check_sums<BFloat16, 64, 4>},
#ifndef SHORT
    {"lstm-1-1", check_lstm<BFloat16, 64, 1, 1, 1>},
    {"lstm-1-2", check_lstm<BFloat16, 64, 1, 2, 1>},
    {"lstm-2-1", check_lstm<BFloat16, 64, 2, 1, 1>},
    {"lstm-2-2", check_lstm<Half, 64, 2, 2, 1>},
    {"lstm-4-1", check_lstm<BFloat16, 64, 4, 1, 2>},
    {"lstm-8-1", check_lstm<Half, 64, 8, 1, 1>},
    {"lstm-16-1", check_lstm<BFloat16, 128, 16, 1, 1>},
    {"lstm-16-4", check_lstm<BFloat16, 128, 16, 4, 1>},
    {"sums-1", check_sums<Half, 32, 1>},
    {"sums-2", check_sums<BFloat16, 64, 2>},
    {"sums-8", check_sums<Half, 128, 8>},
    {"sums-16", check_sums<BFloat16, 256, 16>},
#endif
};

}  // namespace

int main(int count, char** arguments) {
  if (count != 3 || !checks.count(arguments[1])) return 2;
  try {
    checks.at(arguments[1])(static_cast<unsigned>(std::atoi(arguments[2])));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}

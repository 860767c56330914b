// The program that runs the micro-measurements and prints one JSON object per line, with all repetitions: `micro
// [NAME...]`. `python -m benchmarks.gpu.micro` builds and calls it, and says what each measurement is for.
//
// Times per round are differences between launches of 2N and of N rounds, so that launches drop out. The results of
// kernels and the return codes of all calls are checked; a measurement that fails prints its error, and the next one
// runs unless the device is lost. Exit code: 0; 1 if a measurement failed; 2 without a device.

#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include "cluster.h"
#include "exchange.h"
#include "harness.h"
#include "throughput.h"

using namespace fused_rnn;
using namespace fused_rnn::cuda;

namespace {

// Barriers of blocks --------------------------------------------------------------------------------------------------

// A barrier's counters; every launch starts from zeros.
struct BarrierMemory {
  explicit BarrierMemory(unsigned blocks) : arrivals(blocks), passed(2 * blocks), verdict(2) {}

  Barriers start(int rounds, bool checked) {
    arrivals.clear();
    return {rounds, arrivals.data(), checked ? passed.data() : nullptr, verdict.data(), verdict.data() + 1};
  }
  void judge() {
    const auto seen = verdict.read();
    expect(seen[0] == 0, "a block did not come in time");
    expect(seen[1] == 0, std::to_string(seen[1]) + " numbers passed on were not there after a barrier");
  }

  Array<unsigned> arrivals, passed, verdict;
};

std::vector<double> measure_barrier(void (*kernel)(Barriers), unsigned blocks) {
  BarrierMemory memory(blocks);
  launch_grid(kernel, blocks, threads, memory.start(2000, true));
  memory.judge();
  const auto values =
      us_per_round(5000, [&](int rounds) { launch_grid(kernel, blocks, threads, memory.start(rounds, false)); });
  memory.judge();
  return values;
}

__global__ void __launch_bounds__(threads, 1) wait_in_group(const Barriers q) {
  const auto grid = cooperative_groups::this_grid();
  wait_often(q, [&](int) {
    grid.sync();
    return true;
  });
}

void counter_barrier(const std::string& name) {
  for (const unsigned blocks : block_counts())
    attempt(name, {{"blocks", blocks}}, "us", [&] { return measure_barrier(wait_at_counter, blocks); });
}

void flag_barrier(const std::string& name) {
  for (const unsigned blocks : block_counts())
    if (blocks <= threads)
      attempt(name, {{"blocks", blocks}}, "us", [&] { return measure_barrier(wait_at_flags, blocks); });
}

void grid_sync(const std::string& name) {
  for (const unsigned blocks : block_counts())
    attempt(name, {{"blocks", blocks}}, "us", [&] { return measure_barrier(wait_in_group, blocks); });
}

// Messages through L2 -------------------------------------------------------------------------------------------------

// The time of one way, which is half a round.
std::vector<double> measure_ping_pong(void (*kernel)(PingPong), unsigned distance) {
  Array<Message> boxes(2);
  Array<unsigned> flags(2), verdict(2);
  const auto launch = [&](int rounds) {
    boxes.clear();
    flags.clear();
    launch_grid(kernel, distance + 1, 1,
                PingPong{rounds, boxes.data(), flags.data(), verdict.data(), verdict.data() + 1, distance});
  };
  auto values = us_per_round(5000, launch);
  const auto seen = verdict.read();
  expect(seen[0] == 0, "a message did not come in time");
  expect(seen[1] == 0, std::to_string(seen[1]) + " messages whose data did not belong to their tag");
  for (double& value : values) value /= 2;
  return values;
}

void message_latency(const std::string& name, void (*kernel)(PingPong)) {
  const auto all = static_cast<unsigned>(device.multiProcessorCount);
  for (const unsigned distance : {1u, all / 2, all - 1})
    attempt(name, {{"distance", distance}}, "us", [&] { return measure_ping_pong(kernel, distance); });
}

void tagged_message(const std::string& name) { message_latency(name, exchange_tagged); }
void flagged_message(const std::string& name) { message_latency(name, exchange_flagged); }

void judge_sums(const std::vector<unsigned>& sums, unsigned blocks, unsigned expected) {
  for (unsigned block = 0; block < blocks; ++block) {
    unsigned sum = 0;
    for (int i = 0; i < threads; ++i) sum ^= sums[block * threads + i];
    expect(sum == expected, "block " + std::to_string(block) + " loaded another tile than was stored");
  }
}

std::vector<double> measure_tile(unsigned blocks, int bytes) {
  const int words = bytes / 16;
  Array<TileExchange::Word> tiles(2 * words);
  Array<unsigned> arrivals(1), failed(1), sums(blocks * threads);
  TileExchange q{0, words, tiles.data(), arrivals.data(), failed.data(), sums.data()};
  const auto values = us_per_round(1000, [&](int rounds) {
    arrivals.clear();
    q.rounds = rounds;
    launch_grid(exchange_tile, blocks, threads, q);
  });
  expect(failed.read()[0] == 0, "a block did not come in time");
  judge_sums(sums.read(), blocks, expected_sum(q.rounds, words));
  return values;
}

void tile_exchange(const std::string& name) {
  for (const unsigned blocks : block_counts())
    for (const int bytes : {2 << 10, 8 << 10, 32 << 10, 128 << 10})
      attempt(name, {{"blocks", blocks}, {"bytes", bytes}}, "us", [&] { return measure_tile(blocks, bytes); });
}

// Clusters ------------------------------------------------------------------------------------------------------------

std::vector<double> measure_cluster_barrier(bool relaxed, unsigned size, unsigned clusters) {
  Array<unsigned> wrong(1);
  const auto kernel = relaxed ? wait_in_cluster<true> : wait_in_cluster<false>;
  const ClusterLaunch shape{size, clusters, threads, 2 * sizeof(unsigned)};
  if (!relaxed) launch_clusters(kernel, shape, ClusterBarriers{2000, true, wrong.data()});
  const auto values = us_per_round(
      5000, [&](int rounds) { launch_clusters(kernel, shape, ClusterBarriers{rounds, false, wrong.data()}); });
  expect(wrong.read()[0] == 0, "numbers passed on were not there after a barrier");
  return values;
}

void for_cluster_sizes(const std::function<void(unsigned)>& measure) {
  for (const unsigned size : {2u, 4u, 8u, 16u}) measure(size);
}

void cluster_barrier(const std::string& name, bool relaxed) {
  const auto all = static_cast<unsigned>(device.multiProcessorCount);
  for_cluster_sizes([&](unsigned size) {
    for (const bool everywhere : {false, true})
      attempt(name, {{"cluster", size}, {"everywhere", everywhere}}, "us",
              [&] { return measure_cluster_barrier(relaxed, size, everywhere ? all / size : 1); });
  });
}

void cluster_barrier_ordered(const std::string& name) { cluster_barrier(name, false); }
void cluster_barrier_relaxed(const std::string& name) { cluster_barrier(name, true); }

std::vector<double> measure_chase(unsigned size, int rank) {
  constexpr int loads = 4096;
  Array<long long> spent(1);
  Array<unsigned> wrong(1);
  std::vector<double> values;
  for (int i = 0; i < repetitions; ++i) {
    launch_clusters(chase_in_cluster, {size, 1, 32, chain_words * sizeof(unsigned)},
                    Chase{loads, rank, spent.data(), wrong.data()});
    values.push_back(static_cast<double>(spent.read()[0]) / loads);
  }
  expect(wrong.read()[0] == 0, "the chain of loads ended elsewhere");
  return values;
}

void cluster_load(const std::string& name) {
  for_cluster_sizes([&](unsigned size) {
    for (const unsigned rank : {0u, 1u, size - 1})
      if (rank != 1 || size > 2)
        attempt(name, {{"cluster", size}, {"rank", rank}}, "cycles", [&] { return measure_chase(size, rank); });
  });
}

std::vector<double> measure_push(bool cluster_scope) {
  Array<unsigned> verdict(2);
  const auto kernel = cluster_scope ? push_in_cluster<true> : push_in_cluster<false>;
  auto values = us_per_round(5000, [&](int rounds) {
    launch_clusters(kernel, {2, 1, 32, sizeof(Message) + sizeof(uint64_t)},
                    Push{rounds, verdict.data(), verdict.data() + 1});
  });
  const auto seen = verdict.read();
  expect(seen[0] == 0, "a message did not come in time");
  expect(seen[1] == 0, std::to_string(seen[1]) + " messages were not there when their bytes had been counted");
  for (double& value : values) value /= 2;
  return values;
}

void cluster_push(const std::string& name) {
  for (const bool cluster_scope : {false, true})
    attempt(name, {{"cluster_scope", cluster_scope}}, "us", [&] { return measure_push(cluster_scope); });
}

std::vector<double> measure_cluster_exchange(unsigned size, int bytes) {
  const int words = bytes / 16;
  const size_t shared_bytes = 2 * bytes + 2 * sizeof(uint64_t);
  Array<unsigned> failed(1), sums(size * threads);
  CHECK(cudaFuncSetAttribute(exchange_in_cluster, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(shared_bytes)));
  int last = 0;
  const auto values = us_per_round(2000, [&](int rounds) {
    last = rounds;
    launch_clusters(exchange_in_cluster, {size, 1, threads, shared_bytes},
                    ClusterExchange{rounds, words, failed.data(), sums.data()});
  });
  expect(failed.read()[0] == 0, "a tile was not whole in time");
  judge_sums(sums.read(), size, expected_sum(last, words));
  return values;
}

void cluster_exchange(const std::string& name) {
  for_cluster_sizes([&](unsigned size) {
    for (const int bytes : {2 << 10, 8 << 10, 32 << 10})
      attempt(name, {{"cluster", size}, {"bytes", bytes}}, "us", [&] { return measure_cluster_exchange(size, bytes); });
  });
}

// One SM --------------------------------------------------------------------------------------------------------------

// The work per clock of the first block, with as many blocks as there are SMs. `launch` starts the kernel on a Work.
std::vector<double> measure_work(int count, int bytes, unsigned block_threads, double work, unsigned result,
                                 const std::function<void(const Work&)>& launch) {
  Array<long long> spent(1);
  Array<unsigned> results(block_threads);
  std::vector<double> values;
  for (int i = 0; i <= repetitions; ++i) {
    launch({count, bytes, spent.data(), results.data()});
    CHECK(cudaGetLastError());
    if (i > 0) values.push_back(work / static_cast<double>(spent.read()[0]));  // the first one warms up
  }
  for (const unsigned value : results.read()) expect(value == result, "a thread computed " + std::to_string(value));
  return values;
}

void shared_scan(const std::string& name) {
  for (const int block_threads : {128, 256, 512, 1024}) {
    const int step = 16 * scan_batch * block_threads, bytes = shared_limit() / step * step, count = 64;
    attempt(name, {{"threads", block_threads}, {"bytes", bytes}}, "bytes/clock", [&] {
      CHECK(cudaFuncSetAttribute(scan_shared, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
      return measure_work(count, bytes, block_threads, double{1} * count * bytes, count * (bytes / 4 / block_threads),
                          [&](const Work& w) { scan_shared<<<device.multiProcessorCount, block_threads, bytes>>>(w); });
    });
  }
}

void matrix_latency(const std::string& name) {
  attempt(name, {{"warps", 1}}, "cycles", [] {
    auto rates = measure_work(4096, 0, 32, 4096, 16 * 4096,
                              [](const Work& w) { multiply_matrices<1><<<device.multiProcessorCount, 32>>>(w); });
    for (double& rate : rates) rate = 1 / rate;
    return rates;
  });
}

void matrix_rate(const std::string& name) {
  constexpr int chains = 8, count = 4096;
  for (const int warps : {1, 2, 4, 8, 16})
    attempt(name, {{"warps", warps}}, "instructions/clock", [&] {
      return measure_work(
          count, 0, 32 * warps, double{chains} * count * warps, 16 * chains * count,
          [&](const Work& w) { multiply_matrices<chains><<<device.multiProcessorCount, 32 * warps>>>(w); });
    });
}

void matrix_load(const std::string& name) {
  constexpr int count = 4096;
  for (const int warps : {1, 2, 4, 8, 16})
    attempt(name, {{"warps", warps}}, "bytes/clock", [&] {
      const int bytes = 512 * warps;
      return measure_work(count, bytes, 32 * warps, double{count} * bytes, 4 * count, [&](const Work& w) {
        load_matrices_often<<<device.multiProcessorCount, 32 * warps, bytes>>>(w);
      });
    });
}

void multiply_add_rate(const std::string& name) {
  constexpr int count = 4096;
  for (const int block_threads : {128, 256, 512})
    attempt(name, {{"threads", block_threads}}, "multiply-adds/clock", [&] {
      return measure_work(count, 0, block_threads, double{8} * count * block_threads, 8 * count,
                          [&](const Work& w) { multiply_add<<<device.multiProcessorCount, block_threads>>>(w, 1.0f); });
    });
}

template <int outputs>
void multiply_add_shared_rate(const std::string& name) {
  constexpr int count = 64, bytes = 128 * product_steps;
  for (const int block_threads : {128, 256, 512})
    attempt(name, {{"threads", block_threads}, {"outputs", outputs}}, "multiply-adds/clock", [&] {
      constexpr int sums = 8 * outputs * count * product_steps;
      return measure_work(count, bytes, block_threads, double{sums} * block_threads, sums, [&](const Work& w) {
        multiply_add_shared<outputs>
            <<<device.multiProcessorCount, block_threads, bytes>>>(w, float4{1.0f, 1.0f, 1.0f, 1.0f});
      });
    });
}

void multiply_add_shared_rates(const std::string& name) {
  multiply_add_shared_rate<1>(name);
  multiply_add_shared_rate<2>(name);
  multiply_add_shared_rate<4>(name);
}

void matrix_shared_rate(const std::string& name) {
  constexpr int count = 64, bytes = 8 * 2 * (32 * product_steps + 8), sums = 2 * count * product_steps;
  for (const int warps : {1, 2, 4, 8, 16})
    attempt(name, {{"warps", warps}}, "instructions/clock", [&] {
      return measure_work(count, bytes, 32 * warps, double{sums} * warps, 16 * sums, [&](const Work& w) {
        multiply_matrices_shared<<<device.multiProcessorCount, 32 * warps, bytes>>>(w);
      });
    });
}

struct Measurement {
  const char* name;
  void (*run)(const std::string& name);
  bool clusters;  // needs compute capability 9.0
};

const Measurement measurements[] = {
    {"counter_barrier", counter_barrier, false},
    {"flag_barrier", flag_barrier, false},
    {"grid_sync", grid_sync, false},
    {"cluster_barrier", cluster_barrier_ordered, true},
    {"cluster_barrier_relaxed", cluster_barrier_relaxed, true},
    {"tagged_message", tagged_message, false},
    {"flagged_message", flagged_message, false},
    {"cluster_push", cluster_push, true},
    {"cluster_load", cluster_load, true},
    {"tile_exchange", tile_exchange, false},
    {"cluster_exchange", cluster_exchange, true},
    {"shared_scan", shared_scan, false},
    {"matrix_latency", matrix_latency, false},
    {"matrix_rate", matrix_rate, false},
    {"matrix_load", matrix_load, false},
    {"matrix_shared_rate", matrix_shared_rate, false},
    {"multiply_add_rate", multiply_add_rate, false},
    {"multiply_add_shared_rate", multiply_add_shared_rates, false},
};

void print_device() {
  int driver = 0, runtime = 0, clock = 0;
  CHECK(cudaDriverGetVersion(&driver));
  CHECK(cudaRuntimeGetVersion(&runtime));
  CHECK(cudaDeviceGetAttribute(&clock, cudaDevAttrClockRate, 0));
  std::printf(
      "{\"device\": \"%s\", \"capability\": \"%d.%d\", \"multiprocessors\": %d, \"shared_bytes\": %d, "
      "\"cache_bytes\": %d, \"clock_khz\": %d, \"cuda_driver\": %d, \"cuda_runtime\": %d}\n",
      device.name, device.major, device.minor, device.multiProcessorCount, shared_limit(), device.l2CacheSize, clock,
      driver, runtime);
  std::fflush(stdout);
}

}  // namespace

int main(int count, char** arguments) try {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::fprintf(stderr, "there is no CUDA device\n");
    return 2;
  }
  CHECK(cudaGetDeviceProperties(&device, 0));
  print_device();
  const std::vector<std::string> wanted(arguments + 1, arguments + count);
  for (const Measurement& m : measurements) {
    if (!wanted.empty() && std::find(wanted.begin(), wanted.end(), m.name) == wanted.end()) continue;
    if (m.clusters && device.major < 9)
      print_error(m.name, {}, "clusters need compute capability 9.0");
    else
      m.run(m.name);
  }
  return any_failed;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}

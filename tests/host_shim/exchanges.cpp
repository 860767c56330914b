// A program that runs the kernels of benchmarks/gpu/micro/exchange.h and cluster.h on the host shim: `exchanges NAME
// SEED`. Exits with 0 if all is right, else says on stderr what is wrong and exits with 1.

#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

#include "../../benchmarks/gpu/micro/cluster.h"
#include "../../benchmarks/gpu/micro/exchange.h"

using namespace fused_rnn::cuda;

namespace {

void expect(bool condition, const char* what) {
  if (!condition) throw std::runtime_error(std::string("wrong ") + what);
}

template <typename Q>
void launch(void (*kernel)(Q), unsigned blocks, unsigned block_threads, unsigned seed, std::remove_const_t<Q> q) {
  host_shim::Launch shape{{blocks}, {block_threads}, 0, seed, uint64_t{1} << 20};
  shape.whole_messages = true;  // which the kernels check
  host_shim::launch(shape, kernel, q);
}

void check_barrier(void (*kernel)(Barriers), unsigned seed) {
  constexpr unsigned blocks = 5;
  std::vector<unsigned> arrivals(blocks), passed(2 * blocks);
  unsigned failed = 0, wrong = 0;
  launch(kernel, blocks, threads, seed, Barriers{6, arrivals.data(), passed.data(), &failed, &wrong});
  expect(failed == 0, "flag of failure");
  expect(wrong == 0, "number passed on");
  for (unsigned block = 0; block < blocks; ++block) expect(passed[block] == 6 * 7919u + block, "last number");
}

void check_ping_pong(void (*kernel)(PingPong), unsigned seed) {
  for (const unsigned distance : {1u, 3u}) {
    Message boxes[2] = {};
    unsigned flags[2] = {}, failed = 0, wrong = 0;
    launch(kernel, distance + 1, 1, seed, PingPong{7, boxes, flags, &failed, &wrong, distance});
    expect(failed == 0, "flag of failure");
    expect(wrong == 0, "message");
    expect(same(boxes[0], message_of(7)) && same(boxes[1], message_of(7)), "last message");
  }
}

void check_tile(unsigned seed) {
  constexpr int blocks = 3, words = 41;
  std::vector<TileExchange::Word> tiles(2 * words);
  std::vector<unsigned> sums(blocks * threads, 1);
  unsigned arrivals = 0, failed = 0;
  const TileExchange q{5, words, tiles.data(), &arrivals, &failed, sums.data()};
  launch(exchange_tile, blocks, threads, seed, q);
  expect(failed == 0, "flag of failure");
  for (int block = 0; block < blocks; ++block) {
    unsigned sum = 0;
    for (int i = 0; i < threads; ++i) sum ^= sums[block * threads + i];
    expect(sum == expected_sum(q.rounds, q.words), "sum of what was loaded");
  }
}

// One block is missing that the others wait for: the wait must end.
void check_bounded_wait(unsigned seed) {
  std::vector<Message> boxes(2);
  unsigned flags[2] = {}, failed = 0, wrong = 0;
  launch(exchange_tagged, 1, 1, seed, PingPong{1, boxes.data(), flags, &failed, &wrong, 1});
  expect(failed == 1, "flag of failure");
}

template <typename Q>
void launch_clusters(void (*kernel)(Q), host_shim::Launch shape, unsigned size, std::remove_const_t<Q> q) {
  shape.cluster = size;
  host_shim::launch(shape, kernel, q);
}

void check_cluster_barrier(unsigned seed) {
  for (const unsigned size : {1u, 2u, 6u}) {
    unsigned wrong = 0;
    const host_shim::Launch shape{{2 * size}, {threads}, 2 * sizeof(unsigned), seed};
    launch_clusters(wait_in_cluster<false>, shape, size, ClusterBarriers{5, true, &wrong});
    launch_clusters(wait_in_cluster<true>, shape, size, ClusterBarriers{5, false, &wrong});
    expect(wrong == 0, "number passed on");
  }
}

void check_cluster_push(unsigned seed) {
  unsigned failed = 0, wrong = 0;
  const host_shim::Launch shape{{2}, {32}, sizeof(Message) + sizeof(uint64_t), seed};
  launch_clusters(push_in_cluster<true>, shape, 2, Push{6, &failed, &wrong});
  expect(failed == 0, "flag of failure");
  expect(wrong == 0, "message");
}

void check_cluster_exchange(unsigned seed) {
  constexpr unsigned words = 24;
  for (const unsigned size : {1u, 2u, 4u}) {
    unsigned failed = 0;
    std::vector<unsigned> sums(size * threads, 1);
    const host_shim::Launch shape{{size}, {threads}, 2 * 16 * words + 2 * sizeof(uint64_t), seed};
    launch_clusters(exchange_in_cluster, shape, size, ClusterExchange{5, words, &failed, sums.data()});
    expect(failed == 0, "flag of failure");
    for (unsigned block = 0; block < size; ++block) {
      unsigned sum = 0;
      for (int i = 0; i < threads; ++i) sum ^= sums[block * threads + i];
      expect(sum == expected_sum(5, words), "sum of what was pushed");
    }
  }
}

void check_cluster_chase(unsigned seed) {
  unsigned wrong = 0;
  long long spent = -1;
  const host_shim::Launch shape{{3}, {32}, chain_words * sizeof(unsigned), seed};
  launch_clusters(chase_in_cluster, shape, 3, Chase{100, 2, &spent, &wrong});
  expect(wrong == 0 && spent >= 0, "end of the chain");
}

void check(const std::string& name, unsigned seed) {
  if (name == "counter") return check_barrier(wait_at_counter, seed);
  if (name == "flags") return check_barrier(wait_at_flags, seed);
  if (name == "tagged") return check_ping_pong(exchange_tagged, seed);
  if (name == "flagged") return check_ping_pong(exchange_flagged, seed);
  if (name == "tile") return check_tile(seed);
  if (name == "bounded") return check_bounded_wait(seed);
  if (name == "cluster_barrier") return check_cluster_barrier(seed);
  if (name == "cluster_push") return check_cluster_push(seed);
  if (name == "cluster_exchange") return check_cluster_exchange(seed);
  if (name == "cluster_chase") return check_cluster_chase(seed);
  throw std::runtime_error("unknown check " + name);
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 3) return 2;
  try {
    check(arguments[1], static_cast<unsigned>(std::atoi(arguments[2])));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}

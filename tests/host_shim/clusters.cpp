// The calls of csrc/cuda/api.h by the warp kernels alone, for the sizes that FUSED_RNN_CLUSTER_SIZES names: a library
// for tests/test_cluster_kernels.py, in bfloat16 and with -DHALF in float16, or with -DFLOATS in float32; with -DRACES
// a program.

#ifndef RACES

#  include "calls.h"

namespace {

template <typename Call>
Prepared prepared(const Call& call, const Chip& chip, const Division& forced, const HostLauncher& launcher) {
  switch (call.type) {
#  ifdef FLOATS
    case Type::float32:
      return prepare_forced_clusters<float>(call, chip, forced, launcher);
#  else
    case Type::bfloat16:
      return prepare_forced_clusters<BFloat16>(call, chip, forced, launcher);
#    ifdef HALF
    case Type::float16:
      return prepare_forced_clusters<Half>(call, chip, forced, launcher);
#    endif
#  endif
    default:
      return prepare_forced_clusters<double>(call, chip, forced, launcher);
  }
}

}  // namespace

#else

#  include "races.h"

using namespace fused_rnn;
using namespace fused_rnn::cuda;

namespace {

// There are more steps than are fetched ahead, and two tiles for one cluster, because no SM has shared memory for two
// blocks. The seed decides whether rows are whole, and whether the call is regularised.
template <typename Cell>
std::vector<unsigned char> run_cell(const Chip& chip, const Division& forced, unsigned seed) {
#  ifdef FLOATS
  using S = float;
#  else
  using S = std::conditional_t<Cell::gates == 1, Half, BFloat16>;
#  endif
  const bool by_messages = forced_division().exchange == ExchangeId::messages;
  const int T = by_messages ? 13 : 7, B = by_messages ? forced.sequences + 1 : 9, H = seed % 4 == 1 ? 53 : 56;
  return run_layer<S>(cluster::modulates_of<Cell>, {T, B, H, seed % 4 < 2}, seed, [&](const auto& call) {
    const auto prepare = [&](const Chip& chip) {
      return cluster::prepare_for<Cell, S>(call, chip, forced, HostLauncher{seed});
    };
    Chip tight = chip;
    tight.shared_bytes = prepare(chip).plan.shared_bytes;
    return prepare(tight);
  });
}

// By messages, there are more steps and tiles than places for them. With -DCOMPARED the results must equal those of a
// cluster with the same number of blocks, where sums are added up in the same order.
template <typename Cell>
void run_cell(const Chip& chip, unsigned seed) {
  Division forced = forced_division();
  const auto found = run_cell<Cell>(chip, forced, seed);
#  ifdef COMPARED
  forced.exchange = ExchangeId::cluster;
  if (run_cell<Cell>(chip, forced, seed) != found) throw std::runtime_error("other results than in clusters");
#  endif
}

using MultiplicativeLstm = cluster::Modulated<Lstm, Modulates::input>;
using MultiplicativeLstmHidden = cluster::Modulated<Lstm, Modulates::hidden>;
using MultiplicativeGru = cluster::Modulated<Gru, Modulates::input>;

template <typename... Cells>
void run_cells(const Chip& chip, unsigned seed) {
  (run_cell<Cells>(chip, seed), ...);
}

}  // namespace

// The cells are those of -DRACES=Lstm,GruResetAfter,...
int main(int, char** arguments) { return run_program(arguments, 1, run_cells<RACES>); }

#endif

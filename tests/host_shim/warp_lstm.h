// A forward LSTM whose step stays in registers, to prove that a kernel of warps needs nothing but the contract of
// exchanges: one source for the host shim and for nvcc.
//
// A cluster takes a tile of sequences at a time. A block owns H / blocks units with all four gates, and a warp eight of
// them, or a share of K for these eight. Rows of the weights are interleaved by gate, so that the sums of a matrix
// instruction hold all gates of a unit and two sequences in one thread; c never leaves its registers.
#pragma once

#include "../../csrc/cuda/exchange/cluster.h"
#include "../../csrc/cuda/exchange/split.h"

namespace fused_rnn::cuda {

template <typename S>
struct WarpLstm {
  int steps, tiles;    // of whole tiles of 8 * octets sequences; the batch B is tiles * 8 * octets
  const S* projected;  // [T, B, H/8, 4, 8] W x
  const S* weight;     // [4, H, H]
  const S* h_0;        // [B, H]
  S* output;           // [T, B, H]
  float* c;            // [B, H] after the last step
  unsigned* failed;    // 0
};

FUSED_RNN_DEVICE float approximate_sigmoid(float x) { return 0.5f * approximate_tanh(0.5f * x) + 0.5f; }

#if FUSED_RNN_SM90

template <typename S, int H, int blocks, int shares, int octets>
class WarpLstmBlock {
 public:
  using Team = ClusterTeam<blocks>;

 private:
  static constexpr int units = H / blocks, groups = units / 8, own_k = H / shares, stages = 4;
  static_assert(units % 8 == 0 && own_k % 32 == 0, "a warp has 8 units, and takes K in steps of 32");
  using State = ClusterState<Team, S, H, shares, octets>;
  using Sums = SplitSums<groups, shares, 2 * octets>;
  using Row = typename State::Row;
  static constexpr int staged_row = 16, stage_bytes = groups * octets * 512, turned_bytes = groups * octets * 128;

 public:
  static constexpr int threads = groups * shares * 32;
  static constexpr int shared_bytes = State::shared_bytes + Sums::shared_bytes + stages * stage_bytes + turned_bytes;

  FUSED_RNN_DEVICE WarpLstmBlock(const WarpLstm<S>& q, Team& team, unsigned char* shared)
      : q_(q),
        team_(team),
        h_(team_, shared + Sums::shared_bytes + stages * stage_bytes + turned_bytes),
        sums_(shared, 1, group_, share_),
        inputs_(shared + Sums::shared_bytes + group_ * octets * 512),
        turned_(shared + Sums::shared_bytes + stages * stage_bytes + group_ * octets * 128) {
    load_weights();
    h_.own(unit_);
  }

  FUSED_RNN_DEVICE void run() {
    for (int tile = blockIdx.x / blocks; tile < q_.tiles; tile += gridDim.x / blocks) {
      batch_ = tile * 8 * octets;
      team_.start([&] { load_state(); });
      if (share_ == 0) begin_tile();
      for (int t = 0; t < q_.steps; ++t) step(t);
      if (share_ == 0) end_tile();
    }
    team_.end();
  }

 private:
  FUSED_RNN_DEVICE int64_t sequences() const { return int64_t{q_.tiles} * 8 * octets; }

  // Two gates to a matrix of [16, 16]: i and f, g and o.
  FUSED_RNN_DEVICE void load_weights() {
    const auto pair = [&](int gate, int k) {
      const S* const from = q_.weight + (int64_t{gate} * H + unit_ + lane_ / 4) * H + share_ * own_k + k;
      return *reinterpret_cast<const uint32_t*>(from);
    };
    FUSED_RNN_UNROLL
    for (int s = 0; s < own_k / 16; ++s) {
      const int k = 16 * s + 2 * (lane_ % 4);
      FUSED_RNN_UNROLL
      for (int i = 0; i < 4; ++i) {
        weights_[s][0][i] = pair(i % 2, k + i / 2 * 8);
        weights_[s][1][i] = pair(2 + i % 2, k + i / 2 * 8);
      }
    }
  }

  FUSED_RNN_DEVICE void load_state() {
    for (int i = threadIdx.x; i < 8 * octets * H; i += threads)
      h_.rows()[i / H * (H + 8) + i % H] = q_.h_0[int64_t{batch_} * H + i];
  }

  FUSED_RNN_DEVICE void begin_tile() {
    for (int t = 0; t < stages - 1; ++t) fetch(t);
    FUSED_RNN_UNROLL
    for (int n = 0; n < octets; ++n) c_[n][0] = c_[n][1] = 0;
  }

  // Start to bring the inputs of a step to shared memory: a lane one gate of one sequence, all eight units.
  FUSED_RNN_DEVICE void fetch(int t) {
    if (t < q_.steps) {
      FUSED_RNN_UNROLL
      for (int n = 0; n < octets; ++n) {
        const int64_t sequence = t * sequences() + batch_ + 8 * n + lane_ / 4;
        const S* const from = q_.projected + (sequence * (H / 8) + unit_ / 8) * 32 + lane_ % 4 * 8;
        copy_async<16>(staged(t) + n * 512 + (lane_ % 4 * 8 + lane_ / 4) * staged_row, from);
      }
    }
    copy_async_commit();
  }

  FUSED_RNN_DEVICE unsigned char* staged(int t) const { return inputs_ + t % stages * stage_bytes; }

  FUSED_RNN_DEVICE void step(int t) {
    if (t > 0) h_.wait(share_);
    if (t + 1 < q_.steps && group_ == 0) h_.expect(share_);
    float sums[2 * octets][4] = {};
    multiply(sums);
    if constexpr (shares > 1) {
      if (share_ > 0) return sums_.give(sums, team_.alive());
      sums_.take(sums);
    }
    copy_async_wait<stages - 2>();
    __syncwarp();
    FUSED_RNN_UNROLL
    for (int n = 0; n < octets; ++n) {
      uint32_t input[4];
      load_matrices_transposed(input, staged(t) + n * 512 + lane_ * staged_row);
      publish(t, n, cell(sums[2 * n], sums[2 * n + 1], input, c_[n]));
    }
    fetch(t + stages - 1);
  }

  FUSED_RNN_DEVICE void multiply(float (&sums)[2 * octets][4]) const {
    const S* const rows = h_.rows() + lane_ % 8 * (H + 8) + share_ * own_k + lane_ / 8 * 8;
    FUSED_RNN_UNROLL
    for (int s = 0; s < own_k / 16; s += 2) {
      FUSED_RNN_UNROLL
      for (int n = 0; n < octets; ++n) {
        uint32_t b[4];
        load_matrices(b, rows + n * 8 * (H + 8) + s * 16);
        FUSED_RNN_UNROLL
        for (int i = 0; i < 2; ++i) {
          mma_m16n8k16<S>(sums[2 * n + i], weights_[s][i], {b[0], b[1]});
          mma_m16n8k16<S>(sums[2 * n + i], weights_[s + 1][i], {b[2], b[3]});
        }
      }
    }
  }

  // h of a unit and two sequences, in one register.
  FUSED_RNN_DEVICE uint32_t cell(const float (&i_f)[4], const float (&g_o)[4], const uint32_t (&input)[4],
                                 float (&c)[2]) const {
    float h[2];
    FUSED_RNN_UNROLL
    for (int j = 0; j < 2; ++j) {
      const auto x = [&](int gate) { return j ? high_of<S>(input[gate]) : low_of<S>(input[gate]); };
      const float i = approximate_sigmoid(i_f[j] + x(0)), f = approximate_sigmoid(i_f[2 + j] + x(1));
      const float g = approximate_tanh(g_o[j] + x(2)), o = approximate_sigmoid(g_o[2 + j] + x(3));
      c[j] = f * c[j] + i * g;
      h[j] = team_.alive() ? o * approximate_tanh(c[j]) : NAN;
    }
    return narrow_pair<S>(h[0], h[1]);
  }

  // The warp turns its [8 units, 8 sequences] into rows, which go to the other blocks and to the output.
  FUSED_RNN_DEVICE void publish(int t, int n, uint32_t h) const {
    unsigned char* const rows = turned_ + n * 128;
    store_matrices_transposed<1>(rows + lane_ % 8 * 16, {h});
    __syncwarp();
    const Row row = *reinterpret_cast<const Row*>(rows + lane_ % 8 * 16);
    if (t + 1 < q_.steps) h_.push(n, row);
    S* const to = q_.output + (t * sequences() + batch_ + 8 * n + lane_ % 8) * H + unit_;
    if (lane_ < 8) *reinterpret_cast<Row*>(to) = row;
    __syncwarp();
  }

  FUSED_RNN_DEVICE void end_tile() const {
    for (int n = 0; n < octets; ++n)
      for (int j = 0; j < 2; ++j)
        q_.c[(int64_t{batch_} + 8 * n + 2 * (lane_ % 4) + j) * H + unit_ + lane_ / 4] = c_[n][j];
  }

  const WarpLstm<S>& q_;
  const int lane_ = threadIdx.x % 32, group_ = threadIdx.x / 32 % groups, share_ = threadIdx.x / 32 / groups;
  const int unit_ = static_cast<int>(cluster_rank()) * units + 8 * group_;
  int batch_ = 0;  // where the tile begins
  Team& team_;
  State h_;
  Sums sums_;
  unsigned char *const inputs_, *const turned_;
  uint32_t weights_[own_k / 16][2][4];
  float c_[octets][2];
};

#endif

template <typename S, int H, int blocks, int shares, int octets>
FUSED_RNN_KERNEL __launch_bounds__(H / blocks / 8 * shares * 32, 1) warp_lstm(FUSED_RNN_PARAMETER WarpLstm<S> q) {
#if FUSED_RNN_SM90
  FUSED_RNN_DYNAMIC_SHARED(shared);
  using Block = WarpLstmBlock<S, H, blocks, shares, octets>;
  typename Block::Team team(q.failed);  // not within the block: what points into itself stays in memory
  Block(q, team, shared).run();
#endif
}

}  // namespace fused_rnn::cuda

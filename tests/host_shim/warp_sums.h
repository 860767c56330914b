// A recurrence whose blocks hand each other partial sums, as a backward pass does: s_t = x_t + W y_(t-1) with
// y = s / (1 + |s|), written against the contract of exchanges.
//
// A block owns H / blocks units: it makes their y, multiplies these with its columns of W, and contributes the sums to
// whoever owns the outputs, who adds them up in the order of the blocks. All its warps multiply; the last one does
// nothing else.
#pragma once

#include "../../csrc/cuda/exchange/cluster.h"

namespace fused_rnn::cuda {

template <typename S>
struct WarpSums {
  int steps, tiles;  // of 8 sequences; the batch B is tiles * 8
  const float* x;    // [T, B, H]
  const S* weight;   // [H, H]
  float* s;          // [T, B, H]
  unsigned* failed;  // 0
};

#if FUSED_RNN_SM90

template <typename S, int H, int blocks>
class WarpSumsBlock {
 public:
  using Team = ClusterTeam<blocks>;

 private:
  static constexpr int units = H / blocks, stride = units + 8, warps = units / 8 + 1;
  static constexpr int tiles = H / 16, own_tiles = (tiles + warps - 1) / warps;  // of 16 outputs; those of a warp
  static_assert(units % 16 == 0, "a matrix instruction takes 16 outputs of one owner");
  using Sums = ClusterSums<Team, units / 16 * 32>;

 public:
  static constexpr int threads = warps * 32, shared_bytes = Sums::shared_bytes + 2 * 8 * stride * int{sizeof(S)};

  FUSED_RNN_DEVICE WarpSumsBlock(const WarpSums<S>& q, Team& team, unsigned char* shared)
      : q_(q), team_(team), sums_(team, shared), y_(reinterpret_cast<S*>(shared + Sums::shared_bytes)) {
    load_weights();
  }

  FUSED_RNN_DEVICE void run() {
    for (int tile = blockIdx.x / blocks; tile < q_.tiles; tile += gridDim.x / blocks) {
      team_.start([] {});
      for (int t = 0; t < q_.steps; ++t) step(t, 8 * tile);
    }
    team_.end();
  }

 private:
  FUSED_RNN_DEVICE void load_weights() {
    FUSED_RNN_UNROLL
    for (int j = 0; j < own_tiles; ++j) {
      const int row = 16 * tile_of(j) + lane_ / 4;
      FUSED_RNN_UNROLL
      for (int k = 0; k < units / 16; ++k) {
        FUSED_RNN_UNROLL
        for (int i = 0; i < 4; ++i) {
          const int column = first_unit_ + 16 * k + 2 * (lane_ % 4) + i / 2 * 8;
          weights_[j][k][i] = *reinterpret_cast<const uint32_t*>(q_.weight + (row + i % 2 * 8) * H + column);
        }
      }
    }
  }

  FUSED_RNN_DEVICE int tile_of(int j) const { return j * warps + warp_ < tiles ? j * warps + warp_ : tiles - 1; }

  FUSED_RNN_DEVICE void step(int t, int batch) {
    const bool last = t + 1 == q_.steps;
    if (warp_ < warps - 1) {
      if (t > 0) sums_.wait();
      if (!last && warp_ == 0) sums_.expect();
      make(t, batch);
    }
    __syncthreads();
    if (warp_ == warps - 1 && t > 0) sums_.follow();
    if (!last) multiply(t);
  }

  // Two buffers, because some warps may still multiply for other blocks when all that this one needs has come.
  FUSED_RNN_DEVICE S* y(int t) const { return y_ + t % 2 * 8 * stride; }

  // Eight units, one of them and two sequences in a thread.
  FUSED_RNN_DEVICE void make(int t, int batch) const {
    float made[2];
    FUSED_RNN_UNROLL
    for (int j = 0; j < 2; ++j) {
      const int64_t sequence = int64_t{t} * q_.tiles * 8 + batch + 2 * (lane_ % 4) + j;
      const int64_t place = sequence * H + first_unit_ + 8 * warp_ + lane_ / 4;
      float s = q_.x[place];
      if (t > 0) {
        FUSED_RNN_UNROLL
        for (int block = 0; block < blocks; ++block)
          s += sums_.pair(block, (warp_ / 2 * 32 + lane_) * 2 + warp_ % 2).values[j];
      }
      q_.s[place] = team_.alive() ? s : NAN;
      made[j] = s / (1 + (s < 0 ? -s : s));
    }
    store_matrices_transposed<1>(y(t) + lane_ % 8 * stride + 8 * warp_, {narrow_pair<S>(made[0], made[1])});
  }

  FUSED_RNN_DEVICE void multiply(int t) const {
    FUSED_RNN_UNROLL
    for (int j = 0; j < own_tiles; ++j) {
      if (j * warps + warp_ >= tiles) return;
      float sum[4] = {};
      FUSED_RNN_UNROLL
      for (int k = 0; k < units / 16; ++k) {
        uint32_t b[4];
        load_matrices(b, y(t) + lane_ % 8 * stride + 16 * k + lane_ / 8 % 2 * 8);  // the last two are the first again
        mma_m16n8k16<S>(sum, weights_[j][k], {b[0], b[1]});
      }
      const int owner = 16 * tile_of(j) / units, place = 16 * tile_of(j) % units / 16 * 32 + lane_;
      sums_.contribute(owner, place, sum);
    }
  }

  const WarpSums<S>& q_;
  const int lane_ = threadIdx.x % 32, warp_ = threadIdx.x / 32;
  const int first_unit_ = static_cast<int>(cluster_rank()) * units;
  Team& team_;
  Sums sums_;
  S* const y_;  // [2, 8, units] of this block
  uint32_t weights_[own_tiles][units / 16][4];
};

#endif

template <typename S, int H, int blocks>
FUSED_RNN_KERNEL __launch_bounds__((H / blocks / 8 + 1) * 32, 1) warp_sums(FUSED_RNN_PARAMETER WarpSums<S> q) {
#if FUSED_RNN_SM90
  FUSED_RNN_DYNAMIC_SHARED(shared);
  using Block = WarpSumsBlock<S, H, blocks>;
  typename Block::Team team(q.failed);  // not within the block: what points into itself stays in memory
  Block(q, team, shared).run();
#endif
}

}  // namespace fused_rnn::cuda

// The backward kernel of warps, for cells of one phase: a whole sequence in one launch, against the order of the
// forward steps. It leaves the gradients of all pre-activations in one matrix, from which the library makes every
// weight gradient and δx afterwards.
//
// A block makes the gradients of its own units, on registers of the warps that have 8 of them for 8 sequences, and
// hands them in shared memory to all its warps. These multiply them with the block's columns of Uᵀ, a warp for some
// outputs, and contribute the partial sums to the blocks that own the outputs; whoever has the units adds them up in
// the next step, or after the last one for δh_0.
#pragma once

#include "size.h"

namespace fused_rnn::cuda::cluster {

template <typename Cell, typename S, typename Size>
struct BackwardShape {
  static constexpr int gates = Cell::gates, gradients = Cell::gradients;
  // As what partial sums travel. Rounded to bfloat16 they leave δ and δh_0 as far from float64 as floats do over 1024
  // steps, for what is saved in bfloat16 is what decides.
  using Travelling = std::conditional_t<std::is_same_v<S, BFloat16>, BFloat16, float>;
  // Products: tiles of 16 outputs, of which all warps have as many, and what these sum over, with zeros at its end.
  static constexpr int tiles = Size::K / 16, warps = divisor_up_to(8, tiles), own_tiles = tiles / warps,
                       threads = 32 * warps;
  static constexpr int own_k = static_cast<int>(round_up(gates * Size::units, 32)), k_steps = own_k / 16;
  static constexpr int stride = own_k + (gradients - gates) * Size::units + 8;  // rows start in different banks
  // The pointwise part: jobs of 8 units and 8 sequences, of which a warp has some.
  static constexpr int jobs = Size::groups * Size::octets, own_jobs = static_cast<int>(divide_up(jobs, warps));
  static constexpr bool has_before = Cell::has_cell_state || Cell::bypasses_product;  // it reads c₋ or h₋
  static constexpr int d_output_at = Cell::saved, keep_h_at = d_output_at + 1, d_cells_at = keep_h_at + 1,
                       before_at = d_cells_at + Cell::has_cell_state, keep_c_at = before_at + has_before,
                       slots = keep_c_at + Cell::has_cell_state;
  // beside weights: sums of a product, or what the pointwise part reads; carried gradients, addresses
  static constexpr int others = 52 + 4 * own_tiles * Size::octets + 40 * own_jobs;
  static constexpr int fragments = own_tiles * k_steps, held = held_of(fragments, threads, others);
  // Tiles that are multiplied together: where weights come from shared memory so few that sums leave room for them.
  static constexpr int together = held == fragments || own_tiles <= 4 ? own_tiles : divisor_up_to(3, own_tiles);
  static constexpr int operand_bytes = 8 * Size::octets * stride * int{sizeof(S)};  // of one of two
  static constexpr int weight_bytes = warps * (fragments - held) * fragment_bytes;

  // for the plan
  static constexpr int held_fragments = held, resident_fragments = fragments - held, held_registers = 4 * held;
  static constexpr int received_bytes = Size::K * 8 * Size::octets * int{sizeof(Travelling)};
  static constexpr bool fits = phases_of<Cell> == 1;
};

#if FUSED_RNN_SM90

// The cell for 8 units and 8 sequences: a thread has unit lane / 4 and two of these.
template <typename Cell, typename S, typename Size>
class BackwardJob {
  using Shape = BackwardShape<Cell, S, Size>;
  using T = Approximate<S>;
  using Q = Operands<S, BackwardArrays>;
  using ThisTile = Tile<S, BackwardArrays, 1>;
  static constexpr bool has_c = Cell::has_cell_state, has_before = Shape::has_before;
  static_assert(!(has_c && Cell::bypasses_product), "h₋ and c stand in the same place");

 public:
  // Fewer stages where weights want the memory and steps take long.
  using Ring = RowRing<S, Shape::slots, 1, false, (Size::K > 512 ? 3 : 6)>;

  // What it reads of a step.
  struct Rows {
    uint32_t saved[4], more[4], before[1], keep_c[1];
  };

  FUSED_RNN_DEVICE BackwardJob() {}

  // `operand`: of the block, the first of two.
  FUSED_RNN_DEVICE BackwardJob(int job, SharedAddress operand, unsigned char* ring)
      : octet_(Size::octets > 1 ? job / Size::groups : 0),
        unit_(static_cast<int>(cluster_rank()) * Size::units + job % Size::groups * 8),
        pair_((job % Size::groups / 2 * Size::octets + octet_) * 64 + lane() * 2 + job % 2),
        row_(kept(operand +
                  ((8 * octet_ + lane() % 8) * Shape::stride + column_of(lane() / 8) + job % Size::groups * 8) *
                      int{sizeof(S)})),
        ring_(ring) {
    static_assert(Size::groups % 2 == 0);
    ring_.clear();
  }

  // Of the tile that begins with sequence `first`.
  FUSED_RNN_DEVICE void begin(const Q& q, int first, int longest) {
    const BackwardArrays<S>& a = q.arrays;
    tile_ = ThisTile(q, first + 8 * octet_, longest);
    float initial[2];
    FUSED_RNN_UNROLL
    for (int j = 0; j < 2; ++j) {
      const auto value = [&](const S* values) { return values && exists(q, j) ? widen(values[place(q, j)]) : 0.0f; };
      dh_[j] = value(a.d_h_n);
      if constexpr (has_c) dc_[j] = value(a.d_c_n);
      initial[j] = has_before ? value(has_c ? a.c_0 : a.h_0) : 0.0f;
    }
    initial_ = narrow_pair<S>(initial[0], initial[1]);
    const auto source = [&](int slot) -> typename Ring::Source {
      if (slot < Cell::saved) return {a.saved + int64_t{slot} * q.H + unit_, Cell::saved * q.H};
      const S* const values = slot == Shape::d_output_at               ? a.d_output
                              : slot == Shape::keep_h_at               ? a.keep_h
                              : has_c && slot == Shape::d_cells_at     ? a.d_cells
                              : has_before && slot == Shape::before_at ? (has_c ? a.cells : a.output)
                                                                       : a.keep_c;
      return {values ? values + unit_ : nullptr, q.H};
    };
    if (q.whole_rows)
      ring_.template begin<true, Shape::slots>(q, tile_, columns(q), source);
    else
      ring_.template begin<false, Shape::slots>(q, tile_, columns(q), source);
    sink_ = sink(q, tile_.time(q, tile_.longest() - 1), q.reverse ? 1 : -1);
  }

  FUSED_RNN_DEVICE Rows load(const Q& q) {
    Rows rows;
    ring_.wait();
    ring_.load(rows.saved, 0, 0);
    ring_.load(rows.more, 0, Cell::saved);
    if constexpr (has_c)
      if (q.arrays.keep_c) ring_.load(rows.keep_c, 0, Shape::keep_c_at);
    if constexpr (has_before) ring_.load_following(rows.before, 0, Shape::before_at);
    return rows;
  }

  // Add Uᵀ δ of the step at time t, if there was one, in the parts that the blocks contributed. A sequence that does
  // not have the step gets nothing, also where weights are not finite.
  template <typename Sums>
  FUSED_RNN_DEVICE void add(const Sums& sums, int t, bool there_was) {
    float total[2] = {dh_[0], dh_[1]};
    FUSED_RNN_UNROLL
    for (int block = 0; block < Size::blocks; ++block) {
      const auto part = sums.pair(block, pair_);
      FUSED_RNN_UNROLL
      for (int j = 0; j < 2; ++j) total[j] += part.values[j];
    }
    FUSED_RNN_UNROLL
    for (int j = 0; j < 2; ++j) dh_[j] = there_was && tile_.active(0, j, t) ? total[j] : dh_[j];
  }

  // From here on all gradients of this tile are NaN, but for d_c_0, which end() knows of.
  FUSED_RNN_DEVICE void poison() { dh_[0] = dh_[1] = NAN; }

  // The gradients of a step, in rows, which the block's warps read. `regularised`: by zoneout or clipping.
  template <bool regularised, typename Sums>
  FUSED_RNN_DEVICE void make(const Q& q, int step, const Rows& rows, const Sums& sums) {
    const int forwards = q.reverse ? -1 : 1, t = tile_.time(q, step), before_t = t - forwards;
    add(sums, t + forwards, step + 1 < tile_.longest());
    const BackwardArrays<S>& a = q.arrays;
    float made[Cell::gradients][2];
    uint32_t active_half[2];
    FUSED_RNN_UNROLL
    for (int j = 0; j < 2; ++j) {
      const bool active = tile_.active(0, j, t), first = step == 0 || !tile_.active(0, j, before_t);
      const auto read = [&](uint32_t pair) { return half_of<S, T>(pair, j); };
      T saved[Cell::saved], d[Cell::gradients], before(0.0f), c(0.0f), dc(0.0f), kept_dh(0.0f), kept_dc(0.0f);
      FUSED_RNN_UNROLL
      for (int k = 0; k < Cell::saved; ++k) saved[k] = read(rows.saved[k]);
      if constexpr (has_before) before = read(first ? initial_ : rows.before[0]);
      T dh = T(dh_[j]) + read(rows.more[0]);
      if constexpr (has_c) {
        dc = T(dc_[j]) + read(rows.more[Shape::d_cells_at - Cell::saved]);
        c = read(rows.more[Shape::before_at - Cell::saved]);
      }
      if constexpr (regularised) {
        if (a.keep_h) kept_dh = Zoneout::backward(read(rows.more[Shape::keep_h_at - Cell::saved]), dh);
        if constexpr (has_c) {
          if (a.keep_c) {
            kept_dc = Zoneout::backward(read(rows.keep_c[0]), dc);
            c = Cell::cell_state(saved, before);  // that which the cell made
          }
        }
      }
      Cell::backward(saved, before, before, c, dh, dc, d);
      if constexpr (!Cell::bypasses_product) dh = T(0.0f);
      if constexpr (regularised) {
        dh = dh + kept_dh;
        dc = dc + kept_dc;
        FUSED_RNN_UNROLL
        for (int k = 0; k < Cell::gradients; ++k) d[k] = clip(d[k], T(q.gradient_clip));
      }
      if constexpr (has_c) dc_[j] = active ? dc.value : dc_[j];
      dh_[j] = active ? dh.value : dh_[j];
      FUSED_RNN_UNROLL
      for (int k = 0; k < Cell::gradients; ++k) made[k][j] = d[k].value;
      active_half[j] = active ? 0xffffu << 16 * j : 0u;
    }
    uint32_t pairs[Cell::gradients];
    FUSED_RNN_UNROLL
    for (int k = 0; k < Cell::gradients; ++k)
      pairs[k] = narrow_pair<S>(made[k][0], made[k][1]) & (active_half[0] | active_half[1]);
    store_matrices_transposed<Cell::gradients>(row(step), pairs);
  }

  // The same rows to the result, and those of one step more on their way.
  FUSED_RNN_DEVICE void put_out(const Q& q, int step, bool regularised) {
    if (q.whole_rows) {
      sink_.template store<true>(0, row(step), false);
      if (regularised)
        ring_.template fetch<true>();
      else
        ring_.template fetch<true, Shape::keep_c_at>();
    } else {
      sink_.template store<false>(0, row(step), false);
      ring_.template fetch<false>();
    }
    ring_.advance();
    sink_.advance();
  }

  // Gradients of the initial state, and zeros at times that no sequence of the tile reaches.
  FUSED_RNN_DEVICE void end(const Q& q, bool alive) const {
    FUSED_RNN_UNROLL
    for (int j = 0; j < 2; ++j) {
      if (!exists(q, j)) continue;
      q.arrays.d_h_0[place(q, j)] = narrow<S>(dh_[j]);
      if constexpr (has_c) q.arrays.d_c_0[place(q, j)] = narrow<S>(alive ? dc_[j] : NAN);
    }
    auto rest = sink(q, tile_.longest(), 1);
    for (int t = tile_.longest(); t < q.T; ++t, rest.advance()) {
      if (q.whole_rows)
        rest.template store<true>(0, row(0), true);
      else
        rest.template store<false>(0, row(0), true);
    }
  }

 private:
  FUSED_RNN_DEVICE static int lane() { return threadIdx.x % 32; }
  // Where a gradient begins in the operand: side by side those that U multiplies, of a gate each, then what only the
  // result has: δa_n of the reset-after GRU, where δq takes its place.
  FUSED_RNN_DEVICE static int column_of(int gradient) {
    if (gradient >= Cell::gradients) return 0;  // of a lane that has none
    if (Cell::gradients == Cell::gates || gradient < Cell::gates - 1) return gradient * Size::units;
    return gradient == Cell::gates ? (Cell::gates - 1) * Size::units : Shape::own_k;
  }

  FUSED_RNN_DEVICE SharedAddress row(int step) const { return row_ + (step & 1) * Shape::operand_bytes; }
  FUSED_RNN_DEVICE int columns(const Q& q) const { return q.H - unit_; }
  FUSED_RNN_DEVICE bool exists(const Q& q, int j) const { return tile_.has(0, j) && lane() / 4 < columns(q); }
  FUSED_RNN_DEVICE RowSink<S, 1> sink(const Q& q, int time, int time_step) const {
    S* const values =
        lane() / 8 < Cell::gradients && tile_.has_row(0) ? q.arrays.d + int64_t{lane() / 8} * q.H + unit_ : nullptr;
    return {q, tile_, values, q.arrays.d, Cell::gradients * q.H, columns(q), time, time_step};
  }
  // Where a unit of the thread stands in a [B, H] array.
  FUSED_RNN_DEVICE int64_t place(const Q& q, int j) const {
    return (int64_t{tile_.first()} + 2 * (lane() % 4) + j) * q.H + unit_ + lane() / 4;
  }

  int octet_, unit_;
  int pair_;           // of sums
  SharedAddress row_;  // of one gradient and sequence, in the operand
  Ring ring_;
  ThisTile tile_;
  RowSink<S, 1> sink_;   // the same row in the result
  uint32_t initial_;     // h_0 or c_0, of both sequences
  float dh_[2], dc_[2];  // of the state that the step at hand made, as far as they don't come with its output
};

template <typename Cell, typename S, typename Size>
class Backward {
  using Shape = BackwardShape<Cell, S, Size>;
  static constexpr int octets = Size::octets;
  using Q = Operands<S, BackwardArrays>;
  using Team = ClusterTeam<Size::blocks>;
  using Sums = ClusterSums<Team, Size::units / 16 * Size::octets * 32, typename Shape::Travelling>;
  using Job = BackwardJob<Cell, S, Size>;
  using ThisTile = Tile<S, BackwardArrays, octets>;
  using Fragment = Vector<uint32_t, 4>;
  static constexpr int units = Size::units, own_tiles = Shape::own_tiles, k_steps = Shape::k_steps,
                       own_jobs = Shape::own_jobs, held = Shape::held, fragments = Shape::fragments,
                       together = Shape::together;
  static constexpr int chains = own_tiles * octets == 1 ? 2 : 1;  // of sums, so that two instructions are under way
  static constexpr int operand_at = Sums::shared_bytes, weights_at = operand_at + 2 * Shape::operand_bytes,
                       rings_at = weights_at + Shape::weight_bytes;

 public:
  static constexpr int threads = Shape::threads;
  static constexpr int shared_bytes = rings_at + Shape::jobs * Job::Ring::shared_bytes;

  FUSED_RNN_DEVICE Backward(const Q& q, Team& team, unsigned char* shared)
      : q_(q),
        team_(team),
        sums_(team, shared),
        operand_(
            kept(shared_address(shared) + operand_at + (lane_ % 8 * Shape::stride + lane_ / 8 * 8) * int{sizeof(S)})),
        weights_in_shared_(at<Fragment>(shared, weights_at) + warp_ * (fragments - held) * 32 + lane_) {
    for (int i = threadIdx.x; i < 2 * Shape::operand_bytes / row_bytes; i += threads)
      at<Row<S>>(shared, operand_at)[i] = {};
    if (q.H % 2 == 0 && reinterpret_cast<uint64_t>(q.arrays.weight_hh) % 4 == 0)
      load_weights<true>();
    else
      load_weights<false>();
    FUSED_RNN_UNROLL
    for (int i = 0; i < own_jobs; ++i)
      if (has_job(i))
        jobs_[i] =
            Job(job(i), shared_address(shared) + operand_at, shared + rings_at + job(i) * Job::Ring::shared_bytes);
  }

  FUSED_RNN_DEVICE void run() {
    const int clusters = gridDim.x / Size::blocks, tiles = (q_.B + 8 * octets - 1) / (8 * octets);
    for (int index = blockIdx.x / Size::blocks; index < tiles; index += clusters) {
      team_.start([] {});
      const ThisTile tile(q_, index);
      for_jobs([&](int, Job& job) { job.begin(q_, tile.first(), tile.longest()); });
      for (int step = tile.longest() - 1; step >= 0; --step) advance(tile, step);
      if (tile.longest() > 0) {
        wait();
        for_jobs([&](int, Job& job) { job.add(sums_, tile.time(q_, 0), true); });
      }
      for_jobs([&](int, Job& job) { job.end(q_, team_.alive()); });
    }
    team_.end();
  }

 private:
  FUSED_RNN_DEVICE int job(int i) const { return i * Shape::warps + warp_; }
  FUSED_RNN_DEVICE bool has_job(int i) const { return (i + 1) * Shape::warps <= Shape::jobs || job(i) < Shape::jobs; }
  template <typename F>
  FUSED_RNN_DEVICE void for_jobs(const F& f) {
    FUSED_RNN_UNROLL
    for (int i = 0; i < own_jobs; ++i)
      if (has_job(i)) f(i, jobs_[i]);
  }

  // Of Uᵀ, a row for each output and the columns of the block's own units, gate after gate. Neighbours in a row of it
  // lie in a column of U: matrices are loaded as they lie there, and turned when all loads are under way; those for
  // shared memory a few at a time, or there would be more loads than registers. `pairs` says that every second output
  // stands at a multiple of 4 bytes.
  template <bool pairs>
  FUSED_RNN_DEVICE void load_weights() {
    for_fragments<pairs, false>([&](int at, const Fragment& f) {
      weights_in_shared_[at * 32] = turned(f);
      if (at % 8 == 7) __syncwarp();  // no load is made earlier
    });
    for_fragments<pairs, true>([&](int at, const Fragment& f) { weights_[at] = f; });
    FUSED_RNN_UNROLL
    for (int at = 0; at < held; ++at) weights_[at] = turned(weights_[at]);
  }

  // Calls f with the number and the value of each fragment in registers, or of each in shared memory.
  template <bool pairs, bool in_registers, typename F>
  FUSED_RNN_DEVICE void for_fragments(const F& f) const {
    const int unit = static_cast<int>(cluster_rank()) * units + lane_ / 4, output = 16 * tile(0) + 2 * (lane_ % 4);
    const S* from = q_.arrays.weight_hh + int64_t{unit} * q_.H + output;
    FUSED_RNN_UNROLL
    for (int s = 0; s < k_steps; ++s) {
      const int below = 16 * s % units;  // from the first unit of the block
      FUSED_RNN_UNROLL
      for (int j = 0; j < own_tiles; ++j) {
        const int at = place_of(s, j);
        if (is_held(at) != in_registers) continue;
        Fragment fragment;
        FUSED_RNN_UNROLL
        for (int i = 0; i < 4; ++i) {
          const int right = 16 * j + i % 2 * 8, down = i / 2 * 8;
          const bool exists = 16 * s / units < Cell::gates && unit + below + down < q_.H;
          const int left = exists ? q_.H - output - right : 0;
          fragment.values[i] = weight_pair<pairs>(from + down * int64_t{q_.H} + right, left);
        }
        f(in_registers ? before(at) : at - before(at), fragment);
      }
      from += (below + 16 < units ? 16 : q_.H - below) * int64_t{q_.H};
    }
  }

  FUSED_RNN_DEVICE static Fragment turned(const Fragment& f) {
    Fragment result;
    FUSED_RNN_UNROLL
    for (int i = 0; i < 4; ++i) result.values[i] = transpose_matrix(f.values[i]);
    return result;
  }

  // Fragments in the order in which they are used. Those in registers are spread evenly among them, so that others come
  // from shared memory meanwhile; so many of them are before one.
  FUSED_RNN_DEVICE static constexpr int place_of(int s, int j) {
    return (j / together * k_steps + s) * together + j % together;
  }
  FUSED_RNN_DEVICE static constexpr int before(int at) { return at * held / fragments; }
  FUSED_RNN_DEVICE static constexpr bool is_held(int at) { return before(at + 1) > before(at); }
  FUSED_RNN_DEVICE Fragment weights(int at) const {
    return is_held(at) ? weights_[before(at)] : weights_in_shared_[(at - before(at)) * 32];
  }

  FUSED_RNN_DEVICE int tile(int j) const { return warp_ * own_tiles + j; }

  // By all warps, those without jobs too, so that none runs ahead after a timeout.
  FUSED_RNN_DEVICE void wait() {
    if (!sums_.wait()) for_jobs([&](int, Job& job) { job.poison(); });
  }

  FUSED_RNN_DEVICE void advance(const ThisTile& tile, int step) {
    // apart from the wait on, so that the compiler moves what does not depend on the sums before they have come
    if (regularised_)
      make<true>(tile, step);
    else
      make<false>(tile, step);
    __syncthreads();
    multiply(step);
    if (warp_ == 0) sums_.expect();
    for_jobs([&](int, Job& job) { job.put_out(q_, step, regularised_); });
  }

  template <bool regularised>
  FUSED_RNN_DEVICE void make(const ThisTile& tile, int step) {
    typename Job::Rows rows[own_jobs];
    for_jobs([&](int i, Job& job) { rows[i] = job.load(q_); });
    if (step + 1 < tile.longest()) wait();
    for_jobs([&](int i, Job& job) { job.template make<regularised>(q_, step, rows[i], sums_); });
  }

  // Uᵀ δ, as far as it comes from the block's units. There are two operands, because some warps may still multiply when
  // all that this one waits for has come.
  FUSED_RNN_DEVICE void multiply(int step) const {
    const SharedAddress rows = operand_ + (step & 1) * Shape::operand_bytes;
    FUSED_RNN_UNROLL
    for (int first = 0; first < own_tiles; first += together) {
      float sums[chains][together][octets][4] = {};
      FUSED_RNN_UNROLL
      for (int s = 0; s < k_steps; s += 2) {
        uint32_t b[octets][4];
        FUSED_RNN_UNROLL
        for (int n = 0; n < octets; ++n) load_matrices(b[n], rows + (n * 8 * Shape::stride + s * 16) * int{sizeof(S)});
        FUSED_RNN_UNROLL
        for (int i = 0; i < 2; ++i) {
          FUSED_RNN_UNROLL
          for (int j = 0; j < together; ++j) {
            const Fragment a = weights(place_of(s + i, first + j));
            FUSED_RNN_UNROLL
            for (int n = 0; n < octets; ++n)
              mma_m16n8k16<S>(sums[i % chains][j][n], a.values, {b[n][2 * i], b[n][2 * i + 1]});
          }
        }
      }
      FUSED_RNN_UNROLL
      for (int j = 0; j < together; ++j) contribute(tile(first + j), sums[0][j], sums[chains - 1][j]);
    }
  }

  FUSED_RNN_DEVICE void contribute(int tile, const float (&a)[octets][4], const float (&b)[octets][4]) const {
    constexpr int owned = units / 16;
    FUSED_RNN_UNROLL
    for (int n = 0; n < octets; ++n) {
      float sums[4];
      FUSED_RNN_UNROLL
      for (int i = 0; i < 4; ++i) sums[i] = chains > 1 ? a[n][i] + b[n][i] : a[n][i];
      sums_.contribute(tile / owned, (tile % owned * octets + n) * 32 + lane_, sums);
    }
  }

  const Q& q_;
  const int lane_ = kept(static_cast<int>(threadIdx.x % 32)), warp_ = kept(static_cast<int>(threadIdx.x / 32));
  const bool regularised_ = q_.arrays.keep_h || q_.arrays.keep_c || q_.gradient_clip < INFINITY;
  Team& team_;
  Sums sums_;
  const SharedAddress operand_;  // two, each [sequences, Shape::stride]; from the lane's row of matrices on
  Fragment* const weights_in_shared_;
  Job jobs_[own_jobs];
  Fragment weights_[held];
};

#else

// For older architectures kernels of warps are empty; that pass of the compiler reads the host's code too.
template <typename Cell, typename S, typename Size>
struct Backward {
  static constexpr int shared_bytes = 0;
};

#endif

template <typename Cell, typename S, typename Size>
FUSED_RNN_KERNEL __launch_bounds__(BackwardShape<Cell, S, Size>::threads, 1)
    run_backward(FUSED_RNN_PARAMETER Operands<S, BackwardArrays> q) {
#if FUSED_RNN_SM90
  FUSED_RNN_DYNAMIC_SHARED(shared);
  ClusterTeam<Size::blocks> team(q.timed_out);  // not within the block: what points into itself stays in memory
  Backward<Cell, S, Size>(q, team, settled(shared)).run();
#endif
}

}  // namespace fused_rnn::cuda::cluster

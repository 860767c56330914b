// Small kernels that use all of csrc/cuda/device.h, in one source for the host shim and for nvcc. The recurrence is a
// model of the real ones. Each fault() leaves something out or puts something wrong, which the shim must report.
#pragma once

#include "../../csrc/cuda/device.h"
#include "faults.h"

namespace fused_rnn::cuda {

// y_t = x_t + W y_(t-1) over a sequence: blocks own rows of W, exchange y through global memory in two buffers that
// take turns, and wait at a barrier after each step.
struct Recurrence {
  int steps, batch, units;  // units: a multiple of the number of blocks and of 4
  const float* x;           // [steps, batch, units]
  const float* weight;      // [units, units]
  float* exchanged;         // [2, batch, units], the first zeros
  float* y;                 // [steps, batch, units]
  unsigned* arrivals;       // 0
  unsigned* failed;         // 0
};

inline size_t shared_bytes(const Recurrence& r, int blocks) {
  return sizeof(float) * (r.units / blocks + r.batch) * r.units;
}

FUSED_RNN_DEVICE bool wait_for_others(const Recurrence& r, unsigned target) {
  if (!fault("RELAXED_WAIT")) return wait_for(r.arrivals, target, r.failed);
  while (load_relaxed(r.arrivals) < target) {
  }
  return true;
}

// False if another block did not arrive in time.
FUSED_RNN_DEVICE bool grid_barrier(const Recurrence& r, unsigned target) {
  bool arrived = true;
  __syncthreads();
  if (threadIdx.x == 0 && !fault("NO_GRID_BARRIER")) {
    add_release(r.arrivals, 1);
    arrived = wait_for_others(r, target);
  }
  return __syncthreads_and(arrived);
}

FUSED_RNN_DEVICE void load_weight(const Recurrence& r, int first_unit, int own_units, float* weight) {
  for (int i = 4 * threadIdx.x; i < own_units * r.units; i += 4 * blockDim.x)
    copy_async<16>(weight + i, r.weight + first_unit * r.units + i);
  copy_async_commit();
  if (!fault("NO_COPY_WAIT")) copy_async_wait<0>();
}

FUSED_RNN_KERNEL recur(Recurrence r) {
  FUSED_RNN_DYNAMIC_SHARED(shared);
  const int own_units = r.units / gridDim.x, first_unit = blockIdx.x * own_units, size = r.batch * r.units;
  float* const weight = reinterpret_cast<float*>(shared);  // [own_units, units]
  float* const y_prev = weight + own_units * r.units;      // [batch, units]
  load_weight(r, first_unit, own_units, weight);
  for (int t = 0; t < r.steps; ++t) {
    const int turn = fault("SINGLE_BUFFER") ? 0 : t % 2;
    const float* const from = r.exchanged + turn * size;
    float* const to = r.exchanged + (fault("SINGLE_BUFFER") ? 0 : 1 - turn) * size;
    for (int i = threadIdx.x; i < size; i += blockDim.x) y_prev[i] = load_l2(from + i);
    if (threadIdx.x == 0 && fault("SHARED_OVERRUN")) y_prev[size] = 0;
    if (!fault("NO_SYNCTHREADS")) __syncthreads();
    for (int i = threadIdx.x; i < r.batch * own_units; i += blockDim.x) {
      const int b = i / own_units, j = i % own_units, place = b * r.units + first_unit + j;
      float sum = r.x[t * size + place];
      for (int k = 0; k < r.units; ++k) sum += weight[j * r.units + k] * y_prev[b * r.units + k];
      store_l2(to + place, sum);
      r.y[t * size + place] = sum;
    }
    if (!grid_barrier(r, (t + 1) * gridDim.x)) return;
  }
}

// In each step all warps but the first make numbers, which the first adds up. They pass through two buffers that take
// turns; each has a barrier for being full and one for being empty.
struct HandOver {
  int steps;
  float* sums;  // [steps, 32]
};

FUSED_RNN_KERNEL hand_over(HandOver h) {
  FUSED_RNN_DYNAMIC_SHARED(shared);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
  for (int t = 0; t < h.steps; ++t) {
    float* const buffer = reinterpret_cast<float*>(shared) + t % 2 * blockDim.x;
    const int turn = fault("ONE_NAMED_BARRIER") ? 0 : t % 2, full = 1 + turn, empty = 3 + turn;
    if (warp > 0) {
      if (t >= 2) barrier_sync(empty, blockDim.x);
      buffer[threadIdx.x] = static_cast<float>(t * 100 + warp * 10 + lane);
      barrier_arrive(full, blockDim.x);
      continue;
    }
    if (fault("NO_NAMED_WAIT"))
      barrier_arrive(full, blockDim.x);
    else
      barrier_sync(full, blockDim.x);
    float sum = 0;
    for (int w = 1; w < warps; ++w) sum += buffer[32 * w + 31 - lane];
    h.sums[32 * t + lane] = sum;
    if (t + 2 < h.steps) barrier_arrive(empty, blockDim.x);
  }
}

// c[16, 8] = a[16, depth] bᵀ[depth, 8] by one warp, with tiles of shared memory padded against bank conflicts.
template <typename S>
struct Product {
  int depth;   // a multiple of 16
  const S* a;  // [16, depth]
  const S* b;  // [8, depth]
  float* c;    // [16, 8]
};

constexpr int padding = 8;

template <int bytes, typename S>
FUSED_RNN_DEVICE void load_rows(S* to, const S* from, int rows, int depth) {
  constexpr int elements = bytes / sizeof(S);
  for (int i = elements * threadIdx.x; i < rows * depth; i += elements * blockDim.x)
    copy_async<bytes>(to + i / depth * (depth + padding) + i % depth, from + i);
  copy_async_commit();
}

template <typename S>
FUSED_RNN_KERNEL __launch_bounds__(32) multiply(Product<S> p) {
  FUSED_RNN_DYNAMIC_SHARED(shared);
  const int lane = threadIdx.x, stride = p.depth + padding;
  S* const a_rows = reinterpret_cast<S*>(shared);
  S* const b_rows = a_rows + 16 * stride;
  load_rows<4>(b_rows, p.b, 4, p.depth);
  load_rows<8>(b_rows + 4 * stride, p.b + 4 * p.depth, 4, p.depth);
  load_rows<16>(a_rows, p.a, 16, p.depth);
  copy_async_wait<1>();
  copy_async_wait<0>();
  if (!fault("NO_SYNCWARP")) __syncwarp();
  float sum[4] = {};
  FUSED_RNN_UNROLL
  for (int k = 0; k < p.depth; k += 16) {
    uint32_t a[4], b[2];
    load_matrices(a, a_rows + lane % 16 * stride + k + lane / 16 * 8);
    load_matrices(b, b_rows + lane % 8 * stride + k + lane / 8 % 2 * 8);
    mma_m16n8k16<S>(sum, a, b);
  }
  for (int i = 0; i < 4; ++i) p.c[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = sum[i];
}

// Four matrices of [8, 8] 16-bit elements, transposed in every way. in: [4, 32], out: [3, 4, 32], two elements each.
FUSED_RNN_KERNEL transpose(const uint32_t* in, uint32_t* out) {
  FUSED_RNN_DYNAMIC_SHARED(shared);
  const int lane = threadIdx.x;
  for (int i = lane; i < 4 * 32; i += 32) reinterpret_cast<uint32_t*>(shared)[i] = in[i];
  __syncwarp();
  uint32_t loaded[4], transposed[4], first[1];
  load_matrices(loaded, shared + 16 * lane);
  load_matrices_transposed(transposed, shared + 16 * lane);
  load_matrices_transposed(first, shared + 16 * lane);
  for (int m = 0; m < 4; ++m) {
    out[32 * m + lane] = transpose_matrix(loaded[m]);
    out[32 * (4 + m) + lane] = transposed[m];
    out[32 * (8 + m) + lane] = first[0];
  }
}

// out[3, threads]: tanh, 2^x and 1/x.
FUSED_RNN_KERNEL approximate(const float* in, float* out) {
  const float x = in[threadIdx.x];
  out[threadIdx.x] = approximate_tanh(x);
  out[blockDim.x + threadIdx.x] = approximate_exp2(x);
  out[2 * blockDim.x + threadIdx.x] = approximate_reciprocal(x);
}

// out[4, 32]: the message of lane 31 - l, the sum of its four or two words; as read from shared memory; and whether all
// numbers are positive. Boxes are zeros, and no number is.
FUSED_RNN_KERNEL pass_on(const float* in, Vector<float, 4>* box, Vector<float, 2>* small_box, float* out) {
  FUSED_RNN_DYNAMIC_SHARED(shared);
  const float value = in[threadIdx.x];
  reinterpret_cast<float*>(shared)[threadIdx.x] = value;
  store_message(box + threadIdx.x, Vector<float, 4>{{value, value, value, value}});
  store_message(small_box + threadIdx.x, Vector<float, 2>{{value, value}});
  const unsigned other = 31 - threadIdx.x;
  Vector<float, 4> m{};
  while (m.values[0] == 0 || m.values[1] == 0 || m.values[2] == 0 || m.values[3] == 0) m = load_message(box + other);
  Vector<float, 2> n{};
  while (n.values[0] == 0 || n.values[1] == 0) n = load_message(small_box + other);
  out[threadIdx.x] = m.values[0] + m.values[1] + m.values[2] + m.values[3];
  out[96 + threadIdx.x] = n.values[0] + n.values[1];
  out[32 + threadIdx.x] = load_shared<float>(shared_address(shared) + 4 * threadIdx.x);
  out[64 + threadIdx.x] = static_cast<float>(__all_sync(~0u, value > 0));
}

// out[4, 32]: the sum over the warp, the value of lane 5, of the lane before and of the lane two after.
FUSED_RNN_KERNEL shuffle(const float* in, float* out) {
  const float value = in[threadIdx.x];
  float sum = value;
  for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(~0u, sum, distance);
  out[threadIdx.x] = sum;
  out[32 + threadIdx.x] = __shfl_sync(~0u, value, 5);
  out[64 + threadIdx.x] = __shfl_up_sync(~0u, value, 1);
  out[96 + threadIdx.x] = __shfl_down_sync(~0u, value, 2);
}

// Copy with the loads and stores through which blocks exchange data.
template <typename T>
FUSED_RNN_KERNEL exchange(const T* from, T* to) {
  store_l2(to + threadIdx.x, load_l2(from + threadIdx.x));
}

template <typename S>
FUSED_RNN_KERNEL convert(const float* in, S* narrowed, float* widened, uint32_t* pairs) {
  const float value = in[threadIdx.x];
  narrowed[threadIdx.x] = narrow<S>(value);
  widened[threadIdx.x] = widen(narrowed[threadIdx.x]);
  pairs[threadIdx.x] = narrow_pair<S>(value, -value);
}

// The threads of a three-dimensional grid count themselves, each in a cell of its own and all together.
FUSED_RNN_KERNEL count(unsigned* own, unsigned* all, double* sum) {
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  ++own[block * blockDim.x * blockDim.y * blockDim.z + thread];
  atomicAdd(all, 1u);
  atomicAdd(sum, 0.5);
}

// All blocks but the first wait for one arrival more than there will be, after `earlier` ones.
FUSED_RNN_KERNEL wait_in_vain(unsigned earlier, unsigned* arrivals, unsigned* failed, unsigned* gave_up) {
  add_release(arrivals, 1);
  gave_up[blockIdx.x] = blockIdx.x > 0 && !wait_for(arrivals, earlier + gridDim.x + 1, failed);
}

// Hangs that the shim must report -------------------------------------------------------------------------------------

FUSED_RNN_KERNEL return_early() {
  if (threadIdx.x != 1) __syncthreads();
}

FUSED_RNN_KERNEL meet_apart() {
  if (threadIdx.x < 2)
    __syncthreads();
  else
    __syncthreads();
}

FUSED_RNN_KERNEL spin(const unsigned* never) {
  while (load_acquire(never) == 0) {
  }
}

FUSED_RNN_KERNEL arrive_twice() {
  barrier_arrive(1, 64);
  barrier_arrive(1, 64);
}

FUSED_RNN_KERNEL expect_others() { barrier_arrive(1, threadIdx.x < 32 ? 64 : 32); }

FUSED_RNN_KERNEL arrive_at_no_barrier() { barrier_arrive(16, 64); }

FUSED_RNN_KERNEL arrive_and_leave() {
  if (threadIdx.x < 32) barrier_arrive(1, 64);
}

FUSED_RNN_KERNEL load_misaligned(const float* p, float* out) {
  *out = load_l2(reinterpret_cast<const Vector<float, 4>*>(p + 1)).values[0];
}

}  // namespace fused_rnn::cuda

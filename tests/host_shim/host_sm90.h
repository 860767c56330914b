// The twins of csrc/cuda/sm90.h, which describes them, and what they ask of the shim's runtime. Part of host_shim.h.
#pragma once

#define FUSED_RNN_SM90 1

namespace host_shim {

unsigned cluster_rank();
unsigned cluster_size();
void arrive_in_cluster(bool orders_memory, Place);
void wait_in_cluster(Place);
uintptr_t address_in_block(uintptr_t address, unsigned rank, Place);
void require_live_block(uintptr_t address, const char* operation, Place);
void init_mbarrier(uintptr_t, unsigned arrivals, Place);
void expect_bytes(uintptr_t mbarrier, unsigned bytes, Place);
bool phase_has_ended(uintptr_t mbarrier, unsigned parity, bool cluster_scope, Place);
void start_store(const Store&, Place);

// The content of a barrier's memory: its users must be ordered after the thread that set it up, or ThreadSanitizer sees
// a race.
constexpr uint64_t mbarrier_mark = 0x7265697272616221;

void require_mark(bool found, const char* operation, Place);

inline void require_mbarrier(uintptr_t mbarrier, const char* operation, Place place) {
  require_mark(*reinterpret_cast<const uint64_t*>(mbarrier) == mbarrier_mark, operation, place);
}

}  // namespace host_shim

namespace fused_rnn::cuda {

inline unsigned cluster_rank() { return host_shim::cluster_rank(); }
inline unsigned cluster_size() { return host_shim::cluster_size(); }

inline void cluster_arrive(Place place = Place::here()) { host_shim::arrive_in_cluster(true, place); }
inline void cluster_arrive_relaxed(Place place = Place::here()) { host_shim::arrive_in_cluster(false, place); }
inline void cluster_wait(Place place = Place::here()) { host_shim::wait_in_cluster(place); }

inline SharedAddress address_in_block(SharedAddress address, unsigned rank, Place place = Place::here()) {
  return host_shim::address_in_block(address, rank, place);
}

inline uint32_t load_cluster(SharedAddress address, Place place = Place::here()) {
  host_shim::require_aligned(reinterpret_cast<const void*>(address), 4, "load_cluster", place);
  host_shim::require_live_block(address, "load_cluster", place);
  return *reinterpret_cast<const uint32_t*>(address);
}

inline void mbarrier_init(SharedAddress barrier, unsigned arrivals = 1, Place place = Place::here()) {
  host_shim::init_mbarrier(barrier, arrivals, place);
  *reinterpret_cast<uint64_t*>(barrier) = host_shim::mbarrier_mark;
}

inline void mbarrier_expect(SharedAddress barrier, unsigned bytes, Place place = Place::here()) {
  host_shim::require_mbarrier(barrier, "mbarrier_expect", place);
  host_shim::expect_bytes(barrier, bytes, place);
}

template <bool cluster_scope = true>
bool mbarrier_ended(SharedAddress barrier, unsigned parity, Place place = Place::here()) {
  host_shim::require_mbarrier(barrier, "mbarrier_ended", place);
  return host_shim::phase_has_ended(barrier, parity, cluster_scope, place);
}

template <typename T>
void push(SharedAddress to, SharedAddress barrier, const T& value, Place place = Place::here()) {
  static_assert(sizeof(T) == 8 || sizeof(T) == 16);
  const auto target = reinterpret_cast<unsigned char*>(to);
  host_shim::require_aligned(target, sizeof(T), "push", place);
  host_shim::require_live_block(to, "push", place);
  host_shim::require_mbarrier(barrier, "push", place);
  host_shim::Store store{
      target, barrier, sizeof(T), {}, [](const host_shim::Store& s) { memcpy(s.to, s.words, s.bytes); }};
  memcpy(store.words, &value, sizeof(T));
  host_shim::start_store(store, place);
}

template <int matrices>
void store_matrices(void* row, const uint32_t (&registers)[matrices], Place place = Place::here()) {
  using namespace host_shim;
  exchange_rows<matrices>(row, "store_matrices", place);
  for (unsigned m = 0; m < matrices; ++m) memcpy(row_of(m, lane() / 4) + 4 * (lane() % 4), &registers[m], 4);
}

template <int matrices>
void store_matrices_transposed(void* row, const uint32_t (&registers)[matrices], Place place = Place::here()) {
  using namespace host_shim;
  exchange_rows<matrices>(row, "store_matrices_transposed", place);
  for (unsigned m = 0; m < matrices; ++m) {
    for (unsigned i = 0; i < 2; ++i) {
      const auto element = static_cast<uint16_t>(registers[m] >> 16 * i);
      memcpy(row_of(m, 2 * (lane() % 4) + i) + 2 * (lane() / 4), &element, 2);
    }
  }
}

template <int matrices>
void store_matrices(SharedAddress row, const uint32_t (&registers)[matrices], Place place = Place::here()) {
  store_matrices(reinterpret_cast<void*>(row), registers, place);
}
template <int matrices>
void store_matrices_transposed(SharedAddress row, const uint32_t (&registers)[matrices], Place place = Place::here()) {
  store_matrices_transposed(reinterpret_cast<void*>(row), registers, place);
}

}  // namespace fused_rnn::cuda

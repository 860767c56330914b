// The choice of an instruction set, once per process.

#include <cstdlib>
#include <cstring>

#include "kernels.h"

namespace fused_rnn::cpu {

#define FUSED_RNN_DECLARE(isa)      \
  namespace isa {                   \
  template <typename C, typename S> \
  const Kernels<C, S>& table();     \
  }
FUSED_RNN_DECLARE(generic)
#ifdef __x86_64__
FUSED_RNN_DECLARE(avx2)
FUSED_RNN_DECLARE(avx512)
#endif
#undef FUSED_RNN_DECLARE

namespace {

enum class Isa { unknown, generic, avx2, avx512 };

bool has(Isa isa) {
#ifdef __x86_64__
  if (isa == Isa::avx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (isa == Isa::avx512)
    return has(Isa::avx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
  return isa == Isa::generic;
}

constexpr struct {
  Isa isa;
  const char* name;
} names[] = {{Isa::avx512, "avx512"}, {Isa::avx2, "avx2"}, {Isa::generic, "generic"}};

Isa choose() {
  const char* wanted = std::getenv("FUSED_RNN_CPU_ISA");
  for (const auto& [isa, name] : names)
    if (has(isa) && (!wanted || !std::strcmp(wanted, name))) return isa;
  return Isa::unknown;
}

Isa chosen() {
  static const Isa isa = choose();
  return isa;
}

}  // namespace

const char* instruction_set() {
  for (const auto& [isa, name] : names)
    if (isa == chosen()) return name;
  return nullptr;
}

template <typename C, typename S>
const Kernels<C, S>& kernels() {
#ifdef __x86_64__
  if (chosen() == Isa::avx512) return avx512::table<C, S>();
  if (chosen() == Isa::avx2) return avx2::table<C, S>();
#endif
  return generic::table<C, S>();
}

template const Kernels<float, float>& kernels();
template const Kernels<double, double>& kernels();
template const Kernels<float, BFloat16>& kernels();

}  // namespace fused_rnn::cpu

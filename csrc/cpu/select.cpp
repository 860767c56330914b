// The choice of an instruction set, once per process.

#include <cstdlib>
#include <cstring>
#include <type_traits>

#include "kernels.h"

#ifdef __x86_64__
#  include <cpuid.h>
#endif
#ifdef __linux__
#  include <sys/syscall.h>
#  include <unistd.h>
#endif

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
FUSED_RNN_DECLARE(amx)
#endif
#undef FUSED_RNN_DECLARE

namespace {

enum class Isa { unknown, generic, avx2, avx512, amx };

#ifdef __x86_64__
// Whether the processor has AMX with bfloat16 and Linux lets this process use its registers; it requires one request.
bool has_amx() {
#  ifdef __linux__
  constexpr unsigned avx512_bf16 = 1u << 5, amx_bf16 = 1u << 22, amx_tile = 1u << 24;
  constexpr int request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, and the state's component
  unsigned eax, ebx, ecx, edx;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || !(edx & amx_bf16) || !(edx & amx_tile)) return false;
  if (!__get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) || !(eax & avx512_bf16)) return false;
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#  else
  return false;
#  endif
}
#endif

bool has(Isa isa) {
#ifdef __x86_64__
  if (isa == Isa::avx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (isa == Isa::avx512)
    return has(Isa::avx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (isa == Isa::amx) return has(Isa::avx512) && has_amx();
#endif
  return isa == Isa::generic;
}

constexpr struct {
  Isa isa;
  const char* name;
} names[] = {{Isa::amx, "amx"}, {Isa::avx512, "avx512"}, {Isa::avx2, "avx2"}, {Isa::generic, "generic"}};

Isa choose() {
  const char* wanted = std::getenv("FUSED_RNN_CPU_ISA");
  for (const auto& [isa, name] : names)
    if ((!wanted || !std::strcmp(wanted, name)) && has(isa)) return isa;
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
  if constexpr (std::is_same_v<S, BFloat16>) {
    if (chosen() == Isa::amx) return amx::table<C, S>();
  }
  if (chosen() == Isa::avx512 || chosen() == Isa::amx) return avx512::table<C, S>();
  if (chosen() == Isa::avx2) return avx2::table<C, S>();
#endif
  return generic::table<C, S>();
}

template const Kernels<float, float>& kernels();
template const Kernels<double, double>& kernels();
template const Kernels<float, BFloat16>& kernels();

}  // namespace fused_rnn::cpu

// The calls of api.h, handed on to the kernels of their type.

#include "api.h"
#include "launch.h"

namespace fused_rnn::cuda {

#define FUSED_RNN_BOTH(S)                                 \
  FUSED_RNN_INSTANTIATE(extern template, ForwardCall, S); \
  FUSED_RNN_INSTANTIATE(extern template, BackwardCall, S)

FUSED_RNN_BOTH(float);
FUSED_RNN_BOTH(double);
FUSED_RNN_BOTH(BFloat16);
FUSED_RNN_BOTH(Half);

namespace {
template <typename Call>
Prepared prepare_call(const Call& call, const Chip& chip, const Division& forced) {
  const StreamLauncher launcher(chip);
  switch (call.type) {
    case Type::float32:
      return prepare_as<float>(call, chip, forced, launcher);
    case Type::float64:
      return prepare_as<double>(call, chip, forced, launcher);
    case Type::bfloat16:
      return prepare_as<BFloat16>(call, chip, forced, launcher);
    case Type::float16:
      return prepare_as<Half>(call, chip, forced, launcher);
  }
  __builtin_unreachable();
}
}  // namespace

Prepared prepare(const ForwardCall& call, const Chip& chip, const Division& forced) {
  return prepare_call(call, chip, forced);
}
Prepared prepare(const BackwardCall& call, const Chip& chip, const Division& forced) {
  return prepare_call(call, chip, forced);
}

}  // namespace fused_rnn::cuda

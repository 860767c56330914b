// The calls of api.h, handed on to the kernels of their type.

#include "api.h"
#include "launch.h"

namespace fused_rnn::cuda {

FUSED_RNN_SEQUENCES(extern template, float);
FUSED_RNN_SEQUENCES(extern template, double);
FUSED_RNN_SEQUENCES(extern template, BFloat16);
FUSED_RNN_SEQUENCES(extern template, Half);

namespace {
template <typename Call>
Planned plan_call(const Call& call, const Chip& chip, const Division& forced) {
  const StreamLauncher launcher;
  switch (call.type) {
    case Type::float32:
      return plan_as<float>(call, chip, forced, launcher);
    case Type::float64:
      return plan_as<double>(call, chip, forced, launcher);
    case Type::bfloat16:
      return plan_as<BFloat16>(call, chip, forced, launcher);
    case Type::float16:
      return plan_as<Half>(call, chip, forced, launcher);
  }
  __builtin_unreachable();
}
}  // namespace

Planned plan(const ForwardCall& call, const Chip& chip, const Division& forced) {
  return plan_call(call, chip, forced);
}
Planned plan(const BackwardCall& call, const Chip& chip, const Division& forced) {
  return plan_call(call, chip, forced);
}

}  // namespace fused_rnn::cuda

// The calls of api.h, handed on to the kernels of their type.

#include "api.h"
#include "launch.h"

namespace fused_rnn::cuda {

FUSED_RNN_SEQUENCES(extern template, float);
FUSED_RNN_SEQUENCES(extern template, double);
FUSED_RNN_SEQUENCES(extern template, BFloat16);
FUSED_RNN_SEQUENCES(extern template, Half);

namespace {
template <typename F>
auto dispatch_type(Type type, const F& f) {
  switch (type) {
    case Type::float32:
      return f(float());
    case Type::float64:
      return f(double());
    case Type::bfloat16:
      return f(BFloat16());
    case Type::float16:
      return f(Half());
  }
  __builtin_unreachable();
}

template <typename Call>
int64_t bytes(const Call& call, const Chip& chip) {
  return dispatch_type(call.type, [&](auto value) { return workspace_bytes_as<decltype(value)>(call, chip); });
}

template <typename Call>
std::string launch(const Call& call, const Chip& chip, void* workspace, void* stream) {
  StreamLauncher launcher(stream);
  return dispatch_type(call.type, [&](auto value) { return run_as<decltype(value)>(call, chip, workspace, launcher); });
}

}  // namespace

int64_t workspace_bytes(const ForwardCall& call, const Chip& chip) { return bytes(call, chip); }
int64_t workspace_bytes(const BackwardCall& call, const Chip& chip) { return bytes(call, chip); }

std::string run(const ForwardCall& call, const Chip& chip, void* workspace, void* stream) {
  return launch(call, chip, workspace, stream);
}
std::string run(const BackwardCall& call, const Chip& chip, void* workspace, void* stream) {
  return launch(call, chip, workspace, stream);
}

}  // namespace fused_rnn::cuda

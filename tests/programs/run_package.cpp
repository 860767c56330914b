// Runs a package that AOTInductor made of a module, with the operators of fused_rnn/_C.so and without Python:
//
//     run_package fused_rnn/_C.so module.pt2 T B I < input > results
//
// The input is T·B·I floats, then B lengths, int64; the results are those of the module, one after the other, floats.

#include <ATen/ops/empty.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <cstdio>
#include <cstdlib>

namespace {

at::Tensor from_input(at::IntArrayRef sizes, at::ScalarType type) {
  const at::Tensor tensor = at::empty(sizes, type);
  if (std::fread(tensor.mutable_data_ptr(), 1, tensor.nbytes(), stdin) != tensor.nbytes()) std::exit(2);
  return tensor;
}

}  // namespace

int main(int, char** arguments) {
  if (!dlopen(arguments[1], RTLD_NOW)) {  // which registers the operators
    std::fprintf(stderr, "%s\n", dlerror());
    return 1;
  }
  torch::inductor::AOTIModelPackageLoader module(arguments[2]);
  const int64_t T = std::atoi(arguments[3]), B = std::atoi(arguments[4]), I = std::atoi(arguments[5]);
  const at::Tensor input = from_input({T, B, I}, at::kFloat), lengths = from_input({B}, at::kLong);
  for (const at::Tensor& result : module.run({input, lengths})) {
    const at::Tensor flat = result.contiguous();
    std::fwrite(flat.const_data_ptr(), 1, flat.nbytes(), stdout);
  }
}

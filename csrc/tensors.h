// Uninitialised tensors for results and workspaces. They are made through the C interface, because
// torch::stable::new_empty looks its operator up by name in every call, which is noticeable in single steps.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <initializer_list>

namespace fused_rnn {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Allocate a contiguous tensor of one to three dimensions; type and device are numbers of the C interface.
inline Tensor empty(std::initializer_list<int64_t> shape, int32_t type, int32_t device, int32_t index) {
  const auto dimensions = static_cast<int64_t>(shape.size());
  int64_t strides[3] = {1, 1, 1};
  for (int64_t i = dimensions - 2; i >= 0; --i)
    strides[i] = strides[i + 1] * std::max<int64_t>(1, shape.begin()[i + 1]);
  AtenTensorHandle tensor = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(dimensions, shape.begin(), strides, type, device, index, &tensor));
  return Tensor(tensor);
}

// Allocate a tensor on the device of `like`.
inline Tensor empty_beside(const Tensor& like, std::initializer_list<int64_t> shape, int32_t type) {
  int32_t device = 0, index = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &index));
  return empty(shape, type, device, index);
}

// Allocate a tensor on the device of `like` and of its type.
inline Tensor empty_beside(const Tensor& like, std::initializer_list<int64_t> shape) {
  int32_t type = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &type));
  return empty_beside(like, shape, type);
}

}  // namespace fused_rnn

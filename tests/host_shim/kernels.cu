// The small kernels of kernels.h for nvcc: every template once for each of its types.

#include "cluster_kernels.h"
#include "kernels.h"

namespace fused_rnn::cuda {

template __global__ void multiply(Product<BFloat16>);
template __global__ void multiply(Product<Half>);
template __global__ void exchange(const Half*, Half*);
template __global__ void exchange(const float*, float*);
template __global__ void exchange(const double*, double*);
template __global__ void exchange(const Vector<BFloat16, 8>*, Vector<BFloat16, 8>*);
template __global__ void convert(const float*, BFloat16*, float*, uint32_t*);
template __global__ void convert(const float*, Half*, float*, uint32_t*);

template __global__ void gather(Gathering<2>);
template __global__ void gather(Gathering<4>);

}  // namespace fused_rnn::cuda

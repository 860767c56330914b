// The CPU kernels for the AVX-512 instructions.
#define FUSED_RNN_ISA avx512
#include "kernels.inc"

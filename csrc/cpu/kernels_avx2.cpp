// The CPU kernels for the AVX2 and FMA instructions.
#define FUSED_RNN_ISA avx2
#include "kernels.inc"

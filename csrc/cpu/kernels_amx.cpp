// The CPU kernels of bfloat16 for AMX, and AVX-512 beside it.
#define FUSED_RNN_ISA amx
#include "kernels.inc"

// The CPU kernels for the compiler's default instruction set.
#define FUSED_RNN_ISA generic
#include "kernels.inc"

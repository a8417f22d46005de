#define LOWBIT_ISA avx2
#include "torch_layer_norm.inl"

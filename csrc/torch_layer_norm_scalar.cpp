#define LOWBIT_ISA scalar
#include "torch_layer_norm.inl"

#define LOWBIT_ISA scalar
#include "floats_scalar.inl"

#include "attention_float32.inl"

#define LOWBIT_ISA avx512
#include "floats_avx512.inl"

#include "attention_float32.inl"

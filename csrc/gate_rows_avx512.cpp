#define LOWBIT_ISA avx512
#include "floats_avx512.inl"

#include "gate_rows.inl"

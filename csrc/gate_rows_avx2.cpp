#define LOWBIT_ISA avx2
#include "floats_avx2.inl"

#include "gate_rows.inl"

#define LOWBIT_ISA scalar
#include "floats_scalar.inl"

#include "gate_rows.inl"

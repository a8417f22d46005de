#define LOWBIT_ISA scalar
#include "floats_scalar.inl"

#include "normalize_rows.inl"

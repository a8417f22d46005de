#define LOWBIT_ISA avx2
#include "quantize_rows.inl"

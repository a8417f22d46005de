#define LOWBIT_ISA avx512
#include "quantize_rows.inl"

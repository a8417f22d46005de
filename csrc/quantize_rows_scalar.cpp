#define LOWBIT_ISA scalar
#include "quantize_rows.inl"

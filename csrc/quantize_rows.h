// Dynamic quantization of activations to int8, one scale per group of a row.
//
//   a     = max |x|                    over the group
//   scale = a / 127,  inv = 127 / a    float32 divisions
//   code  = rint(x * inv)              float32 product, ties to even
//
// A group with a < 2^-100 gets scale 1 and codes 0; one with a NaN or an infinity gets scale NaN
// and codes 0, so that the output is NaN. All targets give the same bits.
#pragma once

#include <cstdint>

#include "target.h"

namespace lowbit {

struct QuantizeRows {
  const float* x;  // [rows, cols]
  int8_t* codes;   // [rows, cols]
  float* scales;   // [rows, ceil(cols / group_size)]
  int64_t rows, cols;
  int64_t group_size;  // >= 1; the last group of a row may be shorter
};

namespace scalar {
void quantize_rows(const QuantizeRows&);
}
namespace avx2 {
void quantize_rows(const QuantizeRows&);
}
namespace avx512 {
void quantize_rows(const QuantizeRows&);
}

inline constexpr Target<void(const QuantizeRows&)> quantize_rows_targets[] = {
    {"scalar", "scalar", scalar::quantize_rows},
#ifdef LOWBIT_HAS_AVX2
    {"avx2", "avx2", avx2::quantize_rows},
#endif
#ifdef LOWBIT_HAS_AVX512
    {"avx512", "avx512", avx512::quantize_rows},
#endif
};

}  // namespace lowbit

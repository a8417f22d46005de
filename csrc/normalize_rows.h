// LayerNorm, or RMSNorm, of rows:
//
//   s = x + residual
//   y = weight (s - mean) / sqrt(mean((s - mean)^2) + epsilon) + bias
//
// RMSNorm, without the mean, if not `centered`. All targets give the same bits: sums over a row
// have the order of floats.inl; each other operation rounds once, the last two together.
#pragma once

#include <cstdint>

#include "target.h"

namespace lowbit {

struct NormalizeRows {
  const float* x;         // [rows, columns]
  const float* residual;  // the same, or null
  float* sum;             // s, or null if nobody reads it
  float* y;
  const float *weight, *bias;  // [columns], or null for ones and zeros
  int64_t rows, columns;
  float epsilon;
  bool centered;
};

namespace scalar {
void normalize_rows(const NormalizeRows& op);
}
namespace avx2 {
void normalize_rows(const NormalizeRows& op);
}
namespace avx512 {
void normalize_rows(const NormalizeRows& op);
}

inline constexpr Target<void(const NormalizeRows&)> normalize_rows_targets[] = {
    {"scalar", "scalar", scalar::normalize_rows},
#ifdef LOWBIT_HAS_AVX2
    {"avx2", "avx2", avx2::normalize_rows},
#endif
#ifdef LOWBIT_HAS_AVX512
    {"avx512", "avx512", avx512::normalize_rows},
#endif
};

}  // namespace lowbit

// y = f(a) b, elementwise, or f(a): the nonlinearity of a feed-forward layer, with or without gate.
#pragma once

#include <cstdint>

#include "linear.h"
#include "target.h"

namespace lowbit {

struct GateRows {
  const float *a, *b;  // [rows, columns], rows `a_step` and `b_step` apart; b may be null
  float* y;            // [rows, columns]
  int64_t rows, columns, a_step, b_step;
  Nonlinearity nonlinearity;
};

namespace scalar {
void gate_rows(const GateRows& op);
}
namespace avx2 {
void gate_rows(const GateRows& op);
}
namespace avx512 {
void gate_rows(const GateRows& op);
}

inline constexpr Target<void(const GateRows&)> gate_rows_targets[] = {
    {"scalar", "scalar", scalar::gate_rows},
#ifdef LOWBIT_HAS_AVX2
    {"avx2", "avx2", avx2::gate_rows},
#endif
#ifdef LOWBIT_HAS_AVX512
    {"avx512", "avx512", avx512::gate_rows},
#endif
};

}  // namespace lowbit

// y = f(a) b, number by number: what follows the first product of a gated feed-forward layer, whose
// halves are a and b.
#pragma once

#include <cstdint>

#include "linear.h"
#include "path.h"

namespace lowbit {

struct GateRows {
  const float *a, *b;  // [rows, columns], rows `step` apart
  float* y;            // [rows, columns]
  int64_t rows, columns, step;
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

inline constexpr Path<void(const GateRows&)> gate_rows_paths[] = {
    {"scalar", "scalar", scalar::gate_rows},
#ifdef LOWBIT_HAS_AVX2
    {"avx2", "avx2", avx2::gate_rows},
#endif
#ifdef LOWBIT_HAS_AVX512
    {"avx512", "avx512", avx512::gate_rows},
#endif
};

}  // namespace lowbit

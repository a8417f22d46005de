// The loop behind gate_rows.h. The including file defines the Isa and names it in LOWBIT_ISA
// (floats.inl).
//
// Nothing from the standard library is called here (see quantize_rows.inl).

#include "floats.inl"
#include "gate_rows.h"
#include "nonlinearity.inl"
#include "parallel.h"

namespace lowbit::LOWBIT_ISA {

void gate_rows(const GateRows& op) {
  constexpr int64_t numbers_per_thread = 8192;  // fewer are done sooner by one thread alone
  const int64_t grain = 1 + numbers_per_thread / (op.columns + 1), n = op.columns;
  parallel_for(0, op.rows, grain, [&](int64_t first, int64_t last) {
    alignas(64) float part[64];
    for (int64_t row = first; row < last; ++row) {
      const float* a = op.a + row * op.a_step;
      const float* b = op.b ? op.b + row * op.b_step : nullptr;
      float* y = op.y + row * n;
      for (int64_t at = 0; at < n; at += 64) {
        const int64_t left = n - at < 64 ? n - at : 64;
        for (int64_t i = 0; i < 64; i += lanes) put(part + i, Isa::load(a + at + i, left - i));
        apply(op.nonlinearity, part, 1, 64, 64);
        for (int64_t i = 0; i < left; i += lanes) {
          const Number f = whole(part + i);
          Isa::store(y + at + i, b ? f * Isa::load(b + at + i, left - i) : f, left - i);
        }
      }
    }
  });
}

}  // namespace lowbit::LOWBIT_ISA

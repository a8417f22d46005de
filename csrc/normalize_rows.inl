// The loop behind normalize_rows.h. The including file defines the Isa and names it in LOWBIT_ISA
// (floats.inl).
//
// Nothing from the standard library is called here (see quantize_rows.inl).

#include "floats.inl"
#include "normalize_rows.h"
#include "parallel.h"

namespace lowbit::LOWBIT_ISA {
namespace {

// One row; y holds s in between.
void normalize_row(const NormalizeRows& op, int64_t row) {
  const int64_t n = op.columns, at = row * n;
  float* y = op.y + at;
  Sum16 total;
  for (int64_t i = 0; i < n; i += lanes) {
    Number s = Isa::load(op.x + at + i, n - i);
    if (op.residual) s += Isa::load(op.residual + at + i, n - i);
    if (op.sum) Isa::store(op.sum + at + i, s, n - i);
    Isa::store(y + i, s, n - i);
    if (op.centered) total.add(i, s);
  }
  const float count = static_cast<float>(n);
  const Number mean = broadcast(op.centered ? total.total() / count : 0.0f);
  Sum16 squares;
  for (int64_t i = 0; i < n; i += lanes) {
    const Number d = Isa::load(y + i, n - i) - mean;
    Isa::store(y + i, d, n - i);
    const Number there = Isa::load(y + i, n - i);  // zeros beyond the last
    squares.add(i, there * there);
  }
  const Number inverse = broadcast(1.0f / __builtin_sqrtf(squares.total() / count + op.epsilon));
  for (int64_t i = 0; i < n; i += lanes) {
    Number d = Isa::load(y + i, n - i) * inverse;
    if (op.weight && op.bias) {
      d = Isa::fma(d, Isa::load(op.weight + i, n - i), Isa::load(op.bias + i, n - i));
    } else if (op.weight) {
      d *= Isa::load(op.weight + i, n - i);
    } else if (op.bias) {
      d += Isa::load(op.bias + i, n - i);
    }
    Isa::store(y + i, d, n - i);
  }
}

}  // namespace

void normalize_rows(const NormalizeRows& op) {
  constexpr int64_t numbers_per_thread = 16384;  // fewer are done sooner by one thread alone
  const int64_t grain = 1 + numbers_per_thread / (op.columns + 1);
  parallel_for(0, op.rows, grain, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) normalize_row(op, row);
  });
}

}  // namespace lowbit::LOWBIT_ISA

// Elementwise operations on a few thousand numbers, one after the other in one call: each does so
// little that starting it by itself, from Python, takes longer.
//
// All round as IEEE 754 says, once per operation, so that results have torch's bits.
#pragma once

#include <cstdint>

namespace lowbit {

enum class ElementwiseOp {
  add,           // a + b
  multiply,      // a b
  negate,        // -a
  copy,          // a
  inverse_root,  // 1 / sqrt(a)
};

// y[i][j][k][l] of some numbers at any distance from each other. Memory of y is not that of a or b.
struct Elementwise {
  static constexpr int dimensions = 4;

  ElementwiseOp op;
  float* y;
  const float *a, *b;  // b is read where there is a second operand
  int64_t sizes[dimensions], y_steps[dimensions], a_steps[dimensions], b_steps[dimensions];
};

void elementwise(const Elementwise& op);

}  // namespace lowbit

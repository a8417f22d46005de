// Several elementwise operations on a few thousand numbers in one call: a call from Python takes
// longer than one such operation.
//
// Each operation rounds once, by IEEE 754, so that results have torch's bits.
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

// y[i][j][k][l] with any steps. The memory of y must not overlap a or b.
struct Elementwise {
  static constexpr int dimensions = 4;

  ElementwiseOp op;
  float* y;
  const float *a, *b;  // b is read where there is a second operand
  int64_t sizes[dimensions], y_steps[dimensions], a_steps[dimensions], b_steps[dimensions];
};

void elementwise(const Elementwise& op);

}  // namespace lowbit

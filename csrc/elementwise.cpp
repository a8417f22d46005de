#include "elementwise.h"

#include <cmath>

namespace lowbit {
namespace {

// The last dimension. Where numbers are side by side, or one is for all, the compiler vectorizes.
template <class F>
void row(const Elementwise& op, float* __restrict y, const float* __restrict a,
         const float* __restrict b, F f) {
  constexpr int last = Elementwise::dimensions - 1;
  const int64_t n = op.sizes[last];
  const int64_t y_step = op.y_steps[last], a_step = op.a_steps[last], b_step = op.b_steps[last];
  if (y_step == 1 && a_step == 1 && b_step == 1) {
    for (int64_t i = 0; i < n; ++i) y[i] = f(a[i], b[i]);
  } else if (y_step == 1 && a_step == 1 && b_step == 0) {
    const float same = *b;
    for (int64_t i = 0; i < n; ++i) y[i] = f(a[i], same);
  } else {
    for (int64_t i = 0; i < n; ++i) y[i * y_step] = f(a[i * a_step], b[i * b_step]);
  }
}

template <class F>
void each(const Elementwise& op, F f) {
  const auto at = [](const int64_t (&steps)[Elementwise::dimensions], int64_t i, int64_t j,
                     int64_t k) { return i * steps[0] + j * steps[1] + k * steps[2]; };
  for (int64_t i = 0; i < op.sizes[0]; ++i) {
    for (int64_t j = 0; j < op.sizes[1]; ++j) {
      for (int64_t k = 0; k < op.sizes[2]; ++k) {
        row(op, op.y + at(op.y_steps, i, j, k), op.a + at(op.a_steps, i, j, k),
            op.b + at(op.b_steps, i, j, k), f);
      }
    }
  }
}

}  // namespace

void elementwise(const Elementwise& op) {
  switch (op.op) {
    case ElementwiseOp::add: return each(op, [](float a, float b) { return a + b; });
    case ElementwiseOp::multiply: return each(op, [](float a, float b) { return a * b; });
    case ElementwiseOp::negate: return each(op, [](float a, float) { return -a; });
    case ElementwiseOp::copy: return each(op, [](float a, float) { return a; });
    case ElementwiseOp::inverse_root:
      return each(op, [](float a, float) { return 1.0f / std::sqrt(a); });
  }
}

}  // namespace lowbit

#include "elementwise.h"

#include <cmath>
#include <cstdio>
#include <vector>

#include "tests/check.h"
#include "tests/random.h"

namespace {

constexpr int dimensions = lowbit::Elementwise::dimensions;

// Steps over as many numbers as `sizes` has and some more; 0 here and there, if that may be.
std::vector<float> spread(const int64_t (&sizes)[dimensions], bool repeats,
                          int64_t (&steps)[dimensions]) {
  int64_t next = 1 + below(2);
  for (int d = dimensions - 1; d >= 0; --d) {
    steps[d] = repeats && below(4) == 0 ? 0 : next;
    next = steps[d] ? next * sizes[d] + below(3) : next;
  }
  int64_t last = 0;
  for (int d = 0; d < dimensions; ++d) last += (sizes[d] - 1) * steps[d];
  std::vector<float> numbers(last + 1);
  for (float& x : numbers) x = normal();
  return numbers;
}

float expected(lowbit::ElementwiseOp op, float a, float b) {
  switch (op) {
    case lowbit::ElementwiseOp::add: return a + b;
    case lowbit::ElementwiseOp::multiply: return a * b;
    case lowbit::ElementwiseOp::negate: return -a;
    case lowbit::ElementwiseOp::copy: return a;
    default: return 1.0f / std::sqrt(a);
  }
}

}  // namespace

void test_elementwise() {
  for (int round = 0; round < 2000; ++round) {
    lowbit::Elementwise op{};
    op.op = static_cast<lowbit::ElementwiseOp>(below(5));
    for (int64_t& size : op.sizes) size = 1 + below(round % 9 ? 6 : 40);
    std::vector<float> y = spread(op.sizes, false, op.y_steps);
    const std::vector<float> a = spread(op.sizes, true, op.a_steps);
    const std::vector<float> b = spread(op.sizes, true, op.b_steps);
    std::vector<float> wanted = y;
    op.y = y.data();
    op.a = a.data();
    op.b = b.data();
    for (int64_t i = 0; i < op.sizes[0] * op.sizes[1] * op.sizes[2] * op.sizes[3]; ++i) {
      int64_t left = i, at_y = 0, at_a = 0, at_b = 0;
      for (int d = dimensions - 1; d >= 0; --d, left /= op.sizes[d + 1]) {
        at_y += left % op.sizes[d] * op.y_steps[d];
        at_a += left % op.sizes[d] * op.a_steps[d];
        at_b += left % op.sizes[d] * op.b_steps[d];
      }
      wanted[at_y] = expected(op.op, a[at_a], b[at_b]);
    }
    lowbit::elementwise(op);
    for (size_t i = 0; i < y.size(); ++i) {
      CHECK(y[i] == wanted[i] || (std::isnan(y[i]) && std::isnan(wanted[i])));
    }
  }
  std::printf("elementwise: ok\n");
}

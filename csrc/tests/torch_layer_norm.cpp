#include "torch_layer_norm.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <vector>

#include "tests/check.h"
#include "tests/random.h"
#include "tests/walled.h"

namespace {

// In float64. `size` is the largest of the numbers that are added.
double expected(const lowbit::TorchLayerNorm& op, int64_t row, int64_t column, double& size) {
  const float* x = op.x + row * op.columns;
  double mean = 0, variance = 0, most = 0;
  for (int64_t i = 0; i < op.columns; ++i) mean += x[i] / static_cast<double>(op.columns);
  for (int64_t i = 0; i < op.columns; ++i) {
    variance += (x[i] - mean) * (x[i] - mean) / static_cast<double>(op.columns);
    most = std::max<double>(most, std::fabs(x[i]));
  }
  const double inverse = 1 / std::sqrt(variance + op.epsilon);
  size = most * inverse * std::fabs(op.weight[column]) + std::fabs(op.bias[column]);
  return (x[column] - mean) * inverse * op.weight[column] + op.bias[column];
}

}  // namespace

void test_torch_layer_norm() {
  for (int round = 0; round < 400; ++round) {
    lowbit::TorchLayerNorm op{};
    op.rows = 1 + below(3);
    op.columns = 1 + below(round % 10 ? 300 : 5000);
    op.epsilon = 1e-5f;
    const int64_t size = op.rows * op.columns, bytes = 4 * op.columns;
    const Walled x(4 * size), weight(bytes), bias(bytes);
    for (const Walled* numbers : {&x, &weight, &bias}) {
      float* data = reinterpret_cast<float*>(numbers->data());
      for (int64_t i = 0; i < numbers->bytes() / 4; ++i) data[i] = normal();
    }
    op.x = reinterpret_cast<const float*>(x.data());
    op.weight = reinterpret_cast<const float*>(weight.data());
    op.bias = reinterpret_cast<const float*>(bias.data());
    std::vector<float> first;
    for (const auto& target : lowbit::torch_layer_norm_targets) {
      if (!lowbit::has_feature(target.feature)) continue;
      const Walled y(4 * size);
      op.y = reinterpret_cast<float*>(y.data());
      target.run(op);
      if (first.empty()) first.assign(op.y, op.y + size);
      CHECK(std::equal(first.begin(), first.end(), op.y));
    }
    for (int64_t i = 0; i < size; ++i) {
      double most = 0;
      const double wanted = expected(op, i / op.columns, i % op.columns, most);
      CHECK(std::fabs(first[i] - wanted) <= 64 * 0x1p-24 * most);
    }
  }
  std::printf("torch_layer_norm: ok\n");
}

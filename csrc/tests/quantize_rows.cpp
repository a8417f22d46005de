#include "quantize_rows.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>
#include <limits>
#include <random>
#include <vector>

#include "tests/check.h"

namespace {

struct Output {
  std::vector<int8_t> codes;
  std::vector<float> scales;

  // Scales are compared as bits, since NaN is an answer.
  bool operator==(const Output& other) const {
    const auto same = [](float a, float b) { return std::memcmp(&a, &b, sizeof a) == 0; };
    return codes == other.codes &&
           std::equal(scales.begin(), scales.end(), other.scales.begin(), other.scales.end(), same);
  }
};

template <class Run>
Output quantize(Run run, const std::vector<float>& x, int64_t rows, int64_t cols,
                int64_t group_size) {
  const int64_t groups = (cols + group_size - 1) / group_size;
  Output out{std::vector<int8_t>(rows * cols), std::vector<float>(rows * groups)};
  run({.x = x.data(),
       .codes = out.codes.data(),
       .scales = out.scales.data(),
       .rows = rows,
       .cols = cols,
       .group_size = group_size});
  return out;
}

void one_value_at_a_time(const lowbit::QuantizeRows& op) {
  float* scale = op.scales;
  for (int64_t row = 0; row < op.rows; ++row) {
    for (int64_t start = 0; start < op.cols; start += op.group_size) {
      const int64_t end = std::min(op.cols, start + op.group_size);
      float a = 0;
      bool finite = true;
      for (int64_t i = start; i < end; ++i) {
        finite &= std::isfinite(op.x[row * op.cols + i]);
        a = std::fmax(a, std::fabs(op.x[row * op.cols + i]));
      }
      const bool usable = finite && a >= 0x1p-100f;
      for (int64_t i = row * op.cols + start; i < row * op.cols + end; ++i) {
        op.codes[i] = usable ? static_cast<int8_t>(std::nearbyint(op.x[i] * (127.0f / a))) : 0;
      }
      *scale++ = usable ? a / 127.0f : finite ? 1.0f : std::nanf("");
    }
  }
}

}  // namespace

void test_quantize_rows() {
  std::mt19937 random(0);
  std::normal_distribution<float> normal;
  using limits = std::numeric_limits<float>;
  const float special[] = {0.0f,
                           -0.0f,
                           1e-40f,
                           -0x1p-101f,
                           0x1p-100f,
                           limits::max(),
                           -limits::infinity(),
                           limits::quiet_NaN()};
  const auto below = [&](int64_t n) {
    return std::uniform_int_distribution<int64_t>(0, n - 1)(random);
  };

  for (int round = 0; round < 3000; ++round) {
    const int64_t rows = below(9), cols = below(round % 10 ? 200 : 4000);
    const int64_t group_size = 1 + below(260);
    std::vector<float> x(rows * cols);
    const float spread = round % 3 ? 1.0f : 0x1p-102f;  // a third lies about the smallest step
    for (float& v : x) {
      v = below(100) ? spread * normal(random) : special[below(std::size(special))];
    }
    const Output wanted = quantize(one_value_at_a_time, x, rows, cols, group_size);
    for (const auto& target : lowbit::quantize_rows_targets) {
      if (!lowbit::has_feature(target.feature)) continue;
      CHECK(quantize(target.run, x, rows, cols, group_size) == wanted);
    }
  }
  for (const auto& target : lowbit::quantize_rows_targets) {
    std::printf("quantize_rows %s: %s\n", target.name.data(),
                lowbit::has_feature(target.feature) ? "ok" : "skipped, this processor lacks it");
  }
}

#include "linear_int8.h"

#include <cmath>
#include <random>
#include <vector>

#include "quantize_rows.h"
#include "tests/check.h"

namespace {

struct Case {
  int64_t rows, inputs, outputs;
  std::vector<float> x, scale, bias;
  std::vector<uint8_t> codes, zero_point;  // canonical, [outputs, inputs]
};

std::vector<uint8_t> interleaved(const Case& c) {
  const int64_t panels = (c.outputs + 15) / 16, steps = (c.inputs + 3) / 4;
  // What pads the codes must not matter.
  std::vector<uint8_t> packed(panels * steps * 64, 0xab);
  for (int64_t n = 0; n < c.outputs; ++n) {
    for (int64_t k = 0; k < c.inputs; ++k) {
      packed[((n / 16 * steps + k / 4) * 16 + n % 16) * 4 + k % 4] = c.codes[n * c.inputs + k];
    }
  }
  return packed;
}

std::vector<float> expected(const Case& c, bool with_bias, bool with_zero_point) {
  std::vector<int8_t> cx(c.rows * c.inputs);
  std::vector<float> sx(c.rows), y(c.rows * c.outputs);
  lowbit::scalar::quantize_rows({c.x.data(), cx.data(), sx.data(), c.rows, c.inputs, c.inputs});
  for (int64_t m = 0; m < c.rows; ++m) {
    for (int64_t n = 0; n < c.outputs; ++n) {
      int32_t sum = 0;
      const int32_t z = with_zero_point ? c.zero_point[n] : 128;
      for (int64_t k = 0; k < c.inputs; ++k) {
        sum += cx[m * c.inputs + k] * (c.codes[n * c.inputs + k] - z);
      }
      y[m * c.outputs + n] =
          static_cast<float>(sum) * (sx[m] * c.scale[n]) + (with_bias ? c.bias[n] : 0.0f);
    }
  }
  return y;
}

}  // namespace

void test_linear_int8() {
  std::mt19937 random(0);
  std::normal_distribution<float> normal;
  const auto below = [&](int64_t n) {
    return std::uniform_int_distribution<int64_t>(0, n - 1)(random);
  };

  for (int round = 0; round < 600; ++round) {
    const int64_t size = round % 20 ? 70 : 300;
    Case c{below(size), 1 + below(size), below(size), {}, {}, {}, {}, {}};
    c.x.resize(c.rows * c.inputs);
    for (float& v : c.x) v = normal(random);
    if (c.rows && round % 4 == 0) c.x[below(c.rows) * c.inputs] = std::nanf("");
    for (int64_t n = 0; n < c.outputs; ++n) {
      c.scale.push_back(0.01f + below(100));
      c.bias.push_back(normal(random));
      c.zero_point.push_back(below(256));
    }
    c.codes.resize(c.outputs * c.inputs);
    for (uint8_t& code : c.codes) code = round % 3 ? below(256) : 255 * (round % 2);

    const bool with_bias = round % 2, with_zero_point = round % 5 == 0;
    const std::vector<float> wanted = expected(c, with_bias, with_zero_point);
    const std::vector<uint8_t> packed = interleaved(c);
    for (const auto& path : lowbit::linear_int8_paths) {
      if (!path.feature.empty() && !lowbit::has_feature(path.feature)) continue;
      std::vector<float> y(wanted.size(), -1.0f);
      path.run({c.x.data(), packed.data(), c.scale.data(),
                with_zero_point ? c.zero_point.data() : nullptr,
                with_bias ? c.bias.data() : nullptr, y.data(), c.rows, c.inputs, c.outputs, false,
                false});
      for (size_t i = 0; i < y.size(); ++i) {
        CHECK(y[i] == wanted[i] || (std::isnan(y[i]) && std::isnan(wanted[i])));
      }
    }
  }
  for (const auto& path : lowbit::linear_int8_paths) {
    const bool here = path.feature.empty() || lowbit::has_feature(path.feature);
    std::printf("linear_int8 %s: %s\n", path.name.data(),
                here ? "ok" : "skipped, this processor lacks it");
  }
}

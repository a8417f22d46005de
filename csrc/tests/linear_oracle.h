// Linear layers as plain loops, by the text of linear.h and linear_float.h.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "linear.h"
#include "quantize_rows.h"
#include "tests/check.h"
#include "tests/random.h"
#include "tests/weight.h"

// Codes of one group of one row of activations.
struct Limbs {
  int limbs;
  float scale = 1;
  std::vector<int8_t> code[4];

  Limbs(const float* x, int64_t n, int limbs) : limbs(limbs) {
    for (int d = 0; d < limbs; ++d) code[d].resize(n);
    if (limbs == 1) {
      lowbit::scalar::quantize_rows({.x = x,
                                     .codes = code[0].data(),
                                     .scales = &scale,
                                     .rows = 1,
                                     .cols = n,
                                     .group_size = n});
      return;
    }
    float largest = 0;
    for (int64_t i = 0; i < n; ++i) {
      if (!std::isfinite(x[i])) {
        scale = std::nanf("");
        return;
      }
      largest = std::max(largest, std::fabs(x[i]));
    }
    if (largest < 0x1p-90f) return;
    int exponent;
    std::frexp(largest, &exponent);  // largest < 2^exponent
    scale = std::ldexp(1.0f, exponent - 30);
    for (int64_t i = 0; i < n; ++i) {
      // Halves away from zero; a double holds the quotient exactly.
      int64_t whole = std::llround(static_cast<double>(x[i]) / scale);
      for (int d = 0; d < 4; ++d) {
        const int64_t low = ((whole + 128) % 256 + 256) % 256 - 128;
        code[d][i] = static_cast<int8_t>(low);
        whole = (whole - low) / 256;
      }
      CHECK(whole == 0);
    }
  }
};

// What linear.h says: y of so many rows of x, without a nonlinearity.
inline std::vector<float> expected(const Weight& weight, const float* x, int64_t rows, int limbs,
                                   const float* bias) {
  const lowbit::PackedLayout& form = weight.form;
  std::vector<float> y;
  for (int64_t m = 0; m < rows; ++m) {
    std::vector<Limbs> group;
    for (int64_t g = 0; g < groups_of(form); ++g) {
      group.emplace_back(x + m * form.inputs + g * form.group, inputs_of(form, g), limbs);
    }
    for (int64_t n = 0; n < form.outputs; ++n) {
      float total = 0;
      for (int d = 0; d < limbs; ++d) {
        float acc = 0;
        for (int64_t g = 0; g < groups_of(form); ++g) {
          const int8_t* c = group[g].code[d].data();
          const int* q = &weight.codes[n * form.inputs + g * form.group];
          const float sx = std::ldexp(group[g].scale, 8 * d);
          if (form.binary) {
            float part = 0;
            int32_t sum_c = 0;
            for (int64_t k = 0; k < inputs_of(form, g); ++k) sum_c += c[k];
            for (int i = 0; i < weight.planes; ++i) {
              int32_t sum = 0;
              for (int64_t k = 0; k < inputs_of(form, g); ++k) sum += q[k] >> i & 1 ? c[k] : -c[k];
              part += static_cast<float>(sum) * weight.alpha(n, g, i);
            }
            if (weight.offsets()) {
              part += static_cast<float>(sum_c) * weight.group_offset(n, g);
            }
            acc += sx * part;
          } else {
            int32_t sum = 0;
            const int z = weight.zero(n, g);
            int32_t sum_c = 0;
            for (int64_t k = 0; k < inputs_of(form, g); ++k) {
              sum += c[k] * (q[k] - z);
              sum_c += c[k];
            }
            const float scale = weight.affine_scale(n, g);
            if (weight.offsets()) {
              const float part = static_cast<float>(sum) * scale +
                                 static_cast<float>(sum_c) * weight.group_offset(n, g);
              acc += sx * part;
            } else {
              acc += sx * scale * static_cast<float>(sum);
            }
          }
        }
        total = d ? total + acc : acc;
      }
      y.push_back(total + (bias ? bias[n] : 0.0f));
    }
  }
  return y;
}

// What linear_float.h says.
inline std::vector<float> expected_by_fma(const Weight& weight, const float* x, int64_t rows,
                                          const float* bias) {
  const lowbit::PackedLayout& form = weight.form;
  std::vector<float> y;
  for (int64_t m = 0; m < rows; ++m) {
    for (int64_t n = 0; n < form.outputs; ++n) {
      float total = 0, sum[4] = {};
      const auto end_span = [&] {
        for (float& s : sum) {
          total += s;
          s = 0;
        }
      };
      int64_t padded = 0;
      for (int64_t g = 0; g < groups_of(form); ++g) {
        for (int64_t i = 0; i < divided(inputs_of(form, g), 32) * 32; ++i, ++padded) {
          if (padded > 0 && padded % 1024 == 0) end_span();
          if (i >= inputs_of(form, g)) continue;
          const int64_t k = g * form.group + i;
          sum[i % 4] = std::fma(x[m * form.inputs + k], weight.value(n, k), sum[i % 4]);
        }
      }
      end_span();
      y.push_back(total + (bias ? bias[n] : 0.0f));
    }
  }
  return y;
}

// f(x) in double; NaN if f is no member.
inline double exact(lowbit::Nonlinearity f, double x) {
  using lowbit::Nonlinearity;
  const double cubic = 2 * std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x);
  switch (f) {
    case Nonlinearity::identity: return x;
    case Nonlinearity::gelu: return x * std::erfc(-x / std::sqrt(2.0)) / 2;
    case Nonlinearity::gelu_tanh: return x / (1 + std::exp(-cubic));
    case Nonlinearity::quick_gelu: return x / (1 + std::exp(-1.702 * x));
    case Nonlinearity::relu: return x < 0 ? 0 : x;
    case Nonlinearity::silu: return x / (1 + std::exp(-x));
  }
  return std::nan("");
}

// Any member: the compiler warns if `exact` lacks one.
inline lowbit::Nonlinearity any_nonlinearity() {
  int count = 0;
  while (!std::isnan(exact(static_cast<lowbit::Nonlinearity>(count), 1))) ++count;
  return static_cast<lowbit::Nonlinearity>(below(count));
}

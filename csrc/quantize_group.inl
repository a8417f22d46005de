// The two passes over a group of activations (quantize_rows.h says what they compute), for the
// files that are compiled once per instruction set; the compiler vectorizes both.

#include <cstdint>

namespace lowbit::LOWBIT_ISA {
namespace {

int32_t bits_of(float v) {
  int32_t bits;
  __builtin_memcpy(&bits, &v, sizeof bits);
  return bits;
}

float float_of(int32_t bits) {
  float v;
  __builtin_memcpy(&v, &bits, sizeof v);
  return v;
}

struct GroupScale {
  float scale;
  float inv;  // 0 where all codes are 0
};

constexpr int32_t infinity_bits = 0x7f800000;

// The largest |x| as bits: without the sign, floats are ordered as integers are, infinity above
// every number and NaN above infinity. An integer maximum vectorizes without relaxed float rules.
int32_t largest_magnitude(const float* x, int64_t n) {
  int32_t largest = 0;
  for (int64_t i = 0; i < n; ++i) {
    const int32_t magnitude = bits_of(x[i]) & 0x7fffffff;
    largest = magnitude > largest ? magnitude : largest;
  }
  return largest;
}

GroupScale group_scale(const float* x, int64_t n) {
  const int32_t largest = largest_magnitude(x, n);
  if (largest >= infinity_bits) return {__builtin_nanf(""), 0.0f};
  const float a = float_of(largest);
  if (a < 0x1p-100f) return {1.0f, 0.0f};
  return {a / 127.0f, 127.0f / a};
}

// Adding 1.5 * 2^23 rounds to an integer, ties to even, and leaves it in the low bits.
constexpr float rounding = 0x1.8p23f;
constexpr int32_t rounding_bits = 0x4b400000;

// Returns the sum of the codes. |x * inv| is at most 127 * (1 + 2^-22), so none needs clamping.
int32_t encode(const float* x, int8_t* codes, int64_t n, float inv) {
  int32_t sum = 0;
  if (inv == 0.0f) {
    for (int64_t i = 0; i < n; ++i) codes[i] = 0;
    return sum;
  }
  for (int64_t i = 0; i < n; ++i) {
    const int32_t code = bits_of(x[i] * inv + rounding) - rounding_bits;
    codes[i] = static_cast<int8_t>(code);
    sum += code;
  }
  return sum;
}

// The scale of a group whose activations are static, which only products have: NaN still stays
// visible.
[[maybe_unused]] GroupScale static_group_scale(const float* x, int64_t n, float scale) {
  if (largest_magnitude(x, n) >= infinity_bits) return {__builtin_nanf(""), 0.0f};
  return {scale, 1.0f / scale};
}

// The same with a static scale. Clamped as floats, to integers, so that what is far out does not
// wrap around.
template <class StaticScale>
int32_t encode_static(const float* x, int8_t* codes, int64_t n, float inv,
                      const StaticScale& input) {
  int32_t sum = 0;
  if (inv == 0.0f) {
    for (int64_t i = 0; i < n; ++i) codes[i] = 0;
    return sum;
  }
  const int zero = input.zero_point;
  const auto low = static_cast<float>(input.lowest - zero), high = static_cast<float>(127 - zero);
  for (int64_t i = 0; i < n; ++i) {
    float v = x[i] * inv;
    v = v < low ? low : v;
    v = v > high ? high : v;
    const int32_t code = bits_of(v + rounding) - rounding_bits + zero;
    codes[i] = static_cast<int8_t>(code);
    sum += code;
  }
  return sum;
}

}  // namespace
}  // namespace lowbit::LOWBIT_ISA

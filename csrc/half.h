// float16 as its bits.
#pragma once

#include <cstdint>
#include <cstring>

namespace lowbit {

// Exact for every number. Uses integers, because floating-point arithmetic loses subnormal numbers
// if they are flushed to zero.
inline float float_of_half(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  uint32_t exponent = half >> 10 & 0x1f, mantissa = half & 0x3ff;
  uint32_t bits;
  if (exponent == 0x1f) {
    bits = 0x7f800000 | mantissa << 13;
  } else if (exponent != 0) {
    bits = (exponent + 112) << 23 | mantissa << 13;
  } else if (mantissa == 0) {
    bits = 0;
  } else {
    exponent = 113;
    while (!(mantissa & 0x400)) {
      mantissa <<= 1;
      --exponent;
    }
    bits = exponent << 23 | (mantissa & 0x3ff) << 13;
  }
  bits |= sign;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace lowbit

// The loop behind quantize_rows.h. The including file names its instruction set in LOWBIT_ISA and
// is compiled for it; the compiler vectorizes both passes.
//
// Nothing from the standard library is called here: an inline function compiled for AVX-512 in this
// file could be the copy that the linker keeps for every other one.

#include "parallel.h"
#include "quantize_rows.h"

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

// The largest |x| as bits: without the sign, floats are ordered as integers are, infinity above
// every number and NaN above infinity. An integer maximum vectorizes without relaxed float rules.
int32_t absmax_bits(const float* x, int64_t n) {
  int32_t largest = 0;
  for (int64_t i = 0; i < n; ++i) {
    const int32_t magnitude = bits_of(x[i]) & 0x7fffffff;
    largest = magnitude > largest ? magnitude : largest;
  }
  return largest;
}

// Adding 1.5 * 2^23 rounds to an integer, ties to even, and leaves it in the low bits, which are
// zero in the constant. |x * inv| is at most 127 * (1 + 2^-22), so no code needs clamping.
void encode(const float* x, int8_t* codes, int64_t n, float inv) {
  for (int64_t i = 0; i < n; ++i) {
    codes[i] = static_cast<int8_t>(bits_of(x[i] * inv + 0x1.8p23f));
  }
}

float quantize_group(const float* x, int8_t* codes, int64_t n) {
  const int32_t infinity_bits = 0x7f800000;
  const int32_t bits = absmax_bits(x, n);
  const float a = float_of(bits);
  if (a >= 0x1p-100f && bits < infinity_bits) {
    encode(x, codes, n, 127.0f / a);
    return a / 127.0f;
  }
  for (int64_t i = 0; i < n; ++i) codes[i] = 0;
  return bits < infinity_bits ? 1.0f : __builtin_nanf("");
}

}  // namespace

void quantize_rows(const QuantizeRows& op) {
  const int64_t groups = (op.cols + op.group_size - 1) / op.group_size;
  // Fewer values than this are quantized sooner than a second thread is woken.
  const int64_t values_per_thread = 32768;
  const int64_t grain = op.cols < values_per_thread ? values_per_thread / (op.cols + 1) + 1 : 1;
  parallel_for(0, op.rows, grain, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) {
      for (int64_t group = 0; group < groups; ++group) {
        const int64_t start = group * op.group_size;
        const int64_t left = op.cols - start;
        const int64_t at = row * op.cols + start;
        op.scales[row * groups + group] =
            quantize_group(op.x + at, op.codes + at, left < op.group_size ? left : op.group_size);
      }
    }
  });
}

}  // namespace lowbit::LOWBIT_ISA

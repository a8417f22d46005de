#include "experts_sum.h"

#include <algorithm>
#include <cstring>

#define LOWBIT_ISA any_processor
#include "bfloat16.inl"

namespace lowbit {
namespace {

using any_processor::narrow, any_processor::widen;

constexpr int64_t at_once = 64;  // numbers of a token

float weight_of(const Experts& op, int64_t pair) {
  if (!op.bfloat16_weights) return static_cast<const float*>(op.weights)[pair];
  float weight;
  widen(static_cast<const uint16_t*>(op.weights) + pair, 1, &weight);
  return weight;
}

// total += weight times n results.
void add(const float* results, float weight, int64_t n, float* total) {
  for (int64_t i = 0; i < n; ++i) total[i] += results[i] * weight;
}

void add(const uint16_t* results, float weight, bool rounded, int64_t n, float* total) {
  float wide[at_once];
  widen(results, n, wide);
  if (rounded) {
    uint16_t half[at_once];
    for (int64_t i = 0; i < n; ++i) wide[i] *= weight;
    narrow(wide, n, half);
    widen(half, n, wide);
    weight = 1.0f;
  }
  add(wide, weight, n, total);
}

}  // namespace

void sum_slots(const Experts& op, const char* results, int64_t stride, const int64_t* places,
               int64_t first, int64_t n) {
  const bool half = op.layer.bfloat16;
  const int64_t bytes = half ? 2 : 4, outputs = op.layer.form.outputs;
  for (int64_t token = 0; token < op.layer.rows; ++token) {
    char* y = static_cast<char*>(op.layer.y) + (token * outputs + first) * bytes;
    for (int64_t i = 0; i < n; i += at_once) {
      const int64_t count = std::min(at_once, n - i);
      float total[at_once] = {};
      for (int64_t pair = token * op.slots; pair < (token + 1) * op.slots; ++pair) {
        const char* from = results + (places ? places[pair] : pair) * stride + i * bytes;
        const float weight = weight_of(op, pair);
        if (half) {
          add(reinterpret_cast<const uint16_t*>(from), weight, op.bfloat16_weights, count, total);
        } else {
          add(reinterpret_cast<const float*>(from), weight, count, total);
        }
      }
      if (half) {
        narrow(total, count, reinterpret_cast<uint16_t*>(y) + i);
      } else {
        std::memcpy(y + i * bytes, total, count * bytes);
      }
    }
  }
}

}  // namespace lowbit

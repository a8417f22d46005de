// Vectors of float32 of the Isa, and sums of many whose bits do not depend on what a vector holds.
//
// The Isa's `load` and `store` take the first n numbers of a vector, none or all of them if n is
// beyond, and load zeros in the place of the others; `transpose` makes columns of the rows of a
// square; `registers` is how many vectors the processor holds.
#pragma once

#include <cstdint>

namespace lowbit::LOWBIT_ISA {
namespace {

using Number = Isa::Floats;  // as many as a vector holds

constexpr int64_t lanes = sizeof(Number) / sizeof(float);

// (x + 0 would be an addition: it makes 0 of -0.)
inline Number broadcast(float x) { return x - Number{}; }

inline Number whole(const float* x) {
  Number v;
  __builtin_memcpy(&v, x, sizeof v);
  return v;
}

inline void put(float* y, Number v) { __builtin_memcpy(y, &v, sizeof v); }

// Sums in 16 lanes, the first number in the first lane, then of the halves of these, and so on:
// the same bits whatever a vector holds.
struct Sum16 {
  static constexpr int64_t parts = 16 / lanes;
  Number sums[parts] = {};

  void add(int64_t i, Number x) { sums[i / lanes % parts] += x; }

  float total() const {
    float left[16];
    __builtin_memcpy(left, sums, sizeof left);
#pragma GCC unroll 4
    for (int64_t half = 8; half > 0; half /= 2) {
      for (int64_t i = 0; i < half; ++i) left[i] += left[i + half];
    }
    return left[0];
  }
};

}  // namespace
}  // namespace lowbit::LOWBIT_ISA

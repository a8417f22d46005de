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

// A sum in 16 lanes: number i is added to lane i % 16. Then the upper half of the lanes is added to
// the lower half until one lane is left. The order, and so the bits, are those of 16 lanes on every
// instruction set.
struct Sum16 {
  static constexpr int64_t parts = 16 / lanes;
  Number sums[parts] = {};

  void add(int64_t i, Number x) { sums[i / lanes % parts] += x; }

  float total() {
#pragma GCC unroll 2
    for (int64_t half = parts / 2; half > 0; half /= 2) {
      for (int64_t i = 0; i < half; ++i) sums[i] += sums[i + half];
    }
    float left[lanes];
    put(left, sums[0]);
#pragma GCC unroll 4
    for (int64_t half = lanes / 2; half > 0; half /= 2) {
      for (int64_t i = 0; i < half; ++i) left[i] += left[i + half];
    }
    return left[0];
  }
};

}  // namespace
}  // namespace lowbit::LOWBIT_ISA

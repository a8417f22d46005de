// Any processor, as linear.inl and linear_float.inl want it: vectors of gcc, which the compiler
// cuts into whatever there is.

#include <cstdint>

#include "half.h"

namespace lowbit::LOWBIT_ISA {
namespace {

struct Vectors128 {
  using Words = uint32_t __attribute__((vector_size(16)));
  using Ints = int32_t __attribute__((vector_size(16)));
  using Floats = float __attribute__((vector_size(16)));
  static constexpr int registers = 16, unroll = 1;

  [[gnu::noinline]] static Floats widen(const uint16_t* half) {
    Floats v;
    for (int i = 0; i < 4; ++i) v[i] = float_of_half(half[i]);
    return v;
  }

  static Ints widen(const uint8_t* bytes) { return Ints{bytes[0], bytes[1], bytes[2], bytes[3]}; }

#ifndef __FP_FAST_FMAF
  [[gnu::noinline]]  // four calls
#endif
  static Floats fma(Floats a, Floats b, Floats c) {
    for (int i = 0; i < 4; ++i) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return c;
  }
};

}  // namespace
}  // namespace lowbit::LOWBIT_ISA

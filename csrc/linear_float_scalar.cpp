// Any processor: vectors of gcc, which the compiler cuts into whatever there is.
#define LOWBIT_ISA scalar
#include "half.h"
#include "linear.h"

namespace lowbit::scalar {
namespace {

struct Isa {
  using Words = uint32_t __attribute__((vector_size(16)));
  using Ints = int32_t __attribute__((vector_size(16)));
  using Floats = float __attribute__((vector_size(16)));
  static constexpr int registers = 16;
  static constexpr int64_t macs_per_ns = 1;

  static Ints byte(Words codes, int i) { return reinterpret_cast<Ints>(codes >> 8 * i & 0xffu); }

  static Floats broadcast(const float* x) { return Floats{*x, *x, *x, *x}; }

  [[gnu::noinline]] static Floats widen(const uint16_t* half) {
    Floats v;
    for (int i = 0; i < 4; ++i) v[i] = float_of_half(half[i]);
    return v;
  }

  static Floats fma(Floats a, Floats b, Floats c) {
    for (int i = 0; i < 4; ++i) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return c;
  }
};

}  // namespace
}  // namespace lowbit::scalar

#include "linear_float.inl"

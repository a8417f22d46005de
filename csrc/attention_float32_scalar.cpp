// Any processor: vectors of gcc, which the compiler cuts into whatever there is.
#define LOWBIT_ISA scalar

#include <cstdint>

namespace lowbit::scalar {
namespace {

struct Isa {
  using Words = uint32_t __attribute__((vector_size(16)));
  using Floats = float __attribute__((vector_size(16)));
  static constexpr int registers = 16;

  static Floats load(const float* x, int64_t n) {
    if (n >= 4) return Floats{x[0], x[1], x[2], x[3]};
    return Floats{n > 0 ? x[0] : 0.0f, n > 1 ? x[1] : 0.0f, n > 2 ? x[2] : 0.0f, 0.0f};
  }

  static void store(float* y, Floats v, int64_t n) {
    for (int i = 0; i < 4; ++i) {
      if (i < n) y[i] = v[i];
    }
  }

  static Floats fma(Floats a, Floats b, Floats c) { return a * b + c; }

  static void transpose(Floats (&rows)[4]) {
    for (int i = 0; i < 4; ++i) {
      for (int j = 0; j < i; ++j) {
        const float above = rows[j][i];
        rows[j][i] = rows[i][j];
        rows[i][j] = above;
      }
    }
  }

  static float sum(Floats v) { return (v[0] + v[2]) + (v[1] + v[3]); }
};

}  // namespace
}  // namespace lowbit::scalar

#include "attention_float32.inl"

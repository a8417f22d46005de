// Any processor, as floats.inl wants it.

#include "isa_scalar.inl"

namespace lowbit::scalar {
namespace {

struct Isa : Vectors128 {
  static Floats load(const float* x, int64_t n) {
    if (n >= 4) return Floats{x[0], x[1], x[2], x[3]};
    return Floats{n > 0 ? x[0] : 0.0f, n > 1 ? x[1] : 0.0f, n > 2 ? x[2] : 0.0f, 0.0f};
  }

  static void store(float* y, Floats v, int64_t n) {
    for (int i = 0; i < 4; ++i) {
      if (i < n) y[i] = v[i];
    }
  }

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

// AVX-512, as floats.inl wants it.

#include <cstdint>

#include "intrinsics.h"
#include "transpose_avx512.inl"

namespace lowbit::avx512 {
namespace {

struct Isa {
  using Words = uint32_t __attribute__((vector_size(64)));
  using Floats = float __attribute__((vector_size(64)));
  static constexpr int registers = 32;

  static __mmask16 first(int64_t n) {
    return static_cast<__mmask16>(n >= 16 ? 0xffffu : n <= 0 ? 0u : (1u << n) - 1);
  }

  static Floats load(const float* x, int64_t n) { return _mm512_maskz_loadu_ps(first(n), x); }

  static void store(float* y, Floats v, int64_t n) { _mm512_mask_storeu_ps(y, first(n), v); }

  static Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }

  static void transpose(Floats (&rows)[16]) {
    __m512i words[16];
    for (int i = 0; i < 16; ++i) words[i] = reinterpret_cast<__m512i>(rows[i]);
    lowbit::avx512::transpose(words);
    for (int i = 0; i < 16; ++i) rows[i] = reinterpret_cast<Floats>(words[i]);
  }

  static float sum(Floats v) { return _mm512_reduce_add_ps(v); }
};

}  // namespace
}  // namespace lowbit::avx512

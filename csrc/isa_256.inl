// What AVX2 and AVX-VNNI have in common as linear.inl wants it: vectors of 32 bytes, half a step.
// attention_float32.inl takes its vectors too.

#include <cstdint>

#include "intrinsics.h"

namespace lowbit::LOWBIT_ISA {
namespace {

struct Vectors256 {
  using Words = uint32_t __attribute__((vector_size(32)));
  using Ints = int32_t __attribute__((vector_size(32)));
  using Floats = float __attribute__((vector_size(32)));
  static constexpr int registers = 16, unroll = 8;

  template <int times>
  static const int8_t* four(const int8_t* at) {
    return at;
  }

  static Floats widen(const uint16_t* half) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(half)));
  }

  static Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
};

}  // namespace
}  // namespace lowbit::LOWBIT_ISA

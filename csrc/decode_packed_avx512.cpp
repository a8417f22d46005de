#define LOWBIT_ISA avx512
#include <cstdint>

#include "intrinsics.h"

namespace lowbit::avx512 {
namespace {

struct Isa {
  using Floats = float __attribute__((vector_size(64)));

  static __m512i words(const uint8_t* codes) {
    // Masked, as gcc warns of the plain one.
    return _mm512_maskz_cvtepu8_epi32(0xffff,
                                      _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
  }

  static Floats floats(const uint8_t* codes) {
    return __builtin_convertvector(
        reinterpret_cast<int32_t __attribute__((vector_size(64)))>(words(codes)), Floats);
  }

  static float widen(uint16_t half) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(half))); }

  struct Levels {
    __m512 all;

    explicit Levels(const float (&levels)[16]) : all(_mm512_loadu_ps(levels)) {}

    Floats of(const uint8_t* codes) const {
      return _mm512_maskz_permutexvar_ps(0xffff, words(codes), all);
    }
  };
};

}  // namespace
}  // namespace lowbit::avx512

#include "decode_packed.inl"

#define LOWBIT_ISA avx2
#include <cstdint>

#include "intrinsics.h"

namespace lowbit::avx2 {
namespace {

struct Isa {
  using Floats = float __attribute__((vector_size(32)));

  static __m256i words(const uint8_t* codes) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes)));
  }

  static Floats floats(const uint8_t* codes) { return _mm256_cvtepi32_ps(words(codes)); }

  static float widen(uint16_t half) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(half))); }

  // A permutation reads 3 bits of a code; the fourth chooses between two.
  struct Levels {
    __m256 low, high;

    explicit Levels(const float (&levels)[16])
        : low(_mm256_loadu_ps(levels)), high(_mm256_loadu_ps(levels + 8)) {}

    Floats of(const uint8_t* codes) const {
      const __m256i index = words(codes);
      return _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, index),
                              _mm256_permutevar8x32_ps(high, index),
                              _mm256_castsi256_ps(_mm256_slli_epi32(index, 28)));
    }
  };
};

}  // namespace
}  // namespace lowbit::avx2

#include "decode_packed.inl"

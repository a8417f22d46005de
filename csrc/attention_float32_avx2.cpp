#define LOWBIT_ISA avx2
#include "isa_256.inl"

namespace lowbit::avx2 {
namespace {

struct Isa : Vectors256 {
  static __m256i first(int64_t n) {
    const __m256i lane = _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n < 8 ? static_cast<int>(n) : 8), lane);
  }

  static Floats load(const float* x, int64_t n) {
    return n >= 8 ? _mm256_loadu_ps(x) : _mm256_maskload_ps(x, first(n));
  }

  static void store(float* y, Floats v, int64_t n) { _mm256_maskstore_ps(y, first(n), v); }

  static float sum(Floats v) {
    __m128 four = _mm256_castps256_ps128(v) + _mm256_extractf128_ps(v, 1);
    four += _mm_movehl_ps(four, four);
    return four[0] + four[1];
  }
};

}  // namespace
}  // namespace lowbit::avx2

#include "attention_float32.inl"

// Without VNNI: u8 * s8 pairs would saturate at 16 bits in pmaddubsw, so both are widened. The codes
// of a vector are split into even and odd inputs by a mask and a shift; activations lie as
//
//   cx [rows][inputs/4][4]    int16, inputs 0 2 1 3 of a step
//
// and a 32-bit broadcast of two of them meets either half in pmaddwd.
#include <immintrin.h>

#define LOWBIT_ISA avx2
#include "linear_int8.inl"

namespace lowbit::avx2 {
namespace {

struct Block {
  static constexpr int64_t rows = 4, cols = 16, bytes_per_input = 2, macs_per_ns = 60;

  static void place(const int8_t* piece, int64_t n, int8_t* codes, int64_t padded, int64_t m,
                    int64_t k) {
    int16_t* out = reinterpret_cast<int16_t*>(codes) + m * padded + k;
    for (int64_t i = 0; i < n; i += 4) {
      out[i] = piece[i];
      out[i + 1] = piece[i + 2];
      out[i + 2] = piece[i + 1];
      out[i + 3] = piece[i + 3];
    }
  }

  static void sums(const int8_t* codes, int64_t padded, int64_t m, int64_t n, const uint8_t* w,
                   int64_t steps, int64_t, int32_t out[][cols]) {
    const int8_t* a = codes + m * padded * 2;
    switch (n) {
      case 1: return sums_of<1>(a, padded * 2, w, steps, out);
      case 2: return sums_of<2>(a, padded * 2, w, steps, out);
      case 3: return sums_of<3>(a, padded * 2, w, steps, out);
      default: return sums_of<4>(a, padded * 2, w, steps, out);
    }
  }

  static __m256i broadcast(const int8_t* pair) {
    int32_t both;
    __builtin_memcpy(&both, pair, sizeof both);
    return _mm256_set1_epi32(both);
  }

  template <int R>
  static void sums_of(const int8_t* a, int64_t stride, const uint8_t* w, int64_t steps,
                      int32_t out[][cols]) {
    __m256i acc[R][2] = {};
    const __m256i low = _mm256_set1_epi16(0xff);
    for (int64_t step = 0; step < steps; ++step) {
      __m256i even[2], odd[2];
      for (int h = 0; h < 2; ++h) {
        const auto* at = reinterpret_cast<const __m256i*>(w + step * 64 + h * 32);
        const __m256i q = _mm256_loadu_si256(at);
        even[h] = _mm256_and_si256(q, low);
        odd[h] = _mm256_srli_epi16(q, 8);
      }
      for (int r = 0; r < R; ++r) {
        const int8_t* four = a + r * stride + step * 8;
        const __m256i x02 = broadcast(four), x13 = broadcast(four + 4);
        for (int h = 0; h < 2; ++h) {
          acc[r][h] = _mm256_add_epi32(acc[r][h], _mm256_madd_epi16(even[h], x02));
          acc[r][h] = _mm256_add_epi32(acc[r][h], _mm256_madd_epi16(odd[h], x13));
        }
      }
    }
    for (int r = 0; r < R; ++r) {
      for (int h = 0; h < 2; ++h) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out[r] + h * 8), acc[r][h]);
      }
    }
  }
};

}  // namespace

void linear_int8(const LinearInt8& op) { run(op, product<Block>); }

}  // namespace lowbit::avx2

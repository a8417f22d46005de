#include <immintrin.h>

#define LOWBIT_ISA avxvnni
#include "linear_int8.inl"

namespace lowbit::avxvnni {
namespace {

struct Block {
  static constexpr int64_t rows = 6, cols = 16, bytes_per_input = 1, macs_per_ns = 120;

  static void place(const int8_t* piece, int64_t n, int8_t* codes, int64_t padded, int64_t m,
                    int64_t k) {
    __builtin_memcpy(codes + m * padded + k, piece, n);
  }

  static void sums(const int8_t* codes, int64_t padded, int64_t m, int64_t n, const uint8_t* w,
                   int64_t steps, int64_t, int32_t out[][cols]) {
    const int8_t* a = codes + m * padded;
    switch (n) {
      case 1: return sums_of<1>(a, padded, w, steps, out);
      case 2: return sums_of<2>(a, padded, w, steps, out);
      case 3: return sums_of<3>(a, padded, w, steps, out);
      case 4: return sums_of<4>(a, padded, w, steps, out);
      case 5: return sums_of<5>(a, padded, w, steps, out);
      default: return sums_of<6>(a, padded, w, steps, out);
    }
  }

  template <int R>
  static void sums_of(const int8_t* a, int64_t stride, const uint8_t* w, int64_t steps,
                      int32_t out[][cols]) {
    __m256i acc[R][2] = {};
    for (int64_t step = 0; step < steps; ++step) {
      const auto* at = reinterpret_cast<const __m256i*>(w + step * 64);
      const __m256i q0 = _mm256_loadu_si256(at), q1 = _mm256_loadu_si256(at + 1);
      for (int r = 0; r < R; ++r) {
        int32_t four;
        __builtin_memcpy(&four, a + r * stride + step * 4, sizeof four);
        const __m256i x = _mm256_set1_epi32(four);
        acc[r][0] = _mm256_dpbusd_avx_epi32(acc[r][0], q0, x);
        acc[r][1] = _mm256_dpbusd_avx_epi32(acc[r][1], q1, x);
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

}  // namespace lowbit::avxvnni

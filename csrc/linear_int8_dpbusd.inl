// The AVX-512 VNNI block of linear_int8: u8 codes of 16 output rows meet a broadcast of 4 int8
// activations. dpbusd adds four exact products to 32 bits and does not saturate.

#include <immintrin.h>

#include "linear_int8.inl"

namespace lowbit::LOWBIT_ISA {
namespace {

struct Dpbusd {
  static constexpr int64_t rows = 6, cols = 64, bytes_per_input = 1, macs_per_ns = 250;

  static void place(const int8_t* piece, int64_t n, int8_t* codes, int64_t padded, int64_t m,
                    int64_t k) {
    __builtin_memcpy(codes + m * padded + k, piece, n);
  }

  static void sums(const int8_t* codes, int64_t padded, int64_t m, int64_t n, const uint8_t* w,
                   int64_t steps, int64_t panels, int32_t out[][cols]) {
    const int8_t* a = codes + m * padded;
    switch (n) {
      case 1: return sums_of<1>(a, padded, w, steps, panels, out);
      case 2: return sums_of<2>(a, padded, w, steps, panels, out);
      case 3: return sums_of<3>(a, padded, w, steps, panels, out);
      case 4: return sums_of<4>(a, padded, w, steps, panels, out);
      case 5: return sums_of<5>(a, padded, w, steps, panels, out);
      default: return sums_of<6>(a, padded, w, steps, panels, out);
    }
  }

  template <int R>
  static void sums_of(const int8_t* a, int64_t stride, const uint8_t* w, int64_t steps,
                      int64_t panels, int32_t out[][cols]) {
    switch (panels) {
      case 1: return sums_of<R, 1>(a, stride, w, steps, out);
      case 2: return sums_of<R, 2>(a, stride, w, steps, out);
      case 3: return sums_of<R, 3>(a, stride, w, steps, out);
      default: return sums_of<R, 4>(a, stride, w, steps, out);
    }
  }

  template <int R, int P>
  static void sums_of(const int8_t* a, int64_t stride, const uint8_t* w, int64_t steps,
                      int32_t out[][cols]) {
    __m512i acc[R][P] = {};
    for (int64_t step = 0; step < steps; ++step) {
      __m512i q[P];
      for (int p = 0; p < P; ++p) q[p] = _mm512_loadu_si512(w + (p * steps + step) * 64);
      for (int r = 0; r < R; ++r) {
        int32_t four;
        __builtin_memcpy(&four, a + r * stride + step * 4, sizeof four);
        const __m512i x = _mm512_set1_epi32(four);
        for (int p = 0; p < P; ++p) acc[r][p] = _mm512_dpbusd_epi32(acc[r][p], q[p], x);
      }
    }
    for (int r = 0; r < R; ++r) {
      for (int p = 0; p < P; ++p) _mm512_storeu_si512(out[r] + p * 16, acc[r][p]);
    }
  }
};

}  // namespace
}  // namespace lowbit::LOWBIT_ISA

// 16 x 16 words in AVX-512 registers, for files that name their instruction set in LOWBIT_ISA.

#include "intrinsics.h"

namespace lowbit::LOWBIT_ISA {
namespace {

// 16 x 16 words, rows become columns.
void transpose(__m512i (&rows)[16]) {
#pragma GCC unroll 4
  for (int width = 1; width < 16; width *= 2) {
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i one = _mm512_set1_epi32(width), second = _mm512_set1_epi32(16);
    // Even blocks of both rows, and odd blocks of both; 16 and more are lanes of the second row.
    const __mmask16 odd = _mm512_test_epi32_mask(lane, one);
    const __m512i evens = _mm512_mask_add_epi32(lane, odd, _mm512_sub_epi32(lane, one), second);
    const __m512i odds = _mm512_mask_add_epi32(_mm512_add_epi32(lane, one), odd, lane, second);
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) {
      if (i & width) continue;
      const __m512i upper = rows[i], lower = rows[i + width];
      rows[i] = _mm512_permutex2var_epi32(upper, evens, lower);
      rows[i + width] = _mm512_permutex2var_epi32(upper, odds, lower);
    }
  }
}

}  // namespace
}  // namespace lowbit::LOWBIT_ISA

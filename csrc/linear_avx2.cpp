// Without VNNI: u8 * s8 pairs would saturate at 16 bits in pmaddubsw, so both are widened. Codes
// are split into even and odd inputs by a mask and a shift; activations lie as
//
//   cx [rows][inputs/4][4]    int16, inputs 0 2 1 3 of a step
//
// and a 32-bit broadcast of two of them meets either half in pmaddwd.
#define LOWBIT_ISA avx2
#include "isa_256.inl"
#include "linear.h"

namespace lowbit::avx2 {
namespace {

struct Isa : Vectors256 {
  static constexpr int64_t bytes_per_input = 2, macs_per_ns = 50;

  static void place(const int8_t* piece, int64_t n, int8_t* row, int64_t k) {
    int16_t* out = reinterpret_cast<int16_t*>(row) + k;
    for (int64_t i = 0; i < n; i += 4) {
      out[i] = piece[i];
      out[i + 1] = piece[i + 2];
      out[i + 2] = piece[i + 1];
      out[i + 3] = piece[i + 3];
    }
  }

  static __m256i broadcast(const int8_t* pair) {
    int32_t both;
    __builtin_memcpy(&both, pair, sizeof both);
    return _mm256_set1_epi32(both);
  }

  static Ints dot(Ints acc, Words codes, const int8_t* four) {
    const __m256i even = reinterpret_cast<__m256i>(codes & 0x00ff00ffu);
    const __m256i odd = _mm256_srli_epi16(reinterpret_cast<__m256i>(codes), 8);
    const __m256i even_sum = _mm256_madd_epi16(even, broadcast(four));
    const __m256i odd_sum = _mm256_madd_epi16(odd, broadcast(four + 4));
    return acc + reinterpret_cast<Ints>(even_sum) + reinterpret_cast<Ints>(odd_sum);
  }
};

}  // namespace
}  // namespace lowbit::avx2

#include "linear.inl"

namespace lowbit::avx2 {

void linear(const Linear* ops, int count) { run(ops, count, few_rows); }

void experts(const Experts& op) { run_experts(op, few_rows); }

}  // namespace lowbit::avx2

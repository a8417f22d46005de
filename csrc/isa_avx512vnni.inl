// AVX-512 VNNI as linear.inl wants it: a step is one vector.

#include <immintrin.h>

#include "linear.h"

namespace lowbit::LOWBIT_ISA {
namespace {

struct Isa {
  using Words = uint32_t __attribute__((vector_size(64)));
  using Ints = int32_t __attribute__((vector_size(64)));
  using Floats = float __attribute__((vector_size(64)));
  static constexpr int max_rows = 8, unroll = 8;
  static constexpr int64_t bytes_per_input = 1, macs_per_ns = 200;

  static void place(const int8_t* piece, int64_t n, int8_t* row, int64_t k) {
    __builtin_memcpy(row + k, piece, n);
  }

  static int32_t sum(const int8_t* piece, int64_t n) {
    __m512i sums{};
    for (int64_t i = 0; i < n; i += 64) {
      const __mmask64 within = n - i < 64 ? 0xffffffff : ~0ull;
      const __m512i codes = _mm512_maskz_loadu_epi8(within, piece + i);
      sums = _mm512_dpbusd_epi32(sums, _mm512_set1_epi8(1), codes);
    }
    return _mm512_reduce_add_epi32(sums);
  }

  // dpbusd adds four exact products to 32 bits and does not saturate. It can broadcast its operand
  // from memory, which gcc 12 does not make of the intrinsic but as an instruction of its own.
  static Ints dot(Ints acc, Words codes, const int8_t* four) {
    struct Four {
      int8_t x[4];
    };
    asm("vpdpbusd %2%{1to16%}, %1, %0"
        : "+v"(acc)
        : "v"(codes), "m"(*reinterpret_cast<const Four*>(four)));
    return acc;
  }

  static Floats widen(const uint16_t* half) {
    // Masked, as gcc warns of the plain one.
    return _mm512_maskz_cvtph_ps(0xffff,
                                 _mm256_loadu_si256(reinterpret_cast<const __m256i*>(half)));
  }

  static Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
};

}  // namespace
}  // namespace lowbit::LOWBIT_ISA

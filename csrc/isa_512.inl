// What AVX-512 with and without VNNI have in common as linear.inl wants it: a step is one vector.

#include <cstdint>

#include "intrinsics.h"

namespace lowbit::LOWBIT_ISA {
namespace {

// As Vectors256 (isa_256.inl).
struct Vectors512 {
  using Words = uint32_t __attribute__((vector_size(64)));
  using Ints = int32_t __attribute__((vector_size(64)));
  using Floats = float __attribute__((vector_size(64)));
  static constexpr int registers = 32, unroll = 8;

  static __m512i raw(Words v) { return reinterpret_cast<__m512i>(v); }
  static Words words(__m512i v) { return reinterpret_cast<Words>(v); }

  static Words in_order(Words sum) {
    asm("" : "+v"(sum));
    return sum;
  }

  static Words broadcast_4(const int8_t* at) {
    int32_t four;
    __builtin_memcpy(&four, at, sizeof four);
    return words(_mm512_set1_epi32(four));
  }
  static Words broadcast_16(const int8_t* at) {
    return words(_mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at))));
  }

  static Words dot_bytes(Words a, Words b) { return words(_mm512_maddubs_epi16(raw(a), raw(b))); }
  static Words dot_shorts(Words a, Words b) { return words(_mm512_madd_epi16(raw(a), raw(b))); }

  static Words sum_shorts(Words v) { return dot_shorts(v, Words{} + 0x00010001u); }

  static Words add_bytes(Words a, Words b) { return words(_mm512_add_epi8(raw(a), raw(b))); }
  static Words add_shorts(Words a, Words b) { return words(_mm512_add_epi16(raw(a), raw(b))); }
  static Words high_bytes(Words v) { return words(_mm512_srli_epi16(raw(v), 8)); }

  static Words lookup(Words table, Words index) {
    return words(_mm512_shuffle_epi8(raw(table), raw(index)));
  }
  template <int bits>
  static Words zip_low(Words a, Words b) {
    if constexpr (bits == 8) return words(_mm512_unpacklo_epi8(raw(a), raw(b)));
    if constexpr (bits == 16) return words(_mm512_unpacklo_epi16(raw(a), raw(b)));
    if constexpr (bits == 32) return words(_mm512_unpacklo_epi32(raw(a), raw(b)));
    if constexpr (bits == 64) return words(_mm512_unpacklo_epi64(raw(a), raw(b)));
  }
  template <int bits>
  static Words zip_high(Words a, Words b) {
    if constexpr (bits == 8) return words(_mm512_unpackhi_epi8(raw(a), raw(b)));
    if constexpr (bits == 16) return words(_mm512_unpackhi_epi16(raw(a), raw(b)));
    if constexpr (bits == 32) return words(_mm512_unpackhi_epi32(raw(a), raw(b)));
    if constexpr (bits == 64) return words(_mm512_unpackhi_epi64(raw(a), raw(b)));
  }

  static Floats widen(const uint16_t* half) {
    // Masked, as gcc warns of the plain one.
    return _mm512_maskz_cvtph_ps(0xffff,
                                 _mm256_loadu_si256(reinterpret_cast<const __m256i*>(half)));
  }

  static Ints widen(const uint8_t* bytes) {
    return reinterpret_cast<Ints>(_mm512_maskz_cvtepu8_epi32(
        0xffff, _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes))));
  }

  static Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
};

}  // namespace
}  // namespace lowbit::LOWBIT_ISA

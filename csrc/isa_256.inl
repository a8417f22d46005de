// What AVX2 and AVX-VNNI have in common as linear.inl wants it: vectors of 32 bytes, half a step.
// attention_float32.inl takes its vectors too.

#include <cstdint>

#include "intrinsics.h"

namespace lowbit::LOWBIT_ISA {
namespace {

struct Vectors256 {
  using Words = uint32_t __attribute__((vector_size(32)));
  using Ints = int32_t __attribute__((vector_size(32)));
  using Floats = float __attribute__((vector_size(32)));
  static constexpr int registers = 16, unroll = 8;

  static __m256i raw(Words v) { return reinterpret_cast<__m256i>(v); }
  static Words words(__m256i v) { return reinterpret_cast<Words>(v); }

  // Keeps sums in the order in which they are written: as a tree, which gcc would make of them,
  // their terms take more registers than there are.
  static Words in_order(Words sum) {
    asm("" : "+x"(sum));
    return sum;
  }

  // Four bytes in every lane, sixteen in every 128 bits.
  static Words broadcast_4(const int8_t* at) {
    int32_t four;
    __builtin_memcpy(&four, at, sizeof four);
    return words(_mm256_set1_epi32(four));
  }
  static Words broadcast_16(const int8_t* at) {
    return words(
        _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at))));
  }

  // Sums of two products: of unsigned bytes of a with signed ones of b, in 16 bits, saturated; of
  // signed 16 bits, in 32.
  static Words dot_bytes(Words a, Words b) { return words(_mm256_maddubs_epi16(raw(a), raw(b))); }
  static Words dot_shorts(Words a, Words b) { return words(_mm256_madd_epi16(raw(a), raw(b))); }

  // The sums of two, in 32 bits. The ones stay in memory, as a loop has no register left for them.
  static Words sum_shorts(Words v) {
    static constexpr Words ones = Words{} + 0x00010001u;
    Words sums;
    asm("vpmaddwd %2, %1, %0" : "=x"(sums) : "x"(v), "m"(ones));
    return sums;
  }

  static Words add_bytes(Words a, Words b) { return words(_mm256_add_epi8(raw(a), raw(b))); }
  static Words add_shorts(Words a, Words b) { return words(_mm256_add_epi16(raw(a), raw(b))); }
  static Words high_bytes(Words v) { return words(_mm256_srli_epi16(raw(v), 8)); }

  // The rest stay within each 128 bits: table[index], and elements of a and b in turn, from the
  // first or second half of both.
  static Words lookup(Words table, Words index) {
    return words(_mm256_shuffle_epi8(raw(table), raw(index)));
  }
  template <int bits>
  static Words zip_low(Words a, Words b) {
    if constexpr (bits == 8) return words(_mm256_unpacklo_epi8(raw(a), raw(b)));
    if constexpr (bits == 16) return words(_mm256_unpacklo_epi16(raw(a), raw(b)));
    if constexpr (bits == 32) return words(_mm256_unpacklo_epi32(raw(a), raw(b)));
    if constexpr (bits == 64) return words(_mm256_unpacklo_epi64(raw(a), raw(b)));
  }
  template <int bits>
  static Words zip_high(Words a, Words b) {
    if constexpr (bits == 8) return words(_mm256_unpackhi_epi8(raw(a), raw(b)));
    if constexpr (bits == 16) return words(_mm256_unpackhi_epi16(raw(a), raw(b)));
    if constexpr (bits == 32) return words(_mm256_unpackhi_epi32(raw(a), raw(b)));
    if constexpr (bits == 64) return words(_mm256_unpackhi_epi64(raw(a), raw(b)));
  }

  static Floats widen(const uint16_t* half) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(half)));
  }

  static Ints widen(const uint8_t* bytes) {
    return reinterpret_cast<Ints>(
        _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes))));
  }

  static Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
};

}  // namespace
}  // namespace lowbit::LOWBIT_ISA

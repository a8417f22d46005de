#define LOWBIT_ISA avx512
#include <cstdint>

#include "intrinsics.h"
#include "linear.h"

namespace lowbit::avx512 {
namespace {

// A step is one vector.
struct Isa {
  using Words = uint32_t __attribute__((vector_size(64)));
  using Ints = int32_t __attribute__((vector_size(64)));
  using Floats = float __attribute__((vector_size(64)));
  static constexpr int registers = 32;
  static constexpr int64_t macs_per_ns = 80;

  static Ints byte(Words codes, int i) {
    if (i == 3) return reinterpret_cast<Ints>(codes >> 24);
    if (i == 0) return reinterpret_cast<Ints>(codes & 0xffu);
    // One shuffle does for a shift and a mask: byte i of each lane, and zeros.
    const __m512i from = _mm512_broadcast_i32x4(_mm_add_epi32(
        _mm_setr_epi32(0, 4, 8, 12), _mm_set1_epi32(i | static_cast<int>(0x80808000u))));
    return reinterpret_cast<Ints>(_mm512_shuffle_epi8(reinterpret_cast<__m512i>(codes), from));
  }

  static Floats broadcast(const float* x) { return _mm512_set1_ps(*x); }

  static Floats widen(const uint16_t* half) {
    // Masked, as gcc warns of the plain one.
    return _mm512_maskz_cvtph_ps(0xffff,
                                 _mm256_loadu_si256(reinterpret_cast<const __m256i*>(half)));
  }

  static Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
};

}  // namespace
}  // namespace lowbit::avx512

#include "linear_float.inl"

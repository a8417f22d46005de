#define LOWBIT_ISA avx512
#include "isa_512.inl"
#include "linear.h"

namespace lowbit::avx512 {
namespace {

struct Isa : Vectors512 {
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
};

}  // namespace
}  // namespace lowbit::avx512

#include "linear_float.inl"

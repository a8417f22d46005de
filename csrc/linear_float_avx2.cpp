#define LOWBIT_ISA avx2
#include "isa_256.inl"
#include "linear.h"

namespace lowbit::avx2 {
namespace {

struct Isa : Vectors256 {
  static constexpr int64_t macs_per_ns = 40;

  static Ints byte(Words codes, int i) {
    if (i == 3) return reinterpret_cast<Ints>(codes >> 24);
    if (i == 0) return reinterpret_cast<Ints>(codes & 0xffu);
    // One shuffle does for a shift and a mask: byte i of each lane, and zeros.
    const __m256i from = _mm256_broadcastsi128_si256(_mm_add_epi32(
        _mm_setr_epi32(0, 4, 8, 12), _mm_set1_epi32(i | static_cast<int>(0x80808000u))));
    return reinterpret_cast<Ints>(_mm256_shuffle_epi8(reinterpret_cast<__m256i>(codes), from));
  }

  static Floats broadcast(const float* x) { return _mm256_broadcast_ss(x); }
};

}  // namespace
}  // namespace lowbit::avx2

#include "linear_float.inl"

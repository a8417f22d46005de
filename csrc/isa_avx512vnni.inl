// AVX-512 VNNI as linear.inl wants it: a step is one vector.

#include "intrinsics.h"
#include "linear.h"

namespace lowbit::LOWBIT_ISA {
namespace {

struct Isa {
  using Words = uint32_t __attribute__((vector_size(64)));
  using Ints = int32_t __attribute__((vector_size(64)));
  using Floats = float __attribute__((vector_size(64)));
  static constexpr int registers = 32, unroll = 8;
  static constexpr int64_t bytes_per_input = 1, macs_per_ns = 200;

  static void place(const int8_t* piece, int64_t n, int8_t* row, int64_t k) {
    __builtin_memcpy(row + k, piece, n);
  }

  struct Four {
    int8_t x[4];
  };

  // Where it is used once, it stays in memory: a load saved is worth more than a register.
  template <int times>
  static auto four(const int8_t* at) {
    if constexpr (times == 1) {
      return reinterpret_cast<const Four*>(at);
    } else {
      int32_t x;
      __builtin_memcpy(&x, at, sizeof x);
      return _mm512_set1_epi32(x);
    }
  }

  // dpbusd adds four exact products to 32 bits and does not saturate. It can broadcast its operand
  // from memory, which gcc 12 does not make of the intrinsic but as an instruction of its own.
  static Ints dot(Ints acc, Words codes, const Four* four) {
    asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(acc) : "v"(codes), "m"(*four));
    return acc;
  }

  static Ints dot(Ints acc, Words codes, __m512i four) {
    return reinterpret_cast<Ints>(_mm512_dpbusd_epi32(reinterpret_cast<__m512i>(acc),
                                                      reinterpret_cast<__m512i>(codes), four));
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

// AVX-512 VNNI as linear.inl wants it.

#include "isa_512.inl"
#include "linear.h"
#include "shifted_codes.inl"

namespace lowbit::LOWBIT_ISA {
namespace {

struct Isa : Vectors512 {
  static constexpr int64_t macs_per_ns = 200;

  // dpbusd adds four exact products to 32 bits and does not saturate.
  struct FourProducts {
    using Codes = Words;
    static constexpr int64_t bytes_per_input = 1;
    static constexpr bool any_bits = true;

    static void place(const int8_t* piece, int64_t n, int8_t* row, int64_t k) {
      __builtin_memcpy(row + k, piece, n);
    }

    static Codes prepare(Words codes) { return codes; }

    struct Four {
      int8_t x[4];
    };

    // If it is used once, it stays in memory: a load saved is worth more than a register.
    template <int times>
    static auto four(const int8_t* at) {
      if constexpr (times == 1) {
        return reinterpret_cast<const Four*>(at);
      } else {
        return broadcast_4(at);
      }
    }

    // The instruction can broadcast its operand from memory, which gcc 12 does not make of the
    // intrinsic but as an instruction of its own. The sum is copied, as gcc stores to memory after
    // every instruction what an asm changes by reference.
    static void add(int, Codes codes, const Four* four, Words&, Ints& sum) {
      Ints own = sum;
      asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(own) : "v"(codes), "m"(*four));
      sum = own;
    }

    static void add(int, Codes codes, Words four, Words&, Ints& sum) {
      sum = reinterpret_cast<Ints>(
          _mm512_dpbusd_epi32(reinterpret_cast<__m512i>(sum), raw(codes), raw(four)));
    }
  };

  template <int bits>
  using Dot = FourProducts;

  // Registers for three vectors of codes, for the sums of 8 rows, and one for activations.
  template <int bits>
  struct DecodedDot : FourProducts {
    static constexpr int panels = 3, rows = 8;
    static constexpr bool crossed = false, centred = true, apart = true;

    static void place(const int8_t* piece, int64_t n, int8_t* row, int64_t k) {
      place_shifted(piece, n, row + k);
    }

    static void add(int, Codes codes, Words four, Words&, Ints& sum) {
      sum = reinterpret_cast<Ints>(
          _mm512_dpbusd_epi32(reinterpret_cast<__m512i>(sum), raw(four), raw(codes)));
    }

    static void correct(Codes codes, Ints& sum) {
      sum -= reinterpret_cast<Ints>(
          _mm512_dpbusd_epi32(__m512i{}, raw(Words{} + 0x80808080u), raw(codes)));
    }
  };
};

}  // namespace
}  // namespace lowbit::LOWBIT_ISA

#define LOWBIT_ISA avxvnni
#include "isa_256.inl"
#include "linear.h"

namespace lowbit::avxvnni {
namespace {

struct Isa : Vectors256 {
  static constexpr int64_t macs_per_ns = 200;
  static constexpr int64_t few_rows = 16;  // measured: with more it pays to decode first

  // dpbusd adds four exact products to 32 bits and does not saturate.
  struct FourProducts {
    using Codes = Words;
    static constexpr int64_t bytes_per_input = 1;
    static constexpr bool any_bits = true;

    static void place(const int8_t* piece, int64_t n, int8_t* row, int64_t k) {
      __builtin_memcpy(row + k, piece, n);
    }

    static Codes prepare(Words codes) { return codes; }

    template <int times>
    static Words four(const int8_t* at) {
      return broadcast_4(at);
    }

    static void add(int, Codes codes, Words four, Words&, Ints& sum) {
      sum = reinterpret_cast<Ints>(
          _mm256_dpbusd_avx_epi32(reinterpret_cast<__m256i>(sum), raw(codes), raw(four)));
    }
  };

  template <int bits>
  using Dot = FourProducts;

  // A register for each part of the codes and for each sum, one for activations: 12 sums hide the 5
  // cycles after which the next of two dpbusd a cycle can add to the same.
  template <int bits>
  struct DecodedDot : FourProducts {
    static constexpr int panels = 1, rows = 6;
    static constexpr bool crossed = false, centred = false, apart = false;
  };
};

}  // namespace
}  // namespace lowbit::avxvnni

#include "linear_tables.inl"

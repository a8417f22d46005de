// Products of unsigned codes with int8 activations as linear.inl wants them, on vectors that
// multiply pairs: AVX2, and AVX-512 without VNNI.

#include <cstdint>
#include <type_traits>

#include "linear.h"
#include "shifted_codes.inl"

namespace lowbit::LOWBIT_ISA {
namespace {

// Codes of at most 7 bits. Two products fit 16 bits, 2 · 127 · 128 < 2^15, so that nothing
// saturates; of narrower codes the products of several steps do, and are added there first.
template <class Vectors, int bits>
struct BytePairs {
  using Words = typename Vectors::Words;
  using Ints = typename Vectors::Ints;
  using Codes = Words;
  static constexpr int64_t bytes_per_input = 1;
  static constexpr bool any_bits = false;

  static constexpr int largest_pair = 2 * ((1 << bits) - 1) * 128;
  static constexpr int fitting = 0x7fff / largest_pair;
  static constexpr int steps = fitting >= 8 ? 8 : fitting >= 4 ? 4 : fitting >= 2 ? 2 : 1;
  static_assert(bits <= 7 && steps * largest_pair < 1 << 15);

  static void place(const int8_t* piece, int64_t n, int8_t* row, int64_t k) {
    __builtin_memcpy(row + k, piece, n);
  }

  static Codes prepare(Words codes) { return codes; }

  template <int times>
  static Words four(const int8_t* at) {
    return Vectors::broadcast_4(at);
  }

  static void add(int s, Codes codes, Words four, Words& pairs, Ints& sum) {
    add_two(s, Vectors::dot_bytes(codes, four), pairs, sum);
  }

  static void add_two(int s, Words two, Words& pairs, Ints& sum) {
    pairs = s % steps == 0 ? two : Vectors::in_order(Vectors::add_shorts(pairs, two));
    if (s % steps < steps - 1) return;
    // Unsigned: rows behind the last are computed too, from whatever the scratch holds.
    const Words all = reinterpret_cast<Words>(sum) + Vectors::sum_shorts(pairs);
    sum = reinterpret_cast<Ints>(steps < 8 ? Vectors::in_order(all) : all);
  }
};

// Decoded codes of at most 3 bits: zero points are subtracted once, so they cost no row anything.
// With 4 bits, half as many products would fit 16 bits.
template <class Vectors, int bits>
struct ShiftedPairs : BytePairs<Vectors, bits> {
  using Base = BytePairs<Vectors, bits>;
  using typename Base::Codes, typename Base::Ints, typename Base::Words;
  static_assert(Base::steps * 2 * ((1 << bits) - 1) * 255 < 1 << 15);

  static void place(const int8_t* piece, int64_t n, int8_t* row, int64_t k) {
    place_shifted(piece, n, row + k);
  }

  // In a register: the signed factor may be an operand in memory, and gcc would read it again for
  // each row.
  static void add(int s, Codes codes, Words four, Words& pairs, Ints& sum) {
    asm("" : : "v"(codes));
    Base::add_two(s, Vectors::dot_bytes(four, codes), pairs, sum);
  }

  static void correct(Codes codes, Ints& sum) {
    const Words two = Vectors::dot_bytes(Words{} + 0x80808080u, codes);
    sum -= reinterpret_cast<Ints>(Vectors::sum_shorts(two));
  }
};

// Codes of 8 bits would saturate, so both are widened to 16. Codes are split into even and odd
// inputs by a mask and a shift; activations lie as
//
//   cx [rows][inputs/4][4]    int16, inputs 0 2 1 3 of a step
template <class Vectors>
struct ShortPairs {
  using Words = typename Vectors::Words;
  using Ints = typename Vectors::Ints;
  static constexpr int64_t bytes_per_input = 2;
  static constexpr bool any_bits = false;

  struct Codes {
    Words even, odd;
  };

  static void place(const int8_t* piece, int64_t n, int8_t* row, int64_t k) {
    int16_t* out = reinterpret_cast<int16_t*>(row) + k;
    for (int64_t i = 0; i < n; i += 4) {
      out[i] = piece[i];
      out[i + 1] = piece[i + 2];
      out[i + 2] = piece[i + 1];
      out[i + 3] = piece[i + 3];
    }
  }

  static Codes prepare(Words codes) {
    return {.even = codes & 0x00ff00ffu, .odd = Vectors::high_bytes(codes)};
  }

  template <int times>
  static Codes four(const int8_t* at) {
    return {.even = Vectors::broadcast_4(at), .odd = Vectors::broadcast_4(at + 4)};
  }

  static void add(int, Codes codes, Codes four, Words&, Ints& sum) {
    Words all = reinterpret_cast<Words>(sum);  // unsigned, as in BytePairs
    all += Vectors::dot_shorts(codes.even, four.even);
    all += Vectors::dot_shorts(codes.odd, four.odd);
    sum = reinterpret_cast<Ints>(Vectors::in_order(all));
  }
};

template <class Vectors, int bits>
struct PairsOf {
  using Dot = BytePairs<Vectors, bits>;
  static constexpr bool shifted = bits <= 3;
  struct DecodedDot : std::conditional_t<shifted, ShiftedPairs<Vectors, bits>, Dot> {
    // Registers for each part of the codes, for each sum in 16 bits and in 32, for activations and
    // for products.
    static constexpr int panels = Vectors::registers == 32 ? 2 : 1;
    static constexpr int rows = Vectors::registers == 32 ? 4 : 3;
    static constexpr bool crossed = false, centred = shifted, apart = false;
  };
};

// Codes of 8 bits that are decoded take half the multiplications (S. Winograd, A new algorithm for
// inner products, IEEE Transactions on Computers C-17, 1968): of even and odd inputs
//
//   w0 x0 + w1 x1 = (w0 + x1) (w1 + x0) - w0 w1 - x0 x1
//
// and the last two are summed once for all rows and for all outputs. Additions are what processors
// have more ports for. The sums of two fit 16 bits. What overflows in 32 cancels, so that sums
// wrap around: they are unsigned.
template <class Vectors>
struct PairsOf<Vectors, 8> {
  using Dot = ShortPairs<Vectors>;
  struct DecodedDot : Dot {
    using typename Dot::Codes, typename Dot::Ints, typename Dot::Words;
    // Two registers for each part of the codes and for the activations of a row, two for products.
    static constexpr int panels = Vectors::registers == 32 ? 2 : 1, rows = 4;
    static constexpr bool crossed = true, centred = false, apart = false;

    static void add(int, Codes codes, Codes four, Words&, Ints& sum) {
      const Words even = Vectors::add_shorts(codes.even, four.odd);
      const Words odd = Vectors::add_shorts(codes.odd, four.even);
      const Words wrapped = reinterpret_cast<Words>(sum) + Vectors::dot_shorts(even, odd);
      sum = reinterpret_cast<Ints>(Vectors::in_order(wrapped));
    }

    static void correct(Codes codes, Ints& sum) {
      const Words wrapped = reinterpret_cast<Words>(sum);
      sum = reinterpret_cast<Ints>(wrapped - Vectors::dot_shorts(codes.even, codes.odd));
    }
  };
};

// Vectors with these products, as linear.inl and linear_decoded.inl want them.
template <class Vectors>
struct Pairs : Vectors {
  template <int bits>
  using Dot = typename PairsOf<Vectors, bits>::Dot;
  template <int bits>
  using DecodedDot = typename PairsOf<Vectors, bits>::DecodedDot;
};

}  // namespace
}  // namespace lowbit::LOWBIT_ISA

// The exponential function, on vectors of the Isa that the including file defines. Operations are
// rounded once each, so that all instruction sets give the same bits where a multiplication with
// the addition after it (Isa::fma) is rounded once, too.

#include <cstdint>

namespace lowbit::LOWBIT_ISA {
namespace {

using Number = Isa::Floats;  // as many as a vector holds

// Highest power first.
template <int n>
Number polynomial(const float (&coefficients)[n], Number x) {
  Number sum = Number{} + coefficients[0];
#pragma GCC unroll 16
  for (int i = 1; i < n; ++i) sum = Isa::fma(sum, x, Number{} + coefficients[i]);
  return sum;
}

// For 0 <= u < 87, to 1e-7 of itself: exp(-u) = 2^n exp(r), n an integer and |r| <= ln(2) / 2.
Number exp_minus(Number u) {
  static constexpr float powers[] = {0.0013836842f, 0.00837481578f, 0.0416682256f, 0.166664202f,
                                     0.499999921f,  1.00000004f,    1.0f};
  constexpr float round = 0x1.8p23f;  // leaves an integer in the low bits
  constexpr float ln2_high = 0x1.62e4p-1f, ln2_low = 0x1.7f7d1cp-20f;
  const Number shifted = Isa::fma(u, Number{} - 0x1.715476p0f, Number{} + round);
  const Number n = shifted - round;
  Number r = Isa::fma(n, Number{} - ln2_high, -u);
  r = Isa::fma(n, Number{} - ln2_low, r);
  const Isa::Words power = reinterpret_cast<Isa::Words>(shifted) << 23;
  return reinterpret_cast<Number>(reinterpret_cast<Isa::Words>(polynomial(powers, r)) + power);
}

}  // namespace
}  // namespace lowbit::LOWBIT_ISA

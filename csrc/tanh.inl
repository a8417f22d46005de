// The hyperbolic tangent on vectors of the Isa, to 3e-7 of itself: near 0 a polynomial (of least
// maximal error), beyond that by the exponential function. NaN stays NaN.

#include "exponential.inl"

namespace lowbit::LOWBIT_ISA {
namespace {

Number tanh_of(Number x) {
  static constexpr float powers[] = {-0.00571704609f, 0.020650588f, -0.0537435003f, 0.133314908f,
                                     -0.333332837f};
  constexpr float near = 0.625f, end = 43.0f;  // tanh is 1 long before `end`
  const Number u = x < 0.0f ? -x : x, square = x * x;
  const Number inner = Isa::fma(x * square, polynomial(powers, square), x);
  const Number e = exp_minus(2.0f * (u < end ? u : Number{} + end));
  const Number outer = (1.0f - e) / (1.0f + e);
  // NaN is not less than anything, and differs from itself.
  return u < near || x != x ? inner : x < 0.0f ? -outer : outer;
}

}  // namespace
}  // namespace lowbit::LOWBIT_ISA

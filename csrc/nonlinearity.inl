// What may follow a linear layer, on vectors of the Isa (linear.inl):
//
//   relu       max(x, 0)
//   gelu       x Phi(x), Phi the standard normal distribution function
//   gelu_tanh  x S(2 sqrt(2/pi) (x + 0.044715 x^3)), S(z) = 1 / (1 + exp(-z))
//   quick_gelu x S(1.702 x)
//   silu       x S(x)
//
// All but relu are max(x, 0) - u T(u) with u = |x| and a tail T(u) = Phi(-u), …, which falls from
// 1/2 to 0. So small x lose nothing, infinities need no care, and u may end where u T(u) no longer
// counts. Of both GELUs the eighth root of T is a polynomial in u, that of least maximal error
// (scripts/gelu_polynomials). The error is at most 4e-7 max(|x|, 1) against exact arithmetic. NaN
// stays NaN. All instruction sets give the same bits.

#include "exponential.inl"
#include "linear.h"

namespace lowbit::LOWBIT_ISA {
namespace {

Number positive_part(Number x) { return x < 0.0f ? Number{} : x; }

// |x|, but `end` beyond it and for NaN.
Number magnitude(Number x, float end) {
  const Number u = x < 0.0f ? -x : x;
  return u < end ? u : Number{} + end;
}

struct Relu {
  static Number of(Number x) { return positive_part(x); }
};

template <int n>
Number minus_tail_of_root(Number x, const float (&root)[n], float end) {
  const Number u = magnitude(x, end);
  Number tail = polynomial(root, u);
  for (int i = 0; i < 3; ++i) tail *= tail;
  return Isa::fma(-u, tail, positive_part(x));
}

struct Gelu {
  static Number of(Number x) {
    static constexpr float root[] = {-2.94319079e-07f, 7.45426678e-06f, -6.00914718e-05f,
                                     3.37203564e-05f,  0.00150549435f,  -0.000673237606f,
                                     -0.0319272801f,   -0.0914576575f,  0.917004049f};
    return minus_tail_of_root(x, root, 5.5f);
  }
};

struct GeluTanh {
  static Number of(Number x) {
    static constexpr float root[] = {
        -2.92383839e-10f, -5.43809762e-08f, 1.36389804e-06f, -1.32498926e-05f, 6.45599866e-05f,
        -0.00015843354f,  0.000164582278f,  -0.0002068748f,  0.00169592164f,   -0.000648734043f,
        -0.0319168009f,   -0.0914586186f,   0.917004049f};
    return minus_tail_of_root(x, root, 5.0f);
  }
};

// x S(slope x).
Number times_logistic(Number x, float slope) {
  const Number u = magnitude(x, 80.0f / slope), e = exp_minus(slope * u);
  return Isa::fma(-u, e / (1.0f + e), positive_part(x));
}

struct QuickGelu {
  static Number of(Number x) { return times_logistic(x, 1.702f); }
};

struct Silu {
  static Number of(Number x) { return times_logistic(x, 1.0f); }
};

template <class Function>
[[gnu::noinline]] void apply_to_rows(float* y, int64_t rows, int64_t n, int64_t stride) {
  constexpr int64_t size = sizeof(Number) / sizeof(float);
  for (int64_t r = 0; r < rows; ++r, y += stride) {
    for (int64_t i = 0; i < n; i += size) {
      Number x;
      __builtin_memcpy(&x, y + i, sizeof x);
      x = Function::of(x);
      __builtin_memcpy(y + i, &x, sizeof x);
    }
  }
}

// To y[rows][n] in place, rows `stride` apart and n a multiple of the vector's size.
inline void apply(Nonlinearity function, float* y, int64_t rows, int64_t n, int64_t stride) {
  switch (function) {
    case Nonlinearity::identity: return;
    case Nonlinearity::gelu: return apply_to_rows<Gelu>(y, rows, n, stride);
    case Nonlinearity::gelu_tanh: return apply_to_rows<GeluTanh>(y, rows, n, stride);
    case Nonlinearity::quick_gelu: return apply_to_rows<QuickGelu>(y, rows, n, stride);
    case Nonlinearity::relu: return apply_to_rows<Relu>(y, rows, n, stride);
    case Nonlinearity::silu: return apply_to_rows<Silu>(y, rows, n, stride);
  }
}

}  // namespace
}  // namespace lowbit::LOWBIT_ISA

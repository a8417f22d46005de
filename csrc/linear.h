// A linear layer over codes in lanes (packed_layout.h), with activations of int8 codes:
//
//   affine  y[m,n] = f(bias[n] + sum_g sx s[n,g] sum_k cx (q[n,k] - z[n,g]))
//           y[m,n] = f(bias[n] + sum_g sx (s[n,g] sum_k cx q[n,k] + o[n,g] sum_k cx))
//   binary  y[m,n] = f(bias[n] + sum_g sx (sum_i alpha[n,g,i] sum_k cx b[i,n,k] + o[n,g] sum_k cx))
//
// with f the identity or a nonlinearity (nonlinearity.inl).
//
// The inner sums are wrapping 32-bit integers, exact as long as the result fits; everything after
// them is float32, each operation rounded once, groups (and planes) in order. Activations come in
// one of two kinds:
//
//   digits 1   dynamic: cx and sx[m,g] are what quantize_rows gives for the group;
//              static, where input.scale > 0: cx = rint(x / scale) + zero_point between lowest and
//              127, and sx = scale for all of x. What the zero point adds to the sums,
//              sx zero_point sum_k w[n,k], is the same for every token: the caller takes it off
//              the bias.
//   digits 4   float, by limbs (linear_float.h has the other way): x is a fixed-point number of 32
//              bits, a quarter of whose range is left for carries, x = sx (c0 + 2^8 c1 + 2^16 c2 +
//              2^24 c3) with sx[m,g] the power of two that makes the group's largest |x| less than
//              2^30 sx. Each digit is a row of activations, with scale 2^(8d) sx; y is the sum of
//              the four, from c0 on.
//
// Four digits hold every float32 down to 1/64 of its group's largest exactly; smaller ones are
// rounded, halves away from zero, by at most 2^-30 of that largest. What follows is the same for
// both.
//
// A group with a NaN or an infinity gets sx NaN and codes 0; one with nothing of 2^-100 (digits 1:
// see quantize_rows.h) or 2^-90 (digits 4) or more gets sx 1 and codes 0.
#pragma once

#include <cstdint>

#include "packed_layout.h"
#include "path.h"

namespace lowbit {

struct StaticScale {
  float scale = 0;  // 0: there is none
  int zero_point = 0, lowest = -127;
};

enum class Nonlinearity { identity, gelu, gelu_tanh, quick_gelu, relu, silu };

struct Linear {
  PackedLayout form;
  const void* x;              // [rows, inputs], float32 or, if `bfloat16`, that
  const uint8_t* codes;       // in lanes, and so are the next three
  const void* scale;          // s, or alpha of the planes in use
  const uint8_t* zero_point;  // z; null for 2^(bits - 1), or 0 with an offset
  const void* offset;         // o; null for zeros
  const void* bias;           // [outputs], or null for zeros; float32 or, if `bfloat16_bias`, that
  void* y;                    // [rows, outputs], like x
  int64_t rows;
  int planes;       // binary: the first so many are used; affine: 1
  int digits;       // 1 or 4
  bool half_scale;  // s, alpha and o are float16, not float32
  Nonlinearity nonlinearity;
  StaticScale input = {};
  // bfloat16 is widened as it is read; results are computed in float32 and rounded once, to even.
  bool bfloat16 = false, bfloat16_bias = false;
  SubScales sub = {};
};

// A path takes several layers at once where they have x, rows, inputs, group and digits in common:
// their activations are quantized once.
namespace scalar {
void linear(const Linear* ops, int count);
}
namespace avx2 {
void linear(const Linear* ops, int count);
}
namespace avxvnni {
void linear(const Linear* ops, int count);
}
namespace avx512 {
void linear(const Linear* ops, int count);
}
namespace avx512vnni {
void linear(const Linear* ops, int count);
}
namespace amx {
void linear(const Linear* ops, int count);
}

inline constexpr Path<void(const Linear* ops, int count)> linear_paths[] = {
    {"scalar", "scalar", scalar::linear},
#ifdef LOWBIT_HAS_AVX2
    {"avx2", "avx2", avx2::linear},
#endif
#ifdef LOWBIT_HAS_AVXVNNI
    {"avxvnni", "avxvnni", avxvnni::linear},
#endif
#ifdef LOWBIT_HAS_AVX512
    {"avx512bw", "avx512", avx512::linear},
#endif
#ifdef LOWBIT_HAS_AVX512VNNI
    {"avx512", "avx512vnni", avx512vnni::linear},
#endif
#ifdef LOWBIT_HAS_AMX
    {"amx", "amx", amx::linear},
#endif
};

}  // namespace lowbit

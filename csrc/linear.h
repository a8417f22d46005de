// A linear layer with packed codes (packed_layout.h) and int8 activations:
//
//   affine  y[m,n] = f(bias[n] + sum_g sx s[n,g] sum_k cx (q[n,k] - z[n,g]))
//           y[m,n] = f(bias[n] + sum_g sx (s[n,g] sum_k cx q[n,k] + o[n,g] sum_k cx))
//   binary  y[m,n] = f(bias[n] + sum_g sx (sum_i alpha[n,g,i] sum_k cx b[i,n,k] + o[n,g] sum_k cx))
//
// with f the identity or a nonlinearity (nonlinearity.inl).
//
// The inner sums are wrapping 32-bit integers, exact if the result fits. All further operations are
// float32, each rounded once, with groups (and planes) in order. There are two kinds of
// activations; `limbs` is the number of int8 limbs per activation:
//
//   limbs 1   dynamic: cx and sx[m,g] are the results of quantize_rows for the group;
//              static, if input.scale > 0: cx = rint(x / scale) + zero_point between lowest and
//              127, and sx = scale for all of x. The contribution of the zero point,
//              sx zero_point sum_k w[n,k], is the same for every token: the caller subtracts it
//              from the bias.
//   limbs 4   float, by limbs (linear_float.h has the other family): x is a 32-bit fixed-point
//              number, of which carries may use a quarter, x = sx (c0 + 2^8 c1 + 2^16 c2 +
//              2^24 c3) with sx[m,g] the power of two that makes the group's largest |x| less than
//              2^30 sx. Each limb is a row of activations, with scale 2^(8d) sx; y is the sum of
//              the four, from c0 on.
//
// Four limbs represent a float32 exactly if it is at least 1/64 of the largest of its group.
// Smaller numbers are rounded, halves away from zero, by at most 2^-30 of the largest.
//
// A group with a NaN or an infinity gets sx NaN and codes 0. A group below 2^-100 (limbs 1: see
// quantize_rows.h) or 2^-90 (limbs 4) gets sx 1 and codes 0.
#pragma once

#include <cstdint>

#include "packed_layout.h"
#include "target.h"

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
  int limbs;        // 1 or 4
  bool half_scale;  // s, alpha and o are float16, not float32
  Nonlinearity nonlinearity;
  StaticScale input = {};
  // bfloat16 is converted when it is read; results are computed in float32 and rounded once, to
  // even.
  bool bfloat16 = false, bfloat16_bias = false;
  SubScales sub = {};
};

// A target can compute several layers in one call if they have the same x, rows, inputs, group and
// limbs. Their activations are quantized once.
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

inline constexpr Target<void(const Linear* ops, int count)> linear_targets[] = {
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

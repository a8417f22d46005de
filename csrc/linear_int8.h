// A linear layer with 8-bit weights and activations quantized per row on the way in:
//
//   y[m,n] = float(sum_k cx[m,k] (q[n,k] - z[n])) * (sx[m] * s[n]) + bias[n]
//
// cx int8 and sx are what quantize_rows gives for the whole row m. The sum is taken as
// sum_k cx q - z[n] sum_k cx in wrapping 32-bit integers, which is exact as long as the result
// fits; everything after it is float32, each operation rounded once, in the order written here.
//
// Prepacked codes: sixteen output rows in the lanes. A *step* is 64 bytes, 4 consecutive inputs of
// 16 consecutive rows, and a *panel* all steps of 16 rows:
//
//   q [ceil(outputs/16)][ceil(inputs/4)][16][4]    uint8
//
// Sixteen steps are an AMX tile as it is, one step an AVX-512 vector. int8 codes are stored with
// the sign bit flipped, so that z = 128. Activations are padded with zeros, so that padding codes
// may have any value.
#pragma once

#include <cstdint>

#include "path.h"

namespace lowbit {

struct LinearInt8 {
  const float* x;             // [rows, inputs]
  const uint8_t* codes;       // prepacked
  const void* scale;          // float16 or float32: one per output row, or one for all
  const uint8_t* zero_point;  // in the same number; null for 128
  const float* bias;          // [outputs], or null for zeros
  float* y;                   // [rows, outputs]
  int64_t rows, inputs, outputs;
  bool half_scale;            // float16
  bool one_scale;
};

namespace scalar {
void linear_int8(const LinearInt8&);
}
namespace avx2 {
void linear_int8(const LinearInt8&);
}
namespace avxvnni {
void linear_int8(const LinearInt8&);
}
namespace avx512vnni {
void linear_int8(const LinearInt8&);
}
namespace amx {
void linear_int8(const LinearInt8&);
}

inline constexpr Path<void(const LinearInt8&)> linear_int8_paths[] = {
    {"scalar", "", scalar::linear_int8},
#ifdef LOWBIT_X86
    {"avx2", "avx2", avx2::linear_int8},
    {"avxvnni", "avxvnni", avxvnni::linear_int8},
    {"avx512", "avx512vnni", avx512vnni::linear_int8},
    {"amx", "amx", amx::linear_int8},
#endif
};

}  // namespace lowbit

// A linear layer over packed codes (packed_layout.h) with float32 activations, by fused
// multiply-adds. Beside the byte limbs of linear.h it is the other family of arithmetic for such
// activations: for processors on which four int8 products cost more than one of float32.
//
// A weight w[n,k] is the float32 that decode_packed gives for it: s (q - z), s q + o, or o + the
// sum of alpha b. The inputs of a row, every group padded to whole blocks by inputs of zero, are
// cut into spans of 32 blocks; input i of each step of a span (i = 0 … 3) is added to sum i:
//
//   sum[i] = 0, then per step of the span, in order: sum[i] = fma(x, w, sum[i])
//   total  = 0, then per span, in order: total = (((total + sum[0]) + sum[1]) + sum[2]) + sum[3]
//   y[m,n] = f(total + bias[n])
//
// So the bits of y[m,n] depend only on x[m] and the layer, not on other rows or layers, threads or
// the instruction set. With a few rows, four sums hide the latency of an addition. A chain of at
// most 256 additions rounds less than a float32 product usually does.
#pragma once

#include "experts.h"
#include "linear.h"

namespace lowbit {

namespace scalar {
void linear_float(const Linear* ops, int count);
void experts_float(const Experts& op);
}  // namespace scalar
namespace avx2 {
void linear_float(const Linear* ops, int count);
void experts_float(const Experts& op);
}  // namespace avx2
namespace avx512 {
void linear_float(const Linear* ops, int count);
void experts_float(const Experts& op);
}  // namespace avx512

// Whether a target uses this family by default (docs/kernels.md has the times).
struct LinearFloatTarget : Target<void(const Linear* ops, int count)> {
  bool preferred;
};

#ifdef __FP_FAST_FMAF
inline constexpr bool scalar_fma = true;
#else
inline constexpr bool scalar_fma = false;  // a call of a function
#endif

// The targets of this family, with the names of `linear_targets`; `limbs` of their operations is 1.
inline constexpr LinearFloatTarget linear_float_targets[] = {
    {{"scalar", "scalar", scalar::linear_float}, scalar_fma},
#ifdef LOWBIT_HAS_AVX2
    {{"avx2", "avx2", avx2::linear_float}, true},
#endif
#ifdef LOWBIT_HAS_AVXVNNI
    {{"avxvnni", "avxvnni", avx2::linear_float}, true},
#endif
#ifdef LOWBIT_HAS_AVX512
    {{"avx512bw", "avx512", avx512::linear_float}, true},
#endif
#ifdef LOWBIT_HAS_AVX512VNNI
    {{"avx512", "avx512vnni", avx512::linear_float}, true},
#endif
#ifdef LOWBIT_HAS_AMX
    {{"amx", "amx", avx512::linear_float}, false},
#endif
};

// The targets of this family for the experts of a mixture (experts.h).
inline constexpr Target<void(const Experts&)> experts_float_targets[] = {
    {"scalar", "scalar", scalar::experts_float},
#ifdef LOWBIT_HAS_AVX2
    {"avx2", "avx2", avx2::experts_float},
#endif
#ifdef LOWBIT_HAS_AVXVNNI
    {"avxvnni", "avxvnni", avx2::experts_float},
#endif
#ifdef LOWBIT_HAS_AVX512
    {"avx512bw", "avx512", avx512::experts_float},
#endif
#ifdef LOWBIT_HAS_AVX512VNNI
    {"avx512", "avx512vnni", avx512::experts_float},
#endif
#ifdef LOWBIT_HAS_AMX
    {"amx", "amx", avx512::experts_float},
#endif
};

}  // namespace lowbit

// The linear layers of a mixture's experts: each token times its chosen experts.
//
//   y[t, s] = W[e] x[t] + bias[e]      e = ids[t, s]
//
// or, `gated`, with W[e] of twice as many rows, the upper half a gate:
//
//   y[t, s] = f(W'[e] x[t] + bias'[e]) (W"[e] x[t] + bias"[e])
//
// or, with `weights`, for which x has a row for each slot, summed in the order of the slots:
//
//   y[t] = sum_s weights[t, s] (W[e] x[t, s] + bias[e])
//
// All experts have the same form. The packed weights (linear.h) are `stride` bytes apart. An id
// equal to the number of experts chooses none: its result is 0. Results for a token do not depend
// on other tokens, as in a linear layer.
#pragma once

#include <cstdint>

#include "linear.h"

namespace lowbit {

struct Experts {
  // The layer of the first expert, with `rows` tokens, x [rows, inputs], y [rows, slots, outputs]
  // and the nonlinearity of the gate.
  Linear layer;
  int64_t experts, stride;
  const int64_t* ids;  // [rows, slots]
  int64_t slots;
  bool gated;  // half of the outputs are whole panels
  // [rows, slots], or null; float32, or bfloat16 if `bfloat16_weights`. Then x is [rows, slots,
  // inputs] and y [rows, outputs]. Sums are float32; if x and weights are bfloat16, each product is
  // first rounded to bfloat16.
  const void* weights = nullptr;
  bool bfloat16_weights = false;
};

namespace scalar {
void experts(const Experts& op);
}
namespace avx2 {
void experts(const Experts& op);
}
namespace avxvnni {
void experts(const Experts& op);
}
namespace avx512 {
void experts(const Experts& op);
}
namespace avx512vnni {
void experts(const Experts& op);
}
namespace amx {
void experts(const Experts& op);
}

// std::out_of_range for an id that no expert has.
inline constexpr Target<void(const Experts&)> experts_targets[] = {
    {"scalar", "scalar", scalar::experts},
#ifdef LOWBIT_HAS_AVX2
    {"avx2", "avx2", avx2::experts},
#endif
#ifdef LOWBIT_HAS_AVXVNNI
    {"avxvnni", "avxvnni", avxvnni::experts},
#endif
#ifdef LOWBIT_HAS_AVX512
    {"avx512bw", "avx512", avx512::experts},
#endif
#ifdef LOWBIT_HAS_AVX512VNNI
    {"avx512", "avx512vnni", avx512vnni::experts},
#endif
#ifdef LOWBIT_HAS_AMX
    {"amx", "amx", amx::experts},
#endif
};

}  // namespace lowbit

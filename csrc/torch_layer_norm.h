// LayerNorm of rows with the bits of torch's own operator, for what must equal the model's:
//
//   y = (x - mean) / sqrt(variance + epsilon) weight + bias
//
// Mean and variance come from one pass (Welford 1962) in 8 lanes. A lane takes 16 numbers at a time
// and merges the moments of equally many numbers (Chan et al. 1979). This is the order of torch
// 2.13 on processors with AVX2. Another torch or processor may have another order, so
// kernels/layer_norm.py compares the results first.
#pragma once

#include <cstdint>

#include "target.h"

namespace lowbit {

struct TorchLayerNorm {
  const float* x;  // [rows, columns]
  const float *weight, *bias;
  float* y;
  int64_t rows, columns;
  float epsilon;
};

namespace scalar {
void torch_layer_norm(const TorchLayerNorm& op);
}
namespace avx2 {
void torch_layer_norm(const TorchLayerNorm& op);
}

inline constexpr Target<void(const TorchLayerNorm&)> torch_layer_norm_targets[] = {
    {"scalar", "scalar", scalar::torch_layer_norm},
#ifdef LOWBIT_HAS_AVX2
    {"avx2", "avx2", avx2::torch_layer_norm},
#endif
};

}  // namespace lowbit

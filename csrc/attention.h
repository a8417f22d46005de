// Attention: for each batch, head and query
//
//   s[k] = scale sum_d query[d] key[k][d] + mask[k]
//   y    = sum_k w[k] value[k] / sum_k w[k]        with w[k] = exp(s[k] - max s)
//
// On amx queries (times scale), keys, values and w are rounded to bfloat16, subnormal numbers to
// zero; products are exact and all sums and the denominator float32. The other paths are float32
// throughout. Keys are taken in blocks of 256, sums so far being scaled down where a later block
// holds a larger s. Each query's result depends on nothing but its own row, so that any number of
// threads gives the same bits.
//
// A key that is forbidden has w = 0. A query for which all keys are, or for which there are none,
// has y = 0, as in PyTorch. NaN in a query, a key or the mask makes y NaN wherever that key is not
// forbidden. NaN or infinity in a value may show where its key is forbidden too: 0 times it is NaN.
#pragma once

#include <cstdint>

#include "path.h"

namespace lowbit {

// Numbers [batch][head][token][size]; those of a token are adjacent, other steps are in numbers.
struct TokenRows {
  const float* data;
  int64_t batch_step, head_step, token_step;

  LOWBIT_INLINE const float* at(int64_t batch, int64_t head, int64_t token) const {
    return data + batch * batch_step + head * head_step + token * token_step;
  }
};

enum class MaskKind { none, boolean, additive };

// [batch][head][query][key], keys adjacent; steps are in bytes. Boolean: bytes that are 0 where a
// key is forbidden; additive: floats.
struct Mask {
  MaskKind kind;
  const uint8_t* data;
  int64_t batch_step, head_step, query_step;

  LOWBIT_INLINE const uint8_t* at(int64_t batch, int64_t head, int64_t query) const {
    return data + batch * batch_step + head * head_step + query * query_step;
  }
};

struct Attention {
  TokenRows query, key, value;
  Mask mask;
  float* y;                         // [batch][queries][heads][value_size], contiguous
  int64_t batch, heads, key_heads;  // heads / key_heads successive heads share a key head
  int64_t queries, keys, size, value_size;
  float scale;
  bool causal;  // query i sees keys 0 … i only
};

// Some key heads with some of the queries that share each: blocks of 32, those of a head after
// those of the head before it.
struct AttentionTask {
  static constexpr int64_t block_queries = 32;

  int64_t batch, first_key_head, last_key_head, first_block, last_block;
};

namespace scalar {
void attention(const Attention& op);
}
namespace avx2 {
void attention(const Attention& op);
}
namespace avx512 {
void attention(const Attention& op);
}
namespace amx {
void attention(const Attention& op);
void attend(const Attention& op, const AttentionTask& task);
}  // namespace amx

struct AttentionPath : Path<void(const Attention&)> {
  bool bfloat16;  // operands are rounded to it
};

inline constexpr AttentionPath attention_paths[] = {
    {{"scalar", "scalar", scalar::attention}, false},
#ifdef LOWBIT_HAS_AVX2
    {{"avx2", "avx2", avx2::attention}, false},
#endif
#ifdef LOWBIT_HAS_AVX512
    {{"avx512", "avx512", avx512::attention}, false},
#endif
#ifdef LOWBIT_HAS_AMX
    {{"amx", "amx", amx::attention}, true},
#endif
};

}  // namespace lowbit

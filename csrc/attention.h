// Attention: for each batch, head and query
//
//   s[k] = cap(scale sum_d query[d] key[k][d]) + mask[k]
//   y    = sum_k w[k] value[k] / (sum_k w[k] + w[sink])      with w = exp(s - max s)
//
// cap(x) = c tanh(x / c). The sink of a head is the score of a key without a value. Both are
// optional. Operands and results are float32, or bfloat16, which is converted when it is read; y is
// rounded once, to the nearest, ties to even.
//
// On amx queries (times scale), keys, values and w are rounded to bfloat16, subnormal numbers to
// zero; products are exact and all sums and the denominator float32. The other targets compute in
// float32 throughout. They take keys in blocks (online softmax): the accumulators are multiplied by
// a correction factor if a later block has a larger s. They compute up to 7 queries, and heads of
// more than 512 numbers, one by one, and all else in tasks of up to 128 successive queries of a
// head, which add in another order. The result of a query depends only on its own row and, in
// float32, on whether the call has fewer than 8 queries. Any number of threads gives the same bits.
//
// A masked key has w = 0. A query without visible keys has y = 0, as in PyTorch. The float32
// targets do not read keys and values before the first and after the last that a query of the task
// sees, for example outside a sliding window. NaN in a query, a key or the mask makes y NaN if the
// key is visible. NaN or infinity in a value may make y NaN even if its key is masked, because 0
// times it is NaN. A sink of plus infinity makes y NaN; a sink of minus infinity has no effect.
#pragma once

#include <cstdint>

#include "target.h"

namespace lowbit {

// Numbers [batch][head][token][size], float or the bits of bfloat16. Numbers of a token are
// contiguous; the other steps are in numbers.
struct TokenRows {
  const void* data;
  int64_t batch_step, head_step, token_step;

  template <class T>
  LOWBIT_INLINE const T* at(int64_t batch, int64_t head, int64_t token) const {
    return static_cast<const T*>(data) + batch * batch_step + head * head_step + token * token_step;
  }
};

enum class MaskKind { none, boolean, additive, additive_bfloat16 };

LOWBIT_INLINE constexpr int64_t mask_bytes(MaskKind kind) {
  return kind == MaskKind::additive ? 4 : kind == MaskKind::additive_bfloat16 ? 2 : 1;
}

// [batch][head][query][key], keys contiguous; steps are in bytes. Boolean: bytes, 0 for a masked
// key. Additive: numbers; minus infinity masks a key. A number below -1e38, such as the least
// number of a type, masks a key if the query sees another key.
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
  void* y;                          // [batch][queries][heads][value_size], contiguous
  int64_t batch, heads, key_heads;  // heads / key_heads successive heads share a key head
  int64_t queries, keys, size, value_size;
  float scale;
  float cap;           // 0 for none
  const float* sinks;  // [heads], or null
  bool causal;         // query i sees keys 0 … i only
  bool bfloat16;       // query, key, value and y are, else float32
  int64_t window = 0;  // query i sees keys i - window … i + window only; 0: all
};

// Several sequences in the same matrices. The tokens of sequence i are the rows from starts[i] on,
// and attend only to their own sequence. Few queries are computed like many. All targets give the
// same bits, independent of other sequences: a score is one chain of fused multiply-adds, and so is
// a number of y.
struct SequenceAttention {
  Attention each;         // float32, batch 1; of all rows; queries and keys are those of a sequence
  const int64_t* starts;  // [sequences + 1]
  const int64_t* places;  // [rows] where a mask is: the first token's is where its mask begins
  int64_t sequences;
};

// A range of key heads with a range of their queries, in blocks of 32, head after head.
struct AttentionTask {
  static constexpr int64_t block_queries = 32;

  int64_t batch, first_key_head, last_key_head, first_block, last_block;
};

namespace scalar {
void attention(const Attention& op);
void sequence_attention(const SequenceAttention& all);
}  // namespace scalar
namespace avx2 {
void attention(const Attention& op);
void sequence_attention(const SequenceAttention& all);
}  // namespace avx2
namespace avx512 {
void attention(const Attention& op);
void sequence_attention(const SequenceAttention& all);
}  // namespace avx512
namespace amx {
void attention(const Attention& op);
void attend(const Attention& op, const AttentionTask& task);
}  // namespace amx

struct AttentionTarget : Target<void(const Attention&)> {
  bool tiles;  // operands are rounded to bfloat16; they come in float32, without a cap or sinks
};

inline constexpr AttentionTarget attention_targets[] = {
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

// Numbers that a head of a sequence may have.
inline constexpr int64_t most_head = 512;
inline constexpr Target<void(const SequenceAttention&)> sequence_attention_targets[] = {
    {"scalar", "scalar", scalar::sequence_attention},
#ifdef LOWBIT_HAS_AVX2
    {"avx2", "avx2", avx2::sequence_attention},
#endif
#ifdef LOWBIT_HAS_AVX512
    {"avx512", "avx512", avx512::sequence_attention},
#endif
};

}  // namespace lowbit

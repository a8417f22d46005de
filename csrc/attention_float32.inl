// attention.h in float32, a query of a head after the other: for the few queries of a decoding
// step, which do little more than read keys and values once. The including file defines the Isa
// and names it in LOWBIT_ISA; its `load` and `store` take the first n numbers of a vector, none or
// all of them where n is beyond, and load zeros in the place of the others.
//
// Keys are taken in blocks, sums so far being scaled down where a later block holds a larger score.
//
// Nothing from the standard library is called here (see quantize_rows.inl).

#include "attention.h"
#include "exponential.inl"
#include "parallel.h"

namespace lowbit::LOWBIT_ISA {
namespace {

constexpr int64_t lanes = sizeof(Number) / sizeof(float), block_keys = 256, most_columns = 4;
constexpr int64_t ns_per_thread = 8000;  // less than this is done sooner by one thread alone
constexpr float minus_infinity = -__builtin_inff();

float dot(const float* a, const float* b, int64_t n) {
  Number sum{};
  for (int64_t i = 0; i < n; i += lanes) {
    sum = Isa::fma(Isa::load(a + i, n - i), Isa::load(b + i, n - i), sum);
  }
  return Isa::sum(sum);
}

// What is added to the score of a key.
float added(MaskKind kind, const uint8_t* mask, int64_t key) {
  if (kind == MaskKind::none) return 0.0f;
  if (kind == MaskKind::boolean) return mask[key] ? 0.0f : minus_infinity;
  float number;
  __builtin_memcpy(&number, mask + key * static_cast<int64_t>(sizeof number), sizeof number);
  return number;
}

// Scores become weights, minus infinity becoming 0. Returns their sum.
float weigh(float* scores, int64_t n, float largest) {
  // Minus infinity cannot be subtracted from itself.
  const Number shift = Number{} + (largest == minus_infinity ? 0.0f : largest);
  constexpr float end = 87.0f;  // exp(-87) no longer counts
  Number total{};
  for (int64_t i = 0; i < n; i += lanes) {
    Number u;
    __builtin_memcpy(&u, scores + i, sizeof u);
    u = shift - u;
    const Number weight = exp_minus(u < end ? u : Number{} + end);
    // NaN is not less than anything, and differs from itself.
    u = u != u ? u : (u < end ? weight : Number{});
    __builtin_memcpy(scores + i, &u, sizeof u);
    total += u;
  }
  return Isa::sum(total);
}

// y = carried y + sum_k weights[k] values[k], `columns` vectors of them, the last of which may be
// cut.
template <int64_t columns>
void add_values(const float* values, int64_t step, const float* weights, int64_t keys, float carried,
                float* y, int64_t n) {
  Number sums[columns];
  for (int64_t c = 0; c < columns; ++c) sums[c] = Isa::load(y + c * lanes, n - c * lanes) * carried;
  for (int64_t k = 0; k < keys; ++k, values += step) {
    const Number weight = Number{} + weights[k];
#pragma GCC unroll 4
    for (int64_t c = 0; c < columns; ++c) {
      sums[c] = Isa::fma(weight, Isa::load(values + c * lanes, n - c * lanes), sums[c]);
    }
  }
  for (int64_t c = 0; c < columns; ++c) Isa::store(y + c * lanes, sums[c], n - c * lanes);
}

void attend(const Attention& op, int64_t batch, int64_t head, int64_t query) {
  const int64_t key_head = head / (op.heads / op.key_heads);
  const int64_t keys = op.causal && query + 1 < op.keys ? query + 1 : op.keys;
  const float* q = op.query.at(batch, head, query);
  const bool masked = op.mask.kind != MaskKind::none;
  const uint8_t* mask = masked ? op.mask.at(batch, head, query) : nullptr;
  float* y = op.y + ((batch * op.queries + query) * op.heads + head) * op.value_size;
  for (int64_t d = 0; d < op.value_size; ++d) y[d] = 0.0f;
  float largest = minus_infinity, total = 0.0f;
  for (int64_t first = 0; first < keys; first += block_keys) {
    alignas(64) float scores[block_keys];
    const int64_t there = keys - first < block_keys ? keys - first : block_keys;
    const float before = largest;
    int64_t k = 0;
    for (; k < there; ++k) {
      const float score = dot(q, op.key.at(batch, key_head, first + k), op.size) * op.scale;
      scores[k] = score + added(op.mask.kind, mask, first + k);
      largest = scores[k] > largest ? scores[k] : largest;
    }
    for (; k % lanes; ++k) scores[k] = minus_infinity;
    const float sum = weigh(scores, k, largest);
    Number carried = Number{} + (largest - before);
    carried = exp_minus(carried < 87.0f ? carried : Number{} + 87.0f);
    const float kept = before == largest ? 1.0f : before == minus_infinity ? 0.0f : carried[0];
    total = total * kept + sum;
    const float* values = op.value.at(batch, key_head, first);
    for (int64_t d = 0; d < op.value_size; d += most_columns * lanes) {
      const int64_t n = op.value_size - d;
      const auto add = n > 3 * lanes   ? add_values<4>
                       : n > 2 * lanes ? add_values<3>
                       : n > lanes     ? add_values<2>
                                       : add_values<1>;
      add(values + d, op.value.token_step, scores, there, kept, y + d, n);
    }
  }
  const float inverse = total == 0.0f ? 0.0f : 1.0f / total;
  for (int64_t d = 0; d < op.value_size; ++d) y[d] *= inverse;
}

}  // namespace

void attention(const Attention& op) {
  const int64_t ns = 50 + op.keys * (op.size + op.value_size) / 8;
  const int64_t grain = ns < ns_per_thread ? ns_per_thread / ns : 1;
  parallel_for(0, op.batch * op.queries * op.heads, grain, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      attend(op, i / op.heads / op.queries, i % op.heads, i / op.heads % op.queries);
    }
  });
}

}  // namespace lowbit::LOWBIT_ISA

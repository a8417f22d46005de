// attention.h in float32. The few queries of a decoding step do little more than read keys and
// values once: they are taken one by one, numbers of a head in the lanes. Many are taken in blocks,
// keys, and then values' numbers, in the lanes: each load serves a block's queries.
//
// The including file defines the Isa and names it in LOWBIT_ISA; its `load` and `store` take the
// first n numbers of a vector, none or all of them where n is beyond, and load zeros in the place
// of the others; `registers` is how many vectors the processor holds.
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
constexpr int64_t ns_per_thread = 3000;  // less than this is done sooner by one thread alone
constexpr float minus_infinity = -__builtin_inff();

// (x + 0 would be an addition: it makes 0 of -0.)
Number broadcast(float x) { return x - Number{}; }

Number whole(const float* x) {
  Number v;
  __builtin_memcpy(&v, x, sizeof v);
  return v;
}

float dot(const float* a, const float* b, int64_t n) {
  Number sum{};
  for (int64_t i = 0; i < n; i += lanes) {
    sum = Isa::fma(Isa::load(a + i, n - i), Isa::load(b + i, n - i), sum);
  }
  return Isa::sum(sum);
}

constexpr int64_t keys_ahead = 16;

void ask_for(const float* x, int64_t n) {
  constexpr int64_t line = 64 / sizeof(float);
  for (int64_t i = 0; i < n; i += line) __builtin_prefetch(x + i);
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
    Number u = shift - whole(scores + i);
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
void add_values(const float* values, int64_t step, const float* weights, int64_t keys,
                float carried, float* y, int64_t n) {
  Number sums[columns];
  for (int64_t c = 0; c < columns; ++c) sums[c] = Isa::load(y + c * lanes, n - c * lanes) * carried;
  for (int64_t k = 0; k < keys; ++k, values += step) {
    const Number weight = broadcast(weights[k]);
#pragma GCC unroll 4
    for (int64_t c = 0; c < columns; ++c) {
      sums[c] = Isa::fma(weight, Isa::load(values + c * lanes, n - c * lanes), sums[c]);
    }
  }
  for (int64_t c = 0; c < columns; ++c) Isa::store(y + c * lanes, sums[c], n - c * lanes);
}

// What a sum is worth when a larger score has come.
float kept_of(float before, float largest) {
  Number fall = Number{} + (largest - before);
  fall = exp_minus(fall < 87.0f ? fall : Number{} + 87.0f);
  return before == largest ? 1.0f : before == minus_infinity ? 0.0f : fall[0];
}

// The first keys of a head. In a step of decoding all keys and values come from far: the weights of
// all layers have passed since they were read.
void ask_for_keys(const Attention& op, int64_t batch, int64_t head) {
  const int64_t key_head = head / (op.heads / op.key_heads);
  for (int64_t k = 0; k < keys_ahead && k < op.keys; ++k) {
    ask_for(op.key.at(batch, key_head, k), op.size);
  }
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
      if (first + k + keys_ahead < keys) {
        ask_for(op.key.at(batch, key_head, first + k + keys_ahead), op.size);
      }
      ask_for(op.value.at(batch, key_head, first + k), op.value_size);
      const float score = dot(q, op.key.at(batch, key_head, first + k), op.size) * op.scale;
      scores[k] = score + added(op.mask.kind, mask, first + k);
      largest = scores[k] > largest ? scores[k] : largest;
    }
    for (; k % lanes; ++k) scores[k] = minus_infinity;
    const float sum = weigh(scores, k, largest);
    const float kept = kept_of(before, largest);
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

constexpr int rows = Isa::registers / 4;  // two vectors each of the sums of so many queries
constexpr int64_t many_queries = 8, task_queries = 128, most_numbers = 1 << 14;

// scores[r][…] = queries[r] · key, for so many vectors of keys; keys[d][…] are `step` apart.
template <int vectors>
void multiply_keys(const float* const (&queries)[rows], int64_t size, const float* keys,
                   int64_t step, float* scores) {
  Number sums[rows][vectors] = {};
  for (int64_t d = 0; d < size; ++d, keys += step) {
    Number key[vectors];
    for (int v = 0; v < vectors; ++v) key[v] = whole(keys + v * lanes);
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const Number q = broadcast(queries[r][d]);
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) sums[r][v] = Isa::fma(q, key[v], sums[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) __builtin_memcpy(scores + r * block_keys, sums[r], sizeof sums[r]);
}

// y[r] = kept[r] y[r] + sum_k weights[r][k] values[k], in the first n numbers of so many vectors.
template <int vectors>
void multiply_values(const float* values, int64_t step, const float* const (&weights)[rows],
                     int64_t keys, const float (&kept)[rows], float* const (&y)[rows], int64_t n) {
  Number sums[rows][vectors];
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) {
      sums[r][v] = Isa::load(y[r] + v * lanes, n - v * lanes) * kept[r];
    }
  }
  for (int64_t k = 0; k < keys; ++k, values += step) {
    Number value[vectors];
    for (int v = 0; v < vectors; ++v) value[v] = whole(values + v * lanes);
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const Number weight = broadcast(weights[r][k]);
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) sums[r][v] = Isa::fma(weight, value[v], sums[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) Isa::store(y[r] + v * lanes, sums[r][v], n - v * lanes);
  }
}

// Scaled and masked, minus infinity from key `seen` on; returns the largest of `end`.
template <MaskKind kind>
float mask_scores(float* scores, int64_t seen, int64_t end, float scale, const uint8_t* mask) {
  for (int64_t k = 0; k < seen; ++k) scores[k] = scores[k] * scale + added(kind, mask, k);
  for (int64_t k = seen < 0 ? 0 : seen; k < end; ++k) scores[k] = minus_infinity;
  Number top = Number{} + minus_infinity;
  for (int64_t k = 0; k < end; k += lanes) {
    const Number score = whole(scores + k);
    top = score > top ? score : top;
  }
  float largest = top[0];
  for (int64_t i = 1; i < lanes; ++i) largest = top[i] > largest ? top[i] : largest;
  return largest;
}

struct State {
  float largest = minus_infinity, total = 0.0f;
};

// `there` keys from `first` on, as blocks of queries read them again and again.
struct Block {
  int64_t first, there, end;
  const float* keys;    // transposed, [size][end]
  const float* values;  // [there][value_end]
  int64_t value_end;
};

// One block of queries and of keys. Where there are fewer queries than a block has, the last one is
// computed more than once.
void attend_block(const Attention& op, int64_t batch, int64_t head, int64_t query, int64_t count,
                  State* states, const Block& block) {
  const int64_t first = block.first, there = block.there, end = block.end;
  const float* keys = block.keys;
  const float *queries[rows], *weights[rows];
  float *y[rows], kept[rows];
  alignas(64) float scores[rows * block_keys];
  for (int r = 0; r < rows; ++r) {
    const int64_t own = r < count ? r : count - 1;
    queries[r] = op.query.at(batch, head, query + own);
    weights[r] = scores + own * block_keys;
    y[r] = op.y + ((batch * op.queries + query + own) * op.heads + head) * op.value_size;
  }
  int64_t k = 0;
  for (; k + 2 * lanes <= end; k += 2 * lanes) {
    multiply_keys<2>(queries, op.size, keys + k, end, scores + k);
  }
  if (k < end) multiply_keys<1>(queries, op.size, keys + k, end, scores + k);
  const MaskKind kind = op.mask.kind;
  const int64_t item = kind == MaskKind::boolean ? 1 : sizeof(float);
  const auto masked = kind == MaskKind::none      ? mask_scores<MaskKind::none>
                      : kind == MaskKind::boolean ? mask_scores<MaskKind::boolean>
                                                  : mask_scores<MaskKind::additive>;
  for (int64_t r = 0; r < count; ++r) {
    const int64_t below = query + r + 1 - first;
    const int64_t seen = op.causal && below < there ? below : there;
    const uint8_t* mask =
        kind == MaskKind::none ? nullptr : op.mask.at(batch, head, query + r) + first * item;
    State& state = states[r];
    const float before = state.largest;
    const float top = masked(scores + r * block_keys, seen, end, op.scale, mask);
    state.largest = top > before ? top : before;
    kept[r] = kept_of(before, state.largest);
    state.total = state.total * kept[r] + weigh(scores + r * block_keys, end, state.largest);
  }
  for (int64_t r = count; r < rows; ++r) kept[r] = kept[count - 1];
  for (int64_t d = 0; d < op.value_size; d += 2 * lanes) {
    const int64_t n = op.value_size - d;
    const auto multiply = n > lanes ? multiply_values<2> : multiply_values<1>;
    multiply(block.values + d, block.value_end, weights, there, kept, y, n);
    for (float*& row : y) row += 2 * lanes;
  }
}

// Successive queries of one head, at most task_queries.
void attend_many(const Attention& op, int64_t batch, int64_t head, int64_t query, int64_t count) {
  State states[task_queries];
  alignas(64) float transposed[most_numbers], values[most_numbers];
  const int64_t value_end = (op.value_size + lanes - 1) / lanes * lanes;
  const int64_t size = op.size < value_end ? value_end : op.size;
  const int64_t fit = most_numbers / (size + 1) / lanes * lanes;
  const int64_t most = fit < block_keys ? fit : block_keys;
  const int64_t key_head = head / (op.heads / op.key_heads);
  float* y = op.y + ((batch * op.queries + query) * op.heads + head) * op.value_size;
  for (int64_t q = 0; q < count; ++q) {
    for (int64_t d = 0; d < op.value_size; ++d) y[q * op.heads * op.value_size + d] = 0.0f;
  }
  const int64_t keys = op.causal && query + count < op.keys ? query + count : op.keys;
  for (int64_t first = 0; first < keys; first += most) {
    const int64_t there = keys - first < most ? keys - first : most;
    const int64_t end = (there + lanes - 1) / lanes * lanes;
    for (int64_t k = 0; k < end; ++k) {
      const float* key = k < there ? op.key.at(batch, key_head, first + k) : nullptr;
      for (int64_t d = 0; d < op.size; ++d) transposed[d * end + k] = key ? key[d] : 0.0f;
    }
    for (int64_t k = 0; k < there; ++k) {
      const float* value = op.value.at(batch, key_head, first + k);
      for (int64_t d = 0; d < op.value_size; ++d) values[k * value_end + d] = value[d];
      for (int64_t d = op.value_size; d < value_end; ++d) values[k * value_end + d] = 0.0f;
    }
    const Block block{.first = first,
                      .there = there,
                      .end = end,
                      .keys = transposed,
                      .values = values,
                      .value_end = value_end};
    for (int64_t q = 0; q < count; q += rows) {
      const int64_t n = count - q < rows ? count - q : rows;
      if (op.causal && first >= query + q + n) continue;
      attend_block(op, batch, head, query + q, n, states + q, block);
    }
  }
  for (int64_t q = 0; q < count; ++q, y += op.heads * op.value_size) {
    const float total = states[q].total, inverse = total == 0.0f ? 0.0f : 1.0f / total;
    for (int64_t d = 0; d < op.value_size; ++d) y[d] *= inverse;
  }
}

}  // namespace

void attention(const Attention& op) {
  const int64_t size = op.size < op.value_size ? op.value_size : op.size;
  if (op.queries >= many_queries && size < most_numbers / lanes / 2) {
    const int64_t parts = (op.queries + task_queries - 1) / task_queries;
    const int64_t macs = op.queries / parts * op.keys * (op.size + op.value_size);
    const int64_t grain = 1 + ns_per_thread * (2 * lanes) / (macs + 1);
    parallel_for(0, op.batch * op.heads * parts, grain, [&](int64_t begin, int64_t last) {
      for (int64_t i = begin; i < last; ++i) {
        const int64_t query = i % parts * task_queries, left = op.queries - query;
        attend_many(op, i / parts / op.heads, i / parts % op.heads, query,
                    left < task_queries ? left : task_queries);
      }
    });
    return;
  }
  const int64_t ns = 50 + op.keys * (op.size + op.value_size) / 8;
  const int64_t grain = ns < ns_per_thread ? ns_per_thread / ns : 1;
  parallel_for(0, op.batch * op.queries * op.heads, grain, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      if (i + 1 < last) ask_for_keys(op, (i + 1) / op.heads / op.queries, (i + 1) % op.heads);
      attend(op, i / op.heads / op.queries, i % op.heads, i / op.heads % op.queries);
    }
  });
}

}  // namespace lowbit::LOWBIT_ISA

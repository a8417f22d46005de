// attention.h in float32. The few queries of a decoding step do little more than read keys and
// values once: they are taken one by one, numbers of a head in the lanes. Many are taken in blocks,
// keys, and then values' numbers, in the lanes: each load serves a block's queries.
//
// The including file defines the Isa and names it in LOWBIT_ISA (floats.inl).
//
// T is float or uint16_t, the bits of bfloat16: every number is widened when it is read, so that
// both take the same steps.
//
// Nothing from the standard library is called here (see quantize_rows.inl).

#include "attention.h"
#include "bfloat16.inl"
#include "floats.inl"
#include "parallel.h"
#include "scratch.h"
#include "tanh.inl"

namespace lowbit::LOWBIT_ISA {
namespace {

constexpr int64_t block_keys = 256, most_columns = 4;
constexpr int64_t ns_per_thread = 3000;  // less than this is done sooner by one thread alone
constexpr float minus_infinity = -__builtin_inff();

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t larger(int64_t a, int64_t b) { return a < b ? b : a; }
int64_t up_to(int64_t multiple, int64_t n) { return (n + multiple - 1) / multiple * multiple; }

Number load(const float* x, int64_t n) { return Isa::load(x, n); }

Number load(const uint16_t* x, int64_t n) {
  using Halves = uint16_t __attribute__((vector_size(lanes * sizeof(uint16_t))));
  Halves bits{};
  if (n >= lanes) {
    __builtin_memcpy(&bits, x, sizeof bits);
  } else {
    for (int64_t i = 0; i < n; ++i) bits[i] = x[i];
  }
  return reinterpret_cast<Number>(__builtin_convertvector(bits, Isa::Words) << 16);
}

// Where n results are added up in float32: y, or memory of its own.
float* accumulators(float* y, int64_t) { return y; }
float* accumulators(uint16_t*, int64_t n) {
  return static_cast<float*>(call_scratch(n * static_cast<int64_t>(sizeof(float))));
}

// y = scale x; x is overwritten.
void scaled(float* x, float scale, int64_t n, float* y) {
  for (int64_t d = 0; d < n; ++d) y[d] = x[d] * scale;
}
void scaled(float* x, float scale, int64_t n, uint16_t* y) {
  scaled(x, scale, n, x);
  narrow(x, n, y);
}

template <class T>
float dot(const T* a, const T* b, int64_t n) {
  Number sum{};
  for (int64_t i = 0; i < n; i += lanes)
    sum = Isa::fma(load(a + i, n - i), load(b + i, n - i), sum);
  return Isa::sum(sum);
}

constexpr int64_t keys_ahead = 16;

template <class T>
void prefetch(const T* x, int64_t n) {
  constexpr int64_t line = 64 / sizeof(T);
  for (int64_t i = 0; i < n; i += line) __builtin_prefetch(x + i);
}

// What is added to the score of a key.
float added(MaskKind kind, const uint8_t* mask, int64_t key) {
  if (kind == MaskKind::none) return 0.0f;
  if (kind == MaskKind::boolean) return mask[key] ? 0.0f : minus_infinity;
  uint32_t bits = 0;
  if (kind == MaskKind::additive) {
    __builtin_memcpy(&bits, mask + key * 4, 4);
  } else {
    uint16_t upper;
    __builtin_memcpy(&upper, mask + key * 2, 2);
    bits = static_cast<uint32_t>(upper) << 16;
  }
  float number;
  __builtin_memcpy(&number, &bits, sizeof number);
  return number;
}

// Keys from `first` on, before `last`.
struct Keys {
  int64_t first, last;
};

// From the first to the last that a query sees. If it sees none, first is op.keys and last 0, so
// that a union with the keys of other queries is theirs.
Keys seen_keys(const Attention& op, int64_t batch, int64_t head, int64_t query) {
  Keys all{0, op.causal ? smaller(op.keys, query + 1) : op.keys};
  if (op.window) {
    all = {larger(query - op.window, 0), smaller(all.last, query + op.window + 1)};
  }
  const Keys none{op.keys, 0};
  if (all.first >= all.last) return none;
  if (op.mask.kind == MaskKind::none) return all;
  const uint8_t* mask = op.mask.at(batch, head, query);
  const auto forbidden = [&](int64_t key) { return added(op.mask.kind, mask, key) < -1e38f; };
  Keys seen = all;
  while (seen.first < seen.last && forbidden(seen.last - 1)) --seen.last;
  while (seen.first < seen.last && forbidden(seen.first)) ++seen.first;
  if (seen.first < seen.last) return seen;
  // Of keys that all have the least number of a type, each counts as much as the others.
  return op.mask.kind == MaskKind::boolean ? none : all;
}

// Scores become weights, minus infinity becoming 0. Returns their sum.
float weigh(float* scores, int64_t n, float largest) {
  // Minus infinity cannot be subtracted from itself.
  const Number shift = Number{} + (largest == minus_infinity ? 0.0f : largest);
  constexpr float end = 87.0f;  // exp(-87) no longer counts
  Sum16 total;
#pragma GCC unroll 4
  for (int64_t i = 0; i < n; i += lanes) {
    Number u = shift - whole(scores + i);
    const Number weight = exp_minus(u < end ? u : Number{} + end);
    // NaN is not less than anything, and differs from itself.
    u = u != u ? u : (u < end ? weight : Number{});
    put(scores + i, u);
    total.add(i, u);
  }
  return total.total();
}

// n scores, up to a whole vector.
void cap_scores(float* scores, int64_t n, float cap) {
  if (cap == 0.0f) return;
  for (int64_t k = 0; k < n; k += lanes) put(scores + k, tanh_of(whole(scores + k) / cap) * cap);
}

template <MaskKind kind>
void mask_scores(float* scores, int64_t n, const uint8_t* mask) {
  for (int64_t k = 0; k < n; ++k) {
    // (NaN less infinity would be NaN.)
    if constexpr (kind == MaskKind::boolean) scores[k] = mask[k] ? scores[k] : minus_infinity;
    if constexpr (kind != MaskKind::boolean) scores[k] += added(kind, mask, k);
  }
}

void mask_scores(MaskKind kind, float* scores, int64_t n, const uint8_t* mask) {
  switch (kind) {
    case MaskKind::none: return;
    case MaskKind::boolean: return mask_scores<MaskKind::boolean>(scores, n, mask);
    case MaskKind::additive: return mask_scores<MaskKind::additive>(scores, n, mask);
    case MaskKind::additive_bfloat16:
      return mask_scores<MaskKind::additive_bfloat16>(scores, n, mask);
  }
}

// Of n scores, a multiple of a vector.
float largest_of(const float* scores, int64_t n) {
  Number top = Number{} + minus_infinity;
  for (int64_t k = 0; k < n; k += lanes) {
    const Number score = whole(scores + k);
    top = score > top ? score : top;
  }
  float left[lanes];
  put(left, top);
#pragma GCC unroll 4
  for (int64_t half = lanes / 2; half > 0; half /= 2) {
    for (int64_t i = 0; i < half; ++i)
      left[i] = left[i] > left[i + half] ? left[i] : left[i + half];
  }
  return left[0];
}

// y = kept y + sum_k weights[k] values[k], `columns` vectors of them, the last of which may be cut.
template <int64_t columns, class T>
void add_values(const T* values, int64_t step, const float* weights, int64_t keys, float kept,
                float* y, int64_t n) {
  Number sums[columns];
  for (int64_t c = 0; c < columns; ++c) sums[c] = Isa::load(y + c * lanes, n - c * lanes) * kept;
  for (int64_t k = 0; k < keys; ++k, values += step) {
    const Number weight = broadcast(weights[k]);
#pragma GCC unroll 4
    for (int64_t c = 0; c < columns; ++c) {
      sums[c] = Isa::fma(weight, load(values + c * lanes, n - c * lanes), sums[c]);
    }
  }
  for (int64_t c = 0; c < columns; ++c) Isa::store(y + c * lanes, sums[c], n - c * lanes);
}

// What accumulators are multiplied by when a larger score has come.
float correction(float before, float largest) {
  if (before == largest) return 1.0f;
  if (before == minus_infinity) return 0.0f;
  const Number fall = Number{} + (largest - before);
  return exp_minus(fall < 87.0f ? fall : Number{} + 87.0f)[0];
}

// A query's online softmax: the largest score so far and the sum of weights. A sink is the first
// score.
struct State {
  float largest = minus_infinity, total = 0.0f;

  State() = default;
  State(const Attention& op, int64_t head) {
    if (!op.sinks || op.sinks[head] == minus_infinity) return;
    largest = op.sinks[head];
    total = 1.0f + (largest - largest);  // NaN where it is infinite
  }

  // Takes n more scores, a multiple of a vector, which become weights. Returns the correction
  // factor of sums so far.
  float take(float* scores, int64_t n) {
    const float before = largest, top = largest_of(scores, n);
    largest = top > before ? top : before;
    const float kept = correction(before, largest);
    total = total * kept + weigh(scores, n, largest);
    return kept;
  }

  float inverse() const { return total == 0.0f ? 0.0f : 1.0f / total; }
};

// The first keys of a head. In a step of decoding no keys and values are in a cache: the weights of
// all layers have passed since they were read.
template <class T>
void prefetch_keys(const Attention& op, int64_t batch, int64_t head) {
  const int64_t key_head = head / (op.heads / op.key_heads);
  for (int64_t k = 0; k < keys_ahead && k < op.keys; ++k) {
    prefetch(op.key.at<T>(batch, key_head, k), op.size);
  }
}

// One query; `sums` has room for its result in float32, and may be y itself.
template <class T>
void attend(const Attention& op, int64_t batch, int64_t head, int64_t query, float* sums, T* y) {
  const int64_t key_head = head / (op.heads / op.key_heads);
  const Keys seen = seen_keys(op, batch, head, query);
  const MaskKind kind = op.mask.kind;
  const T* q = op.query.at<T>(batch, head, query);
  for (int64_t d = 0; d < op.value_size; ++d) sums[d] = 0.0f;
  State state(op, head);
  for (int64_t first = seen.first; first < seen.last; first += block_keys) {
    alignas(64) float scores[block_keys];
    const int64_t there = smaller(seen.last - first, block_keys), end = up_to(lanes, there);
    for (int64_t k = 0; k < there; ++k) {
      if (first + k + keys_ahead < seen.last) {
        prefetch(op.key.at<T>(batch, key_head, first + k + keys_ahead), op.size);
      }
      prefetch(op.value.at<T>(batch, key_head, first + k), op.value_size);
      scores[k] = dot(q, op.key.at<T>(batch, key_head, first + k), op.size) * op.scale;
    }
    for (int64_t k = there; k < end; ++k) scores[k] = 0.0f;
    cap_scores(scores, end, op.cap);
    if (kind != MaskKind::none) {
      mask_scores(kind, scores, there, op.mask.at(batch, head, query) + first * mask_bytes(kind));
    }
    for (int64_t k = there; k < end; ++k) scores[k] = minus_infinity;
    const float kept = state.take(scores, end);
    const T* values = op.value.at<T>(batch, key_head, first);
    for (int64_t d = 0; d < op.value_size; d += most_columns * lanes) {
      const int64_t n = op.value_size - d;
      const auto add = n > 3 * lanes   ? add_values<4, T>
                       : n > 2 * lanes ? add_values<3, T>
                       : n > lanes     ? add_values<2, T>
                                       : add_values<1, T>;
      add(values + d, op.value.token_step, scores, there, kept, sums + d, n);
    }
  }
  scaled(sums, state.inverse(), op.value_size, y);
}

// Many queries. A panel is two vectors of keys, or of values' numbers: [size][panel] and
// [keys][panel], read one after the other by as many queries as accumulators fit in registers.
constexpr int most_rows = Isa::registers > 16 ? 8 : 6;
constexpr int64_t many_queries = 8, task_queries = 128, panel = 2 * lanes;
constexpr int64_t widest_panel = 32;       // of all instruction sets: keys are cut alike on each
constexpr int64_t most_numbers = 1 << 14;  // of keys, of values and of accumulators
static_assert(most_head == most_numbers / widest_panel);

// Numbers that a key, a value or a query's accumulators take at most.
int64_t widest(const Attention& op) {
  return larger(larger(op.size, up_to(widest_panel, op.value_size)), 1);
}

// Those of a task.
int64_t most_queries(const Attention& op) {
  return smaller(task_queries, most_numbers / widest(op));
}

// scores[r][…] = queries[r] · key, for so many vectors of a panel of keys.
template <int rows, int vectors>
void multiply_keys(const float* queries, int64_t size, const float* keys, float* scores) {
  Number sums[rows][vectors] = {};
  for (int64_t d = 0; d < size; ++d, keys += panel) {
    Number key[vectors];
    for (int v = 0; v < vectors; ++v) key[v] = whole(keys + v * lanes);
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const Number q = broadcast(queries[r * size + d]);
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) sums[r][v] = Isa::fma(q, key[v], sums[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) __builtin_memcpy(scores + r * block_keys, sums[r], sizeof sums[r]);
}

// y[r] = kept[r] y[r] + sum_k weights[r][k] values[k], in so many vectors of a panel of values.
template <int rows, int vectors>
void multiply_values(const float* values, const float* weights, int64_t keys, const float* kept,
                     float* const* y) {
  Number sums[rows][vectors];
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) sums[r][v] = whole(y[r] + v * lanes) * kept[r];
  }
  for (int64_t k = 0; k < keys; ++k, values += panel) {
    Number value[vectors];
    for (int v = 0; v < vectors; ++v) value[v] = whole(values + v * lanes);
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const Number weight = broadcast(weights[r * block_keys + k]);
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) sums[r][v] = Isa::fma(weight, value[v], sums[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) put(y[r] + v * lanes, sums[r][v]);
  }
}

// Some keys as blocks of queries read them again and again. Panels before that of the first visible
// key are not used.
struct Block {
  Keys keys;
  const float* transposed;  // panels of [size][panel]
  const float* values;      // panels of [keys][panel]
};

// So many queries of a head from `query` on, `rows` in all: the last is computed more than once
// where there are fewer. `sums` are `step` apart.
template <class T, int rows>
void attend_block(const Attention& op, int64_t batch, int64_t head, int64_t query, int64_t count,
                  const Keys* seen, State* states, float* sums, int64_t step, const Block& block) {
  const int64_t first = block.keys.first, there = block.keys.last - first;
  Keys any{there, 0};
  for (int64_t r = 0; r < count; ++r) {
    any.first = smaller(any.first, larger(seen[r].first - first, 0));
    any.last = larger(any.last, smaller(seen[r].last - first, there));
  }
  any.first = any.first / widest_panel * widest_panel;
  if (any.first >= any.last) return;
  const int64_t end = up_to(lanes, any.last);

  alignas(64) float scores[rows * block_keys], queries[rows * most_head];
  for (int64_t r = 0; r < rows; ++r) {
    const T* row = op.query.at<T>(batch, head, query + smaller(r, count - 1));
    for (int64_t d = 0; d < op.size; d += lanes) {
      const Number part = load(row + d, op.size - d) * op.scale;
      Isa::store(queries + r * op.size + d, part, op.size - d);
    }
  }
  for (int64_t k = any.first; k < end; k += panel) {
    const auto multiply = end - k > lanes ? multiply_keys<rows, 2> : multiply_keys<rows, 1>;
    multiply(queries, op.size, block.transposed + k * op.size, scores + k);
  }

  const MaskKind kind = op.mask.kind;
  float kept[rows], *y[rows];
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t own = smaller(r, count - 1);
    y[r] = sums + own * step;
    float* row = scores + r * block_keys;
    const int64_t from = smaller(larger(seen[own].first - first, any.first), end);
    const int64_t to = larger(smaller(seen[own].last - first, there), from);
    cap_scores(row + any.first, end - any.first, op.cap);
    if (kind != MaskKind::none) {
      const uint8_t* mask = op.mask.at(batch, head, query + own);
      mask_scores(kind, row + from, to - from, mask + (first + from) * mask_bytes(kind));
    }
    for (int64_t k = any.first; k < from; ++k) row[k] = minus_infinity;
    for (int64_t k = to; k < end; ++k) row[k] = minus_infinity;
    State state = states[own];
    kept[r] = state.take(row + any.first, end - any.first);
    if (r + 1 == rows || r + 1 < count) states[own] = state;
  }

  for (int64_t d = 0; d < op.value_size; d += panel) {
    const auto multiply = op.value_size - d > lanes ? multiply_values<rows, 2>  //
                                                    : multiply_values<rows, 1>;
    multiply(block.values + d * there + any.first * panel, scores + any.first, any.last - any.first,
             kept, y);
    for (float*& row : y) row += panel;
  }
}

// Successive queries of one head.
template <class T>
void attend_many(const Attention& op, int64_t batch, int64_t head, int64_t query, int64_t count) {
  Keys seen[task_queries], any{op.keys, 0};
  State states[task_queries];
  alignas(64) float transposed[most_numbers], values[most_numbers], sums[most_numbers];
  const int64_t value_end = up_to(panel, op.value_size);
  const int64_t fit = most_numbers / widest(op) / widest_panel * widest_panel;
  const int64_t most = smaller(fit, block_keys);
  const int64_t key_head = head / (op.heads / op.key_heads);
  for (int64_t q = 0; q < count; ++q) {
    states[q] = State(op, head);
    seen[q] = seen_keys(op, batch, head, query + q);
    any.first = smaller(any.first, seen[q].first);
    any.last = larger(any.last, seen[q].last);
  }
  for (int64_t i = 0; i < count * value_end; ++i) sums[i] = 0.0f;
  for (int64_t first = any.first / most * most; first < any.last; first += most) {
    // Keys before the first that a query sees are not read. Zeros stand for those of its panel.
    const int64_t there = smaller(any.last - first, most), unseen = larger(any.first - first, 0);
    const int64_t start = unseen / widest_panel * widest_panel;
    // Rows of a head lie far apart, which no prefetcher of a processor's sees.
    const auto prefetch_rows = [&](const TokenRows& rows, int64_t k, int64_t size) {
      for (int64_t i = k; i < smaller(k + lanes, op.keys - first); ++i) {
        prefetch(rows.at<T>(batch, key_head, first + i), size);
      }
    };
    for (int64_t k = start; k < there; k += lanes) {
      prefetch_rows(op.key, k + lanes, op.size);
      prefetch_rows(op.value, k, op.value_size);
      float* to = transposed + k / panel * panel * op.size + k % panel;
      for (int64_t d = 0; d < op.size; d += lanes) {
        Number square[lanes];
        for (int64_t i = 0; i < lanes; ++i) {
          const int64_t n = k + i >= unseen && k + i < there ? op.size - d : 0;
          square[i] =
              load(op.key.at<T>(batch, key_head, smaller(first + k + i, op.keys - 1)) + d, n);
        }
        Isa::transpose(square);
        for (int64_t i = 0; i < smaller(lanes, op.size - d); ++i)
          put(to + (d + i) * panel, square[i]);
      }
    }
    for (int64_t k = start; k < there; ++k) {
      const T* value = op.value.at<T>(batch, key_head, first + k);
      const int64_t n = k >= unseen ? op.value_size : 0;
      for (int64_t d = 0; d < value_end; d += lanes) {
        float* to = values + (d / panel * there + k) * panel + d % panel;
        put(to, load(value + d, n - d));
      }
    }
    const Block block{{first, first + there}, transposed, values};
    for (int64_t q = 0; q < count; q += most_rows) {
      const int64_t n = smaller(count - q, most_rows);
      const auto run = n > 4   ? attend_block<T, most_rows>
                       : n > 2 ? attend_block<T, 4>
                               : attend_block<T, 2>;
      run(op, batch, head, query + q, n, seen + q, states + q, sums + q * value_end, value_end,
          block);
    }
  }
  const int64_t step = op.heads * op.value_size;
  T* y = static_cast<T*>(op.y) + (batch * op.queries + query) * step + head * op.value_size;
  for (int64_t q = 0; q < count; ++q) {
    scaled(sums + q * value_end, states[q].inverse(), op.value_size, y + q * step);
  }
}

template <class T>
void attend_all(const Attention& op) {
  const int64_t size = widest(op);
  if (op.queries >= many_queries && size <= most_head) {
    const int64_t most = most_queries(op), parts = (op.queries + most - 1) / most;
    const int64_t macs = op.queries / parts * op.keys * (op.size + op.value_size);
    const int64_t grain = 1 + ns_per_thread * (2 * lanes) / (macs + 1);
    parallel_for(0, op.batch * op.heads * parts, grain, [&](int64_t begin, int64_t last) {
      for (int64_t i = begin; i < last; ++i) {
        const int64_t query = i % parts * most;
        attend_many<T>(op, i / parts / op.heads, i / parts % op.heads, query,
                       smaller(op.queries - query, most));
      }
    });
    return;
  }
  const int64_t rows = op.batch * op.queries * op.heads;
  T* y = static_cast<T*>(op.y);
  float* sums = accumulators(y, rows * op.value_size);
  const int64_t ns = 50 + op.keys * (op.size + op.value_size) / 8;
  const int64_t grain = ns < ns_per_thread ? ns_per_thread / ns : 1;
  parallel_for(0, rows, grain, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      if (i + 1 < last) prefetch_keys<T>(op, (i + 1) / op.heads / op.queries, (i + 1) % op.heads);
      attend(op, i / op.heads / op.queries, i % op.heads, i / op.heads % op.queries,
             sums + i * op.value_size, y + i * op.value_size);
    }
  });
}

// The sequence that starts at a row, as if it were alone.
Attention alone(const SequenceAttention& all, int64_t sequence) {
  Attention op = all.each;
  const int64_t first = all.starts[sequence];
  const auto from_first = [first](TokenRows rows) {
    rows.data = static_cast<const float*>(rows.data) + first * rows.token_step;
    return rows;
  };
  op.query = from_first(op.query);
  op.key = from_first(op.key);
  op.value = from_first(op.value);
  op.queries = op.keys = all.starts[sequence + 1] - first;
  op.y = static_cast<float*>(op.y) + first * op.heads * op.value_size;
  if (op.mask.kind != MaskKind::none) {
    const int64_t place = all.places[first];
    op.mask.data += place * (op.mask.query_step + mask_bytes(op.mask.kind));
  }
  return op;
}

}  // namespace

void attention(const Attention& op) {
  op.bfloat16 ? attend_all<uint16_t>(op) : attend_all<float>(op);
}

void sequence_attention(const SequenceAttention& all) {
  const Attention& each = all.each;
  const int64_t most = most_queries(each), tokens = all.starts[all.sequences];
  // Tasks before a sequence.
  int64_t* before = static_cast<int64_t*>(
      call_scratch((all.sequences + 1) * static_cast<int64_t>(sizeof(int64_t))));
  before[0] = 0;
  for (int64_t i = 0; i < all.sequences; ++i) {
    const int64_t parts = (all.starts[i + 1] - all.starts[i] + most - 1) / most;
    before[i + 1] = before[i] + parts * each.heads;
  }
  const int64_t tasks = before[all.sequences];
  if (tasks == 0) return;
  const int64_t macs =
      tokens / all.sequences * (each.size + each.value_size) * each.heads * tokens / tasks;
  const int64_t grain = 1 + ns_per_thread * (2 * lanes) / (macs + 1);
  parallel_for(0, tasks, grain, [&](int64_t begin, int64_t last) {
    int64_t sequence = 0;
    while (before[sequence + 1] <= begin) ++sequence;
    Attention op = alone(all, sequence);
    for (int64_t i = begin; i < last; ++i) {
      while (before[sequence + 1] <= i) op = alone(all, ++sequence);
      const int64_t parts = (op.queries + most - 1) / most, at = i - before[sequence];
      const int64_t query = at % parts * most;
      attend_many<float>(op, 0, at / parts, query, smaller(op.queries - query, most));
    }
  });
}

}  // namespace lowbit::LOWBIT_ISA

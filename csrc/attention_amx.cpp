// attention.h on AMX tiles, block of keys after block of keys:
//
//   scores   2 x 2 tiles of 16 queries x 16 keys, from queries [16][32 of size] as they lie and
//            keys in pairs along size, [16 pairs][16 keys][2]: a transposition of 32-bit pairs
//   weights  row by row: maximum, exponential, sum, rounded to tiles of [16 queries][32 keys]
//   sums     2 x 2 tiles of 16 queries x 16 of value_size, from weights as they lie and values in
//            pairs along keys, [16 pairs][16 of value_size][2]
//
// Everything but q, k, v and y lies in tiles of 1 KiB, one after the other.
//
// Nothing from the standard library is called here (see quantize_rows.inl).

#define LOWBIT_ISA amx

#include "attention.h"
#include "intrinsics.h"
#include "scratch.h"
#include "tiles.h"
#include "transpose_avx512.inl"

namespace lowbit::amx {
namespace {

using Floats = __m512;

constexpr int64_t block_queries = AttentionTask::block_queries, block_keys = 256;
constexpr int64_t lanes = 16, pairs = 2 * lanes;  // float32 and bfloat16 in a row of a tile
constexpr int64_t tile_floats = tile_bytes / sizeof(float);
constexpr float minus_infinity = -__builtin_inff();

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

int64_t divided(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The first n lanes, none or all of them where n is beyond.
__mmask16 first(int64_t n) {
  return static_cast<__mmask16>(n >= lanes ? 0xffffu : n <= 0 ? 0u : (1u << n) - 1);
}

// A task's memory. `steps` tiles hold 32 of size each, `columns` tiles 16 of value_size. Blocks are
// numbered key head by key head.
struct Space {
  int64_t steps, columns;
  uint8_t* query;    // [key heads][blocks][2][steps]
  uint8_t* key;      // [key heads][block_keys / 16][steps]
  uint8_t* value;    // [key heads][block_keys / 32][columns]
  float* scores;     // [2][block_keys / 16]
  uint8_t* weights;  // [2][block_keys / 32]
  float* sums;       // [key heads][blocks][2][columns]
  float* largest;    // [key heads][blocks][32], of the scores so far
  float* total;      // [key heads][blocks][32], of the weights

  Space(const Attention& op, int64_t key_heads, int64_t blocks)
      : steps(divided(op.size, pairs)), columns(2 * divided(op.value_size, pairs)) {
    const int64_t query_tiles = blocks * 2 * steps, sum_tiles = blocks * 2 * columns;
    const int64_t key_tiles = block_keys / lanes * steps;
    const int64_t value_tiles = block_keys / pairs * columns;
    constexpr int64_t score_tiles = 2 * block_keys / lanes, weight_tiles = score_tiles / 2;
    const int64_t tiles = key_heads * (query_tiles + key_tiles + value_tiles + sum_tiles);
    const int64_t rows = key_heads * blocks * block_queries;
    query = static_cast<uint8_t*>(task_scratch((tiles + score_tiles + weight_tiles) * tile_bytes +
                                               rows * 2 * static_cast<int64_t>(sizeof(float))));
    key = query + key_heads * query_tiles * tile_bytes;
    value = key + key_heads * key_tiles * tile_bytes;
    weights = value + key_heads * value_tiles * tile_bytes;
    scores = reinterpret_cast<float*>(weights + weight_tiles * tile_bytes);
    sums = scores + score_tiles * tile_floats;
    largest = sums + key_heads * sum_tiles * tile_floats;
    total = largest + rows;
    for (int64_t i = 0; i < rows; ++i) {
      largest[i] = minus_infinity;
      total[i] = 0.0f;
    }
  }

  uint8_t* keys_of(int64_t key_head) const {
    return key + key_head * (block_keys / lanes) * steps * tile_bytes;
  }
  uint8_t* values_of(int64_t key_head) const {
    return value + key_head * (block_keys / pairs) * columns * tile_bytes;
  }
};

// 16 of `low`, then 16 of `high`.
__m512i bfloat16s(Floats low, Floats high) {
  return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
}

// 32 numbers from `row` on, n of which are there and the others 0.
__m512i bfloat16_row(const float* row, int64_t n, float scale) {
  const Floats s = _mm512_set1_ps(scale);
  return bfloat16s(_mm512_maskz_loadu_ps(first(n), row) * s,
                   _mm512_maskz_loadu_ps(first(n - lanes), row + lanes) * s);
}

// Up to 16 tokens as tiles [16 tokens][32 of size]; those that are not there are 0.
void place_queries(const float* rows, int64_t token_step, int64_t tokens, int64_t size, float scale,
                   uint8_t* tiles) {
  for (int64_t d = 0; d < size; d += pairs, tiles += tile_bytes) {
    for (int64_t i = 0; i < tile_rows; ++i) {
      const int64_t n = i < tokens ? size - d : 0;
      _mm512_store_si512(tiles + i * tile_row_bytes,
                         bfloat16_row(rows + i * token_step + d, n, scale));
    }
  }
}

// Up to 16 tokens as tiles [16 pairs of size][16 tokens][2].
void place_keys(const float* rows, int64_t token_step, int64_t tokens, int64_t size,
                uint8_t* tiles) {
  for (int64_t d = 0; d < size; d += pairs, tiles += tile_bytes) {
    __m512i words[tile_rows];
#pragma GCC unroll 16
    for (int64_t i = 0; i < tile_rows; ++i) {
      words[i] = bfloat16_row(rows + i * token_step + d, i < tokens ? size - d : 0, 1.0f);
    }
    transpose(words);
#pragma GCC unroll 16
    for (int64_t i = 0; i < tile_rows; ++i) {
      _mm512_store_si512(tiles + i * tile_row_bytes, words[i]);
    }
  }
}

// Up to 32 tokens as tiles [16 pairs of tokens][16 of size][2].
void place_values(const float* rows, int64_t token_step, int64_t tokens, int64_t size,
                  int64_t columns, uint8_t* tiles) {
  alignas(64) uint16_t turns[pairs];
  for (int i = 0; i < lanes; ++i) {
    turns[2 * i] = static_cast<uint16_t>(i);
    turns[2 * i + 1] = static_cast<uint16_t>(i + lanes);
  }
  const __m512i by_turns = _mm512_load_si512(turns);
  for (int64_t i = 0; i < tile_rows; ++i, rows += 2 * token_step, tiles += tile_row_bytes) {
    for (int64_t c = 0; c < columns; ++c) {
      const int64_t n = size - c * lanes, left = tokens - 2 * i;
      const Floats even = _mm512_maskz_loadu_ps(first(left > 0 ? n : 0), rows + c * lanes);
      const Floats odd =
          _mm512_maskz_loadu_ps(first(left > 1 ? n : 0), rows + token_step + c * lanes);
      _mm512_store_si512(tiles + c * tile_bytes,
                         _mm512_permutexvar_epi16(by_turns, bfloat16s(even, odd)));
    }
  }
}

// out[R][2] = or, where it `adds`, += the products of R rows of `depth` tiles from a on with two
// columns of as many tiles from b on. The steps, in tiles, are those between rows, between columns
// and along depth.
struct Block {
  const uint8_t* a;
  int64_t a_row;
  const uint8_t* b;
  int64_t b_column, b_depth;
  int64_t depth;
  float* out;
  int64_t out_row;
};

template <int R, bool adds>
void multiply(const Block& block) {
  const int64_t a_row = block.a_row * tile_bytes, b_column = block.b_column * tile_bytes;
  float* below = block.out + block.out_row * tile_floats;
  if constexpr (adds) {
    _tile_loadd(0, block.out, tile_row_bytes);
    _tile_loadd(1, block.out + tile_floats, tile_row_bytes);
    if constexpr (R > 1) _tile_loadd(2, below, tile_row_bytes);
    if constexpr (R > 1) _tile_loadd(3, below + tile_floats, tile_row_bytes);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (R > 1) _tile_zero(2);
    if constexpr (R > 1) _tile_zero(3);
  }
  const uint8_t *a = block.a, *b = block.b;
  for (int64_t i = 0; i < block.depth; ++i, a += tile_bytes, b += block.b_depth * tile_bytes) {
    _tile_loadd(4, a, tile_row_bytes);
    _tile_loadd(6, b, tile_row_bytes);
    _tile_loadd(7, b + b_column, tile_row_bytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (R > 1) {
      _tile_loadd(5, a + a_row, tile_row_bytes);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, block.out, tile_row_bytes);
  _tile_stored(1, block.out + tile_floats, tile_row_bytes);
  if constexpr (R > 1) {
    _tile_stored(2, below, tile_row_bytes);
    _tile_stored(3, below + tile_floats, tile_row_bytes);
  }
}

// For x <= 0, to 5e-5 of itself: exp(x) = 2^n 2^r, n an integer and |r| <= 1/2, and 2^r by the
// first terms of its power series. NaN stays NaN, minus infinity gives 0.
Floats exp_of(Floats x) {
  constexpr float ln2 = 0.693147181f;
  constexpr float powers[] = {ln2 * ln2 * ln2 * ln2 / 24, ln2 * ln2 * ln2 / 6, ln2 * ln2 / 2, ln2,
                              1.0f};
  constexpr int to_nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  const Floats t = x * _mm512_set1_ps(1.44269504f);
  const Floats r = _mm512_reduce_ps(t, to_nearest);  // t less its nearest integer
  Floats power = _mm512_set1_ps(powers[0]);
#pragma GCC unroll 4
  for (int i = 1; i < 5; ++i) power = _mm512_fmadd_ps(power, r, _mm512_set1_ps(powers[i]));
  return _mm512_scalef_ps(power, t - r);
}

// The scores of 16 keys from `key` on, minus infinity for those that are not `seen` or forbidden.
template <MaskKind kind>
Floats masked(Floats scores, const uint8_t* mask, int64_t key, __mmask16 seen) {
  if constexpr (kind == MaskKind::boolean) {
    const __m128i allowed = _mm_maskz_loadu_epi8(seen, mask + key);
    seen = _mm_test_epi8_mask(allowed, allowed);
  } else if constexpr (kind == MaskKind::additive) {
    scores += _mm512_maskz_loadu_ps(seen, mask + key * static_cast<int64_t>(sizeof(float)));
  }
  return _mm512_mask_mov_ps(_mm512_set1_ps(minus_infinity), seen, scores);
}

// One query and block of keys: its weights from its scores, both in their tiles, `depth` of
// weights; the first `keys` are seen. Returns what the sums so far are to be multiplied with.
template <MaskKind kind>
float weigh(float* scores, const uint8_t* mask, int64_t keys, int64_t depth, uint8_t* weights,
            float& largest, float& total) {
  Floats low = _mm512_set1_ps(largest), high = low;
  for (int64_t i = 0; i < depth; ++i) {
    float* at = scores + 2 * i * tile_floats;
    const int64_t key = i * pairs;
    const Floats s0 = masked<kind>(_mm512_load_ps(at), mask, key, first(keys - key));
    const Floats s1 = masked<kind>(_mm512_load_ps(at + tile_floats), mask, key + lanes,
                                   first(keys - key - lanes));
    _mm512_store_ps(at, s0);
    _mm512_store_ps(at + tile_floats, s1);
    low = _mm512_max_ps(s0, low);  // NaN gives the second: it comes back with the weights
    high = _mm512_max_ps(s1, high);
  }
  const float before = largest;
  largest = _mm512_reduce_max_ps(_mm512_max_ps(low, high));
  // Minus infinity cannot be subtracted from itself.
  const Floats shift = _mm512_set1_ps(largest == minus_infinity ? 0.0f : largest);

  low = high = Floats{};
  for (int64_t i = 0; i < depth; ++i) {
    const float* at = scores + 2 * i * tile_floats;
    const Floats w0 = exp_of(_mm512_load_ps(at) - shift);
    const Floats w1 = exp_of(_mm512_load_ps(at + tile_floats) - shift);
    low += w0;
    high += w1;
    _mm512_store_si512(weights + i * tile_bytes, bfloat16s(w0, w1));
  }
  const float carried = before == largest || before == minus_infinity
                            ? 1.0f
                            : _mm512_cvtss_f32(exp_of(_mm512_set1_ps(before) - shift));
  total = total * carried + _mm512_reduce_add_ps(low + high);
  return carried;
}

// Scores and weights of up to 32 queries from `query` on, R tiles of them, with the keys of a
// block; then their sums with the values.
template <int R, MaskKind kind>
void attend_block(const Attention& op, const Space& space, int64_t key_head, int64_t block,
                  const uint8_t* mask, int64_t query, int64_t first_key, int64_t keys) {
  const int64_t last_query = smaller(op.queries, query + block_queries);
  if (op.causal) keys = smaller(keys, last_query - first_key);
  if (keys <= 0) return;
  const int64_t depth = divided(keys, pairs);
  constexpr int64_t score_row = block_keys / lanes, weight_row = block_keys / pairs;

  const uint8_t* queries = space.query + block * 2 * space.steps * tile_bytes;
  const uint8_t* keys_of_head = space.keys_of(key_head);
  for (int64_t i = 0; i < 2 * depth; i += 2) {
    multiply<R, false>({.a = queries,
                        .a_row = space.steps,
                        .b = keys_of_head + i * space.steps * tile_bytes,
                        .b_column = space.steps,
                        .b_depth = 1,
                        .depth = space.steps,
                        .out = space.scores + i * tile_floats,
                        .out_row = score_row});
  }

  float* sums = space.sums + block * 2 * space.columns * tile_floats;
  for (int64_t i = 0; i < last_query - query; ++i) {
    const int64_t tile = i / tile_rows, row = i % tile_rows * lanes;
    const int64_t seen = op.causal ? smaller(keys, query + i + 1 - first_key) : keys;
    const int64_t at = block * block_queries + i;
    const float carried =
        weigh<kind>(space.scores + tile * score_row * tile_floats + row, mask, seen, depth,
                    space.weights + tile * weight_row * tile_bytes + row * sizeof(float),
                    space.largest[at], space.total[at]);
    if (carried != 1.0f) {
      for (int64_t c = 0; c < space.columns; ++c) {
        float* sum = sums + (tile * space.columns + c) * tile_floats + row;
        _mm512_store_ps(sum, _mm512_load_ps(sum) * _mm512_set1_ps(carried));
      }
    }
    if constexpr (kind != MaskKind::none) mask += op.mask.query_step;
  }

  const uint8_t* values = space.values_of(key_head);
  const auto multiply_values = first_key ? multiply<R, true> : multiply<R, false>;
  for (int64_t c = 0; c < space.columns; c += 2) {
    multiply_values({.a = space.weights,
                     .a_row = weight_row,
                     .b = values + c * tile_bytes,
                     .b_column = 1,
                     .b_depth = space.columns,
                     .depth = depth,
                     .out = sums + c * tile_floats,
                     .out_row = space.columns});
  }
}

// y of a block of queries: its sums divided by its weights.
void finish(const Space& space, int64_t block, int64_t queries, int64_t size, float* y,
            int64_t query_step) {
  const float* sums = space.sums + block * 2 * space.columns * tile_floats;
  for (int64_t i = 0; i < queries; ++i, y += query_step) {
    const float total = space.total[block * block_queries + i];
    const Floats inverse = _mm512_set1_ps(total == 0.0f ? 0.0f : 1.0f / total);
    const float* row = sums + i / tile_rows * space.columns * tile_floats + i % tile_rows * lanes;
    for (int64_t c = 0; c < size; c += lanes, row += tile_floats) {
      _mm512_mask_storeu_ps(y + c, first(size - c), _mm512_load_ps(row) * inverse);
    }
  }
}

template <MaskKind kind>
void attend_with(const Attention& op, const AttentionTask& task) {
  const int64_t blocks = task.last_block - task.first_block;
  const int64_t key_heads = task.last_key_head - task.first_key_head;
  const int64_t blocks_of_head = divided(op.queries, block_queries);
  const Space space(op, key_heads, blocks);

  // Heads follow each other, as their numbers do in memory.
  const auto each_block = [&](const auto& run) {
    for (int64_t b = task.first_block; b < task.last_block; ++b) {
      const int64_t query = b % blocks_of_head * block_queries;
      const int64_t queries = smaller(block_queries, op.queries - query);
      for (int64_t h = 0; h < key_heads; ++h) {
        const int64_t head =
            (task.first_key_head + h) * (op.heads / op.key_heads) + b / blocks_of_head;
        run(h, h * blocks + b - task.first_block, head, query, queries);
      }
    }
  };

  _tile_loadconfig(&all_full);
  each_block([&](int64_t, int64_t block, int64_t head, int64_t query, int64_t queries) {
    const float* rows = op.query.at<float>(task.batch, head, query);
    uint8_t* tiles = space.query + block * 2 * space.steps * tile_bytes;
    for (int64_t q = 0; q < queries; q += tile_rows, tiles += space.steps * tile_bytes) {
      place_queries(rows + q * op.query.token_step, op.query.token_step, queries - q, op.size,
                    op.scale, tiles);
    }
  });
  const int64_t keys = op.causal ? smaller(op.keys, op.queries) : op.keys;
  for (int64_t first_key = 0; first_key < keys; first_key += block_keys) {
    const int64_t there = smaller(block_keys, keys - first_key);
    for (int64_t k = 0; k < there; k += pairs) {
      for (int64_t h = 0; h < key_heads; ++h) {
        const int64_t head = task.first_key_head + h;
        uint8_t* tiles = space.keys_of(h) + k / lanes * space.steps * tile_bytes;
        for (int64_t i = k; i < k + pairs; i += lanes, tiles += space.steps * tile_bytes) {
          place_keys(op.key.at<float>(task.batch, head, first_key + i), op.key.token_step,
                     there - i, op.size, tiles);
        }
        place_values(op.value.at<float>(task.batch, head, first_key + k), op.value.token_step,
                     there - k, op.value_size, space.columns,
                     space.values_of(h) + k / pairs * space.columns * tile_bytes);
      }
    }
    each_block([&](int64_t h, int64_t block, int64_t head, int64_t query, int64_t queries) {
      const uint8_t* mask = nullptr;
      if constexpr (kind != MaskKind::none) {
        mask = op.mask.at(task.batch, head, query) + first_key * mask_bytes(kind);
      }
      const auto attend = queries > tile_rows ? attend_block<2, kind> : attend_block<1, kind>;
      attend(op, space, h, block, mask, query, first_key, there);
    });
  }
  _tile_release();

  each_block([&](int64_t, int64_t block, int64_t head, int64_t query, int64_t queries) {
    const int64_t query_step = op.heads * op.value_size;
    float* y = static_cast<float*>(op.y) + (task.batch * op.queries + query) * query_step +
               head * op.value_size;
    finish(space, block, queries, op.value_size, y, query_step);
  });
}

}  // namespace

void attend(const Attention& op, const AttentionTask& task) {
  switch (op.mask.kind) {
    case MaskKind::none: return attend_with<MaskKind::none>(op, task);
    case MaskKind::boolean: return attend_with<MaskKind::boolean>(op, task);
    case MaskKind::additive: return attend_with<MaskKind::additive>(op, task);
    case MaskKind::additive_bfloat16: __builtin_unreachable();
  }
}

}  // namespace lowbit::amx

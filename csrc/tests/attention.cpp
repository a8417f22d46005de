// Attention against a plain loop in double. All operands lie in buffers that end at an unreadable
// page: masked and tile instructions are not seen by AddressSanitizer.
#include "attention.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <vector>

#include "tests/check.h"
#include "tests/random.h"
#include "tests/walled.h"

using lowbit::Attention;
using lowbit::AttentionPath;
using lowbit::MaskKind;
using lowbit::TokenRows;

namespace {

// [batch][tokens][heads][size], a few numbers before the heads of each token.
class Operand {
 public:
  Operand(int64_t batch, int64_t tokens, int64_t heads, int64_t size)
      : token_step_(heads * size + gap_),
        batch_step_(tokens * token_step_),
        size_(size),
        count_(batch * batch_step_),
        numbers_(count_ * static_cast<int64_t>(sizeof(float))) {
    for (int64_t i = 0; i < count_; ++i) data()[i] = normal();
  }

  TokenRows rows() {
    return {.data = data() + (count_ ? gap_ : 0),
            .batch_step = batch_step_,
            .head_step = size_,
            .token_step = token_step_};
  }

 private:
  float* data() { return reinterpret_cast<float*>(numbers_.data()); }

  const int64_t gap_ = below(3), token_step_, batch_step_, size_, count_;
  Walled numbers_;
};

// Whole, or the same for all heads, or for all queries.
class RandomMask {
 public:
  RandomMask(MaskKind kind, const Attention& op)
      : kind_(kind),
        heads_(below(2) ? op.heads : 1),
        queries_(below(2) ? op.queries : 1),
        item_(kind == MaskKind::boolean ? 1 : sizeof(float)),
        keys_(op.keys),
        numbers_(op.batch * heads_ * queries_ * keys_ * item_) {
    for (int64_t i = 0; i < op.batch * heads_ * queries_ * keys_; ++i) {
      if (kind == MaskKind::boolean) {
        numbers_.data()[i] = static_cast<uint8_t>(below(3));
      } else {
        const float number = below(4) ? normal() : -std::numeric_limits<float>::infinity();
        std::memcpy(numbers_.data() + i * item_, &number, sizeof number);
      }
    }
  }

  lowbit::Mask mask() {
    const int64_t row = keys_ * item_;
    return {.kind = kind_,
            .data = kind_ == MaskKind::none ? nullptr : numbers_.data(),
            .batch_step = heads_ * queries_ * row,
            .head_step = heads_ > 1 ? queries_ * row : 0,
            .query_step = queries_ > 1 ? row : 0};
  }

 private:
  const MaskKind kind_;
  const int64_t heads_, queries_, item_, keys_;
  Walled numbers_;
};

// What is added to a score; minus infinity for a key that is forbidden.
double added(const Attention& op, int64_t b, int64_t h, int64_t q, int64_t k) {
  const double forbidden = -std::numeric_limits<double>::infinity();
  if (op.causal && k > q) return forbidden;
  switch (op.mask.kind) {
    case MaskKind::none: return 0;
    case MaskKind::boolean: return op.mask.at(b, h, q)[k] ? 0 : forbidden;
    case MaskKind::additive: {
      float number;
      std::memcpy(&number, op.mask.at(b, h, q) + k * sizeof number, sizeof number);
      return number;
    }
  }
  return 0;
}

// Of an operand and of all else, relative.
struct Errors {
  double rounding, rest;
};

constexpr Errors errors_of(const AttentionPath& path) {
  return path.bfloat16 ? Errors{0x1p-7, 0.01} : Errors{0x1p-16, 1e-5};
}

// One query's result and how far it may be off: a score by the `rounding` of the sizes of its
// terms, a weight by a factor accordingly, its share in all of them by the square; and the `rest`.
void check_query(const Errors& errors, const Attention& op, int64_t b, int64_t h, int64_t q) {
  const int64_t key_head = h / (op.heads / op.key_heads);
  std::vector<double> scores;
  double top = -std::numeric_limits<double>::infinity(), doubt = 0;
  for (int64_t k = 0; k < op.keys; ++k) {
    double score = 0, sizes = 0;
    for (int64_t d = 0; d < op.size; ++d) {
      const double term =
          static_cast<double>(op.query.at(b, h, q)[d]) * op.key.at(b, key_head, k)[d] * op.scale;
      score += term;
      sizes += std::fabs(term);
    }
    scores.push_back(score + added(op, b, h, q, k));
    top = std::max(top, scores.back());
    doubt = std::max(doubt, sizes);
  }
  double total = 0;
  for (double& score : scores) total += score = std::isinf(top) ? 0 : std::exp(score - top);
  const double factor = (1 + errors.rest) * std::exp(2 * doubt * errors.rounding) - 1;
  const float* y = op.y + ((b * op.queries + q) * op.heads + h) * op.value_size;
  for (int64_t d = 0; d < op.value_size; ++d) {
    double sum = 0, sizes = 0;
    for (int64_t k = 0; k < op.keys; ++k) {
      const double term = scores[k] * op.value.at(b, key_head, k)[d] / (total > 0 ? total : 1);
      sum += term;
      sizes += std::fabs(term);
    }
    CHECK(std::fabs(y[d] - sum) <= factor * sizes + 1e-30);
  }
}

void check_attention(const AttentionPath& path, int64_t most_tokens) {
  const int64_t batch = 1 + below(2), key_heads = 1 + below(3), heads = key_heads * (1 + below(2));
  const int64_t queries = 1 + below(most_tokens), keys = below(most_tokens);
  const int64_t size = 1 + below(below(4) ? 40 : 130), value_size = 1 + below(below(4) ? 40 : 130);
  Operand query(batch, queries, heads, size), key(batch, keys, key_heads, size);
  Operand value(batch, keys, key_heads, value_size);
  Attention op{.query = query.rows(),
               .key = key.rows(),
               .value = value.rows(),
               .mask = {},
               .y = nullptr,
               .batch = batch,
               .heads = heads,
               .key_heads = key_heads,
               .queries = queries,
               .keys = keys,
               .size = size,
               .value_size = value_size,
               .scale = 1 / std::sqrt(static_cast<float>(size)),
               .causal = below(2) == 0};
  RandomMask mask(static_cast<MaskKind>(below(3)), op);
  op.mask = mask.mask();
  const int64_t numbers = batch * queries * heads * value_size;
  Walled y(numbers * static_cast<int64_t>(sizeof(float)));
  op.y = reinterpret_cast<float*>(y.data());
  std::fill(op.y, op.y + numbers, std::nanf(""));
  path.run(op);
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t q = 0; q < queries; ++q) check_query(errors_of(path), op, b, h, q);
    }
  }
}

}  // namespace

void test_attention() {
  for (const AttentionPath& path : lowbit::attention_paths) {
    const bool here = lowbit::has_feature(path.feature);
    for (int i = 0; here && i < 300; ++i) check_attention(path, 40);
    for (int i = 0; here && i < 20; ++i) check_attention(path, 600);
    std::printf("attention %s: %s\n", path.name.data(),
                here ? "ok" : "skipped, this processor lacks it");
  }
}

// Attention against a plain loop in double. All operands lie in buffers that end at an unreadable
// page: masked and tile instructions are not seen by AddressSanitizer.
#include "attention.h"

#include <sys/mman.h>
#include <unistd.h>

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
using lowbit::AttentionTarget;
using lowbit::MaskKind;
using lowbit::TokenRows;

namespace {

int64_t bytes_of(bool bfloat16) { return bfloat16 ? 2 : 4; }

// A number that lies there, a float or the upper half of one.
double number_at(const void* data, int64_t i, bool bfloat16) {
  uint8_t bytes[4] = {};
  const int64_t n = bytes_of(bfloat16);
  std::memcpy(bytes + 4 - n, static_cast<const uint8_t*>(data) + i * n, n);
  float number;
  std::memcpy(&number, bytes, sizeof number);
  return number;
}

void put_number(float number, uint8_t* data, int64_t i, bool bfloat16) {
  uint8_t bytes[4];
  std::memcpy(bytes, &number, sizeof bytes);
  const int64_t n = bytes_of(bfloat16);
  std::memcpy(data + i * n, bytes + 4 - n, n);
}

// [batch][tokens][heads][size], a few numbers before the heads of each token.
class Operand {
 public:
  Operand(int64_t batch, int64_t tokens, int64_t heads, int64_t size, bool bfloat16)
      : token_step_(heads * size + gap_),
        batch_step_(tokens * token_step_),
        size_(size),
        count_(batch * batch_step_),
        bytes_(bytes_of(bfloat16)),
        numbers_(count_ * bytes_) {
    for (int64_t i = 0; i < count_; ++i) put_number(normal(), numbers_.data(), i, bfloat16);
  }

  TokenRows rows() {
    return {.data = numbers_.data() + (count_ ? gap_ * bytes_ : 0),
            .batch_step = batch_step_,
            .head_step = size_,
            .token_step = token_step_};
  }

 private:
  const int64_t gap_ = below(3), token_step_, batch_step_, size_, count_, bytes_;
  Walled numbers_;
};

double number_of(const TokenRows& rows, bool bfloat16, int64_t b, int64_t h, int64_t t, int64_t d) {
  const int64_t i = b * rows.batch_step + h * rows.head_step + t * rows.token_step + d;
  return number_at(rows.data, i, bfloat16);
}

// Whole, or the same for all heads, or for all queries.
class RandomMask {
 public:
  RandomMask(MaskKind kind, const Attention& op)
      : kind_(kind),
        heads_(below(2) ? op.heads : 1),
        queries_(below(2) ? op.queries : 1),
        item_(lowbit::mask_bytes(kind)),
        keys_(op.keys),
        numbers_(op.batch * heads_ * queries_ * keys_ * item_) {
    for (int64_t i = 0; i < op.batch * heads_ * queries_ * keys_; ++i) {
      if (kind == MaskKind::none || kind == MaskKind::boolean) {
        numbers_.data()[i] = static_cast<uint8_t>(below(3));
      } else {
        const float number = below(4) ? normal() : -std::numeric_limits<float>::infinity();
        put_number(number, numbers_.data(), i, kind == MaskKind::additive_bfloat16);
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
    case MaskKind::additive: return number_at(op.mask.at(b, h, q), k, false);
    case MaskKind::additive_bfloat16: return number_at(op.mask.at(b, h, q), k, true);
  }
  return 0;
}

// Of an operand and of all else, relative.
struct Errors {
  double rounding, rest;
};

constexpr Errors errors_of(const AttentionTarget& target) {
  return target.tiles ? Errors{0x1p-7, 0.01} : Errors{0x1p-16, 1e-5};
}

// One query's result and how far it may be off: a score by the `rounding` of the sizes of its
// terms, a weight by a factor accordingly, its share in all of them by the square; and the `rest`.
void check_query(const Errors& errors, const Attention& op, int64_t b, int64_t h, int64_t q) {
  const int64_t key_head = h / (op.heads / op.key_heads);
  std::vector<double> scores;
  const double sink = op.sinks ? op.sinks[h] : -std::numeric_limits<double>::infinity();
  double top = sink, doubt = 0;
  for (int64_t k = 0; k < op.keys; ++k) {
    double score = 0, sizes = 0;
    for (int64_t d = 0; d < op.size; ++d) {
      const double term = number_of(op.query, op.bfloat16, b, h, q, d) *
                          number_of(op.key, op.bfloat16, b, key_head, k, d) * op.scale;
      score += term;
      sizes += std::fabs(term);
    }
    if (op.cap != 0) score = op.cap * std::tanh(score / op.cap);
    scores.push_back(score + added(op, b, h, q, k));
    top = std::max(top, scores.back());
    doubt = std::max(doubt, sizes + op.cap);
  }
  double total = std::isinf(top) ? 0 : std::exp(sink - top);
  for (double& score : scores) total += score = std::isinf(top) ? 0 : std::exp(score - top);
  const double factor = (1 + errors.rest) * std::exp(2 * doubt * errors.rounding) - 1;
  const int64_t y = ((b * op.queries + q) * op.heads + h) * op.value_size;
  for (int64_t d = 0; d < op.value_size; ++d) {
    double sum = 0, sizes = 0;
    for (int64_t k = 0; k < op.keys; ++k) {
      const double term =
          scores[k] * number_of(op.value, op.bfloat16, b, key_head, k, d) / (total > 0 ? total : 1);
      sum += term;
      sizes += std::fabs(term);
    }
    const double rounded = op.bfloat16 ? std::fabs(sum) * 0x1p-8 : 0;
    CHECK(std::fabs(number_at(op.y, y + d, op.bfloat16) - sum) <=
          (1 + 0x1p-8) * factor * sizes + rounded + 1e-30);
  }
}

void check_attention(const AttentionTarget& target, int64_t most_tokens) {
  const int64_t batch = 1 + below(2), key_heads = 1 + below(3), heads = key_heads * (1 + below(2));
  const int64_t queries = 1 + below(most_tokens), keys = below(most_tokens);
  const int64_t size = 1 + below(below(4) ? 40 : 130), value_size = 1 + below(below(4) ? 40 : 130);
  const bool bfloat16 = !target.tiles && below(2) == 0;
  Operand query(batch, queries, heads, size, bfloat16);
  Operand key(batch, keys, key_heads, size, bfloat16);
  Operand value(batch, keys, key_heads, value_size, bfloat16);
  std::vector<float> sinks(heads);
  for (float& sink : sinks) sink = below(4) ? normal() : -std::numeric_limits<float>::infinity();
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
               .cap = target.tiles || below(2) ? 0.0f : 0.5f,
               .sinks = target.tiles || below(2) ? nullptr : sinks.data(),
               .causal = below(2) == 0,
               .bfloat16 = bfloat16};
  RandomMask mask(static_cast<MaskKind>(below(target.tiles ? 3 : 4)), op);
  op.mask = mask.mask();
  const int64_t numbers = batch * queries * heads * value_size;
  Walled y(numbers * bytes_of(bfloat16));
  op.y = y.data();
  for (int64_t i = 0; i < numbers; ++i) put_number(std::nanf(""), y.data(), i, bfloat16);
  target.run(op);
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t q = 0; q < queries; ++q) check_query(errors_of(target), op, b, h, q);
    }
  }
}

// Tokens [tokens][size], each at the beginning of a page.
class Pages {
 public:
  Pages(int64_t tokens, int64_t size, bool bfloat16)
      : page_(sysconf(_SC_PAGESIZE)), item_(bytes_of(bfloat16)), all_(tokens * page_) {
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t d = 0; d < size; ++d) put_number(normal(), all_.data() + t * page_, d, bfloat16);
    }
  }
  TokenRows rows() const {
    return {.data = all_.data(), .batch_step = 0, .head_step = 0, .token_step = page_ / item_};
  }
  // From now on only those from `first` on, before `last`.
  void leave_readable(int64_t first, int64_t last) {
    protect(0, first, PROT_NONE);
    protect(last, (all_.bytes() + page_ - 1) / page_, PROT_NONE);
  }

 private:
  void protect(int64_t first, int64_t last, int how) {
    CHECK(mprotect(all_.data() + first * page_, (last - first) * page_, how) == 0);
  }

  const int64_t page_, item_;
  Walled all_;
};

// Keys and values that no query sees, before the first and after the last visible one, are not
// read: nobody could read them. Some queries see none at all.
void check_unread(const AttentionTarget& target, int64_t queries) {
  const int64_t size = 1 + below(70), keys = 1 + below(600), window = 1 + below(50);
  const bool bfloat16 = below(2);
  // Query q sees the keys up to this one plus q.
  const int64_t last_of_first = below(std::max<int64_t>(keys - queries, 0) + 1);
  Operand query(1, queries, 1, size, bfloat16);
  Pages key(keys, size, bfloat16), value(keys, size, bfloat16);
  Walled mask(queries * keys), y(queries * size * bytes_of(bfloat16));
  int64_t first = keys, last = 0;
  for (int64_t q = 0; q < queries; ++q) {
    const bool blind = below(5) == 0;
    for (int64_t k = 0; k < keys; ++k) {
      const int64_t behind = last_of_first + q - k;
      const bool seen = !blind && behind >= 0 && behind < window;
      mask.data()[q * keys + k] = seen;
      if (seen) first = std::min(first, k);
      if (seen) last = std::max(last, k + 1);
    }
  }
  const Attention op{.query = query.rows(),
                     .key = key.rows(),
                     .value = value.rows(),
                     .mask = {.kind = MaskKind::boolean,
                              .data = mask.data(),
                              .batch_step = 0,
                              .head_step = 0,
                              .query_step = keys},
                     .y = y.data(),
                     .batch = 1,
                     .heads = 1,
                     .key_heads = 1,
                     .queries = queries,
                     .keys = keys,
                     .size = size,
                     .value_size = size,
                     .scale = 1 / std::sqrt(static_cast<float>(size)),
                     .cap = 0,
                     .sinks = nullptr,
                     .causal = false,
                     .bfloat16 = bfloat16};
  target.run(op);
  const std::vector<uint8_t> before(y.data(), y.data() + y.bytes());
  first = std::min(first, last);
  key.leave_readable(first, last);
  value.leave_readable(first, last);
  target.run(op);
  CHECK(std::equal(before.begin(), before.end(), y.data()));
}

}  // namespace

void test_attention() {
  for (const AttentionTarget& target : lowbit::attention_targets) {
    const bool here = lowbit::has_feature(target.feature);
    for (int i = 0; here && i < 300; ++i) check_attention(target, 40);
    for (int i = 0; here && i < 20; ++i) check_attention(target, 600);
    for (int i = 0; here && !target.tiles && i < 20; ++i)
      check_unread(target, 1 + below(i % 2 ? 7 : 150));
    std::printf("attention %s: %s\n", target.name.data(),
                here ? "ok" : "skipped, this processor lacks it");
  }
}

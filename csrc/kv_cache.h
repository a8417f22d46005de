// The keys or the values of a KV cache, which attention.h reads.
#pragma once

#include <cstdint>
#include <cstring>

#include "attention.h"

namespace lowbit {

// [batch][head][capacity][size] numbers of `bytes` bytes; `capacity` is the capacity in tokens; the
// first `used` tokens are in use.
struct KvCache {
  uint8_t* data;
  int64_t capacity, size, bytes;

  TokenRows rows(int64_t heads) const {
    return {.data = data,
            .batch_step = heads * capacity * size,
            .head_step = capacity * size,
            .token_step = size};
  }

  // Appends `tokens` tokens after the first `used`.
  void append(const TokenRows& more, int64_t batch, int64_t heads, int64_t used,
              int64_t tokens) const {
    uint8_t* to = data + used * size * bytes;
    for (int64_t b = 0; b < batch; ++b) {
      for (int64_t h = 0; h < heads; ++h, to += capacity * size * bytes) {
        for (int64_t t = 0; t < tokens; ++t) {
          const int64_t from = b * more.batch_step + h * more.head_step + t * more.token_step;
          std::memcpy(to + t * size * bytes, static_cast<const uint8_t*>(more.data) + from * bytes,
                      size * bytes);
        }
      }
    }
  }
};

}  // namespace lowbit

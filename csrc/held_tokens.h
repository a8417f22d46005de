// Keys, or values, of the tokens that a decoder has read, for attention.h to read.
#pragma once

#include <algorithm>
#include <cstdint>

#include "attention.h"

namespace lowbit {

// [batch][head][room][size], of which the first tokens are filled.
struct HeldTokens {
  float* data;
  int64_t room, size;

  TokenRows rows(int64_t heads) const {
    return {.data = data,
            .batch_step = heads * room * size,
            .head_step = room * size,
            .token_step = size};
  }

  // Writes `tokens` more behind `filled`.
  void append(const TokenRows& more, int64_t batch, int64_t heads, int64_t filled,
              int64_t tokens) const {
    float* to = data + filled * size;
    for (int64_t b = 0; b < batch; ++b) {
      for (int64_t h = 0; h < heads; ++h, to += room * size) {
        for (int64_t t = 0; t < tokens; ++t) {
          std::copy_n(more.at(b, h, t), size, to + t * size);
        }
      }
    }
  }
};

}  // namespace lowbit

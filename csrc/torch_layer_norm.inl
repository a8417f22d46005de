// The loop behind torch_layer_norm.h. The including file names its instruction set in LOWBIT_ISA
// and is compiled for it.
//
// Nothing from the standard library is called here (see quantize_rows.inl).

#include "torch_layer_norm.h"

namespace lowbit::LOWBIT_ISA {
namespace {

constexpr int64_t lanes = 8, chunk = 16;
constexpr int most_levels = 32;  // of merging: for 2^38 numbers

float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }

// The mean of `count` numbers, and the sum of their squared distances from it.
struct Moments {
  int64_t count = 0;
  float mean = 0.0f, squares = 0.0f;
};

struct LaneMoments {
  int64_t count = 0;  // in each lane
  float mean[lanes] = {}, squares[lanes] = {};
};

float share(int64_t added, int64_t all) {
  return all ? static_cast<float>(added) / static_cast<float>(all) : 0.0f;
}

// Rounds at other places than the merging of the lanes, as torch does.
void merge(const LaneMoments& added, LaneMoments& all) {
  const float count = static_cast<float>(all.count);
  all.count += added.count;
  const float part = share(added.count, all.count);
  for (int64_t i = 0; i < lanes; ++i) {
    const float delta = added.mean[i] - all.mean[i], moved = delta * part;
    all.mean[i] += moved;
    all.squares[i] = fma(moved, delta * count, all.squares[i] + added.squares[i]);
  }
}

void merge(const Moments& added, Moments& all) {
  const float count = static_cast<float>(all.count);
  all.count += added.count;
  const float delta = added.mean - all.mean, part = share(added.count, all.count);
  all.mean = fma(part, delta, all.mean);
  all.squares += fma(delta * delta * part, count, added.squares);
}

LaneMoments of_chunk(const float* x, int64_t vectors) {
  LaneMoments found;
  for (; found.count < vectors; ++found.count) {
    const float part = 1.0f / static_cast<float>(found.count + 1);
    for (int64_t i = 0; i < lanes; ++i) {
      const float number = x[found.count * lanes + i], delta = number - found.mean[i];
      found.mean[i] = fma(delta, part, found.mean[i]);
      found.squares[i] = fma(delta, number - found.mean[i], found.squares[i]);
    }
  }
  return found;
}

LaneMoments of_lanes(const float* x, int64_t vectors) {
  const int64_t chunks = (vectors + chunk - 1) / chunk;
  int levels = 1;
  while (int64_t{1} << levels < chunks) ++levels;
  LaneMoments merged[most_levels];
  for (int64_t i = 0; i < chunks; ++i) {
    const int64_t left = vectors - i * chunk;
    merge(of_chunk(x + i * chunk * lanes, left < chunk ? left : chunk), merged[0]);
    int64_t done = i + 1;
    for (int level = 1; level < levels && done % 2 == 0; ++level, done /= 2) {
      merge(merged[level - 1], merged[level]);
      merged[level - 1] = {};
    }
  }
  for (int level = 1; level < levels; ++level) merge(merged[level], merged[0]);
  return merged[0];
}

Moments of_row(const float* x, int64_t columns) {
  const int64_t vectors = columns / lanes;
  const LaneMoments each = of_lanes(x, vectors);
  Moments found;
  for (int64_t i = vectors * lanes; i < columns; ++i) {
    const float delta = x[i] - found.mean;
    ++found.count;
    found.mean += delta / static_cast<float>(found.count);
    found.squares += delta * (x[i] - found.mean);
  }
  for (int64_t i = 0; i < lanes; ++i) merge({vectors, each.mean[i], each.squares[i]}, found);
  return found;
}

}  // namespace

void torch_layer_norm(const TorchLayerNorm& op) {
  for (int64_t row = 0; row < op.rows; ++row) {
    const float* x = op.x + row * op.columns;
    float* __restrict y = op.y + row * op.columns;
    const Moments found = of_row(x, op.columns);
    const float variance = found.squares / static_cast<float>(op.columns);
    const float inverse = 1.0f / __builtin_sqrtf((variance < 0.0f ? 0.0f : variance) + op.epsilon);
    for (int64_t i = 0; i < op.columns; ++i) {
      y[i] = fma((x[i] - found.mean) * inverse, op.weight[i], op.bias[i]);
    }
  }
}

}  // namespace lowbit::LOWBIT_ISA

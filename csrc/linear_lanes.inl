// What all loops over packed codes share: how codes and parameters come into lanes, and how sums in
// lanes become y. The including file describes its vectors in Isa (linear.inl).

#include "bfloat16.inl"
#include "linear.h"
#include "nonlinearity.inl"

namespace lowbit::LOWBIT_ISA {
namespace {

using Words = Isa::Words;
using Ints = Isa::Ints;
using Floats = Isa::Floats;

constexpr int parts = vector_bytes / sizeof(Words);
constexpr int lanes = panel_rows / parts;  // of a part

template <class Vector>
Vector load(const void* at) {
  Vector v;
  __builtin_memcpy(&v, at, sizeof v);
  return v;
}

Floats load_scales(const void* values, bool half, int64_t at) {
  return half ? Isa::widen(static_cast<const uint16_t*>(values) + at)
              : load<Floats>(static_cast<const float*>(values) + at);
}

// Scales of a group of affine codes, or offsets: `values` times `sub`, if there is that. `half` is
// op.half_scale, as a constant where loops know it.
Floats group_floats(const Linear& op, bool half, const void* values, const uint8_t* sub, int lowest,
                    int64_t group, int part) {
  const int64_t at = part * lanes;
  if (!sub) return load_scales(values, half, group * panel_rows + at);
  const Ints integers = Isa::widen(sub + group * panel_rows + at) + lowest;
  return load_scales(values, half, group / op.sub.groups * panel_rows + at) *
         __builtin_convertvector(integers, Floats);
}

Floats scales_of(const Linear& op, bool half, int64_t group, int part) {
  return group_floats(op, half, op.scale, op.sub.scale, op.sub.lowest, group, part);
}

Floats offsets_of(const Linear& op, bool half, int64_t group, int part) {
  return group_floats(op, half, op.offset, op.sub.offset, 0, group, part);
}

// The codes of step s of a block, cut into `fields` (packed_layout.h), or of a single plane of it,
// times 2^`kept`. Inlined, so that s is a constant wherever steps are unrolled.
template <int bits>
LOWBIT_INLINE Words codes_of_step(const uint8_t* block, int s, int part, int kept = 0) {
  constexpr Fields fields = fields_of(bits, false);
  block += part * sizeof(Words);
  if constexpr (bits == 3 && parts == 2) {
    // Steps j and j + 4 are put together at once, j in the low half of the bytes. AVX-512 combines
    // masked fields in one instruction and takes them one by one sooner.
    const int j = s % 4;
    const Words two = load<Words>(block + j % 2 * vector_bytes) >> j / 2 * 2 & 0x33333333u;
    const Words one = load<Words>(block + 2 * vector_bytes);
    const Words both = two | ((j <= 2 ? one << (2 - j) : one >> (j - 2)) & 0x44444444u);
    return both >> (s / 4 * 4 - kept) & 0x07070707u << kept;
  }
  Words codes{};
#pragma GCC unroll 3
  for (int f = 0; f < fields.count; ++f) {
    const int width = fields.field[f].width, shift = fields.field[f].shift + kept;
    const Words four = load<Words>(block + s % width * vector_bytes);
    const int right = s / width * width - shift;
    if (width == 8) {
      codes = four;
    } else {
      codes |= (right >= 0 ? four >> right : four << -right) &
               (((1u << width) - 1) << shift) * 0x01010101u;
    }
    block += width * vector_bytes;
  }
  return codes;
}

// Prefetches the outputs of some tokens and P panels, which `finish` will write. Long loops
// prefetch one token at a time, between products: a processor waits if more cache lines are
// requested at once than it can have in flight.
template <int P>
struct OutputPrefetch {
  const char* y;
  int64_t token_bytes, vector_bytes, tokens;

  OutputPrefetch(const Linear& op, int64_t m, int64_t tokens, int64_t panel) : tokens(tokens) {
    const int64_t size = op.bfloat16 ? 2 : 4;
    y = static_cast<const char*>(op.y) + (m * op.form.outputs + panel * panel_rows) * size;
    token_bytes = op.form.outputs * size;
    vector_bytes = lanes * size;
  }

  LOWBIT_INLINE void next() {
    if (tokens <= 0) return;
    for (int i = 0; i < P * parts; ++i) __builtin_prefetch(y + i * vector_bytes, 1);
    y += token_bytes;
    --tokens;
  }

  LOWBIT_INLINE void all() {
    while (tokens > 0) next();
  }
};

// y of up to R tokens and P panels from sums[panel][token][limb][part], panels panel_stride apart:
// the smallest limb first, then the bias. Adding a bias of zero also makes -0 the 0 that a sum
// from zero would have been. A nonlinearity is applied to all of them together, as each value waits
// for the steps of its polynomial.
template <int P, int R>
[[gnu::noinline]] void finish(const Linear& op, const Floats* sums, int64_t panel_stride, int64_t m,
                              int64_t tokens, int64_t panel) {
  constexpr int64_t width = P * panel_rows;
  const int64_t first = panel * panel_rows, left = op.form.outputs - first;
  const int64_t n = left < width ? left : width;
  alignas(64) float y[R * width], padded_bias[width] = {};
  const float* bias = padded_bias;
  if (op.bias && op.bfloat16_bias) {
    widen(static_cast<const uint16_t*>(op.bias) + first, n, padded_bias);
  } else if (op.bias) {
    const float* own = static_cast<const float*>(op.bias) + first;
    for (int64_t i = 0; n < width && i < n; ++i) padded_bias[i] = own[i];
    bias = n == width ? own : padded_bias;
  }
  const bool in_place = n == width && op.nonlinearity == Nonlinearity::identity && !op.bfloat16;
  const int64_t start = m * op.form.outputs + first;
  float* to = static_cast<float*>(op.y) + (op.bfloat16 ? 0 : start);
  float* at = in_place ? to : y;
  const int64_t stride = in_place ? op.form.outputs : width;
  for (int64_t t = 0; t < tokens; ++t, sums += op.limbs * parts) {
    for (int i = 0; i < P * parts; ++i) {
      const Floats* limb = sums + i / parts * panel_stride + i % parts;
      Floats total = *limb;
      for (int d = 1; d < op.limbs; ++d) total += limb[d * parts];
      total += load<Floats>(bias + i * lanes);
      __builtin_memcpy(at + t * stride + i * lanes, &total, sizeof total);
    }
  }
  if (in_place) return;
  apply(op.nonlinearity, y, tokens, width, width);
  if (op.bfloat16) {
    uint16_t* half = static_cast<uint16_t*>(op.y) + start;
    for (int64_t t = 0; t < tokens; ++t) narrow(y + t * width, n, half + t * op.form.outputs);
    return;
  }
  for (int64_t t = 0; t < tokens; ++t, to += op.form.outputs) {
    __builtin_memcpy(to, y + t * width, n * sizeof(float));
  }
}

}  // namespace
}  // namespace lowbit::LOWBIT_ISA

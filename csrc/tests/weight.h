// Random weights for tests: packed, and as plain numbers, by the text of packed_layout.h.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>
#include <vector>

#include "linear.h"
#include "tests/random.h"
#include "tests/walled.h"

inline bool same_bits(float a, float b) { return std::memcmp(&a, &b, sizeof a) == 0; }

inline int64_t divided(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline int64_t groups_of(const lowbit::PackedLayout& form) {
  return divided(form.inputs, form.group);
}

inline int64_t inputs_of(const lowbit::PackedLayout& form, int64_t g) {
  return std::min(form.group, form.inputs - g * form.group);
}

inline int64_t blocks_of(const lowbit::PackedLayout& form) {
  int64_t blocks = 0;
  for (int64_t g = 0; g < groups_of(form); ++g) blocks += divided(inputs_of(form, g), 32);
  return blocks;
}

inline int64_t codes_bytes(const lowbit::PackedLayout& form) {
  return divided(form.outputs, 16) * blocks_of(form) * form.bits * 64;
}

// What may be read behind the codes.
inline int64_t readable_bytes(const lowbit::PackedLayout& form) {
  const bool odd = divided(inputs_of(form, groups_of(form) - 1), 32) % 2;
  return form.bits == 8 && odd && form.outputs ? 512 : 0;
}

inline float float_of(uint16_t half) {
  const int exponent = half >> 10 & 31, mantissa = half & 1023;
  const double size =
      exponent ? std::ldexp(1024 + mantissa, exponent - 25) : std::ldexp(mantissa, -24);
  return static_cast<float>(half & 0x8000 ? -size : size);
}

// Numbers as float16 or float32, as a kernel gets them.
struct Numbers {
  std::vector<uint16_t> halves;
  std::vector<float> floats;
  bool half;

  Numbers(int64_t count, bool half) : half(half) {
    for (int64_t i = 0; i < count; ++i) {
      if (half) {
        // Any sign, any size up to 2, subnormal numbers among them.
        halves.push_back(static_cast<uint16_t>(below(2) << 15 | below(0x4000)));
      } else {
        floats.push_back(normal());
      }
    }
  }
  const void* data() const {
    return half ? static_cast<const void*>(halves.data()) : static_cast<const void*>(floats.data());
  }
  float operator[](int64_t at) const { return half ? float_of(halves[at]) : floats[at]; }
};

inline lowbit::PackedLayout random_form(int64_t size) {
  const bool binary = below(3) == 0;
  const int64_t bits = binary ? 1 + below(4) : 2 + below(7);
  lowbit::PackedLayout form{.outputs = below(size),
                            .inputs = 1 + below(size),
                            .group = 0,
                            .bits = static_cast<int>(bits),
                            .binary = binary};
  const int64_t groups[] = {form.inputs, 1 + below(form.inputs + 40), 16, 32, 64, 96};
  form.group = groups[below(std::size(groups))];
  return form;
}

// A weight: its codes one by one, as they are stored and in packed, and random parameters.
struct Weight {
  lowbit::PackedLayout form;
  int planes;              // in use
  std::vector<int> codes;  // [outputs][inputs]
  std::vector<uint8_t> stored;
  Walled packed;
  Numbers scale, offset;
  std::vector<uint8_t> zero_point;
  bool has_zero_point = below(2), has_offset = below(2);
  // Affine ones may have scales in two levels, shared by any number that divides the groups.
  bool has_sub = !form.binary && below(2);
  std::vector<uint8_t> sub_scale, sub_offset;
  lowbit::SubScales sub;

  // The codes: 0 any, 1 the lowest, 2 the highest, 3 either.
  explicit Weight(const lowbit::PackedLayout& form, int extreme = 0)
      : form(form),
        planes(form.binary ? static_cast<int>(1 + below(form.bits)) : 1),
        packed(codes_bytes(form) + readable_bytes(form)),
        scale(parameters() * planes, below(2)),
        offset(parameters(), scale.half) {
    const int64_t row_bytes = divided(form.inputs * (form.binary ? 1 : form.bits), 8);
    stored.resize(form.outputs * row_bytes * (form.binary ? form.bits : 1));
    for (int64_t n = 0; n < form.outputs; ++n) {
      for (int64_t k = 0; k < form.inputs; ++k) {
        const int all = (1 << form.bits) - 1;
        const bool high = extreme == 3 ? below(2) : extreme == 2;
        const int code = extreme ? high * all : static_cast<int>(below(all + 1));
        codes.push_back(code);
        for (int i = 0; i < form.bits; ++i) {
          const int64_t row = form.binary ? i * form.outputs + n : n;
          const int64_t bit = form.binary ? k : k * form.bits + i;
          uint8_t& byte = stored[row * row_bytes + bit / 8];
          byte = static_cast<uint8_t>(byte | (code >> i & 1) << bit % 8);
        }
      }
    }
    // A kernel for narrow codes holds q - z in 8 bits.
    for (int64_t i = 0; i < parameters(); ++i)
      zero_point.push_back(static_cast<uint8_t>(below(1 << form.bits)));
    if (has_sub) {
      sub.bits = static_cast<int>(2 + below(7));
      sub.lowest = below(2) ? -(1 << (sub.bits - 1)) : 0;
      do {
        sub.groups = 1 + below(groups_of(form));
      } while (groups_of(form) % sub.groups);
      for (int64_t i = 0; i < parameters(); ++i) {
        sub_scale.push_back(static_cast<uint8_t>(below(1 << sub.bits)));
        sub_offset.push_back(static_cast<uint8_t>(below(1 << sub.bits)));
      }
      sub.scale = sub_scale.data();
      if (has_offset) sub.offset = sub_offset.data();
    }
    std::memset(packed.data() + codes_bytes(form), 0xab, readable_bytes(form));
    lowbit::pack_codes(form, stored.data(), 0, packed.data());
  }

  int64_t parameters() const { return divided(form.outputs, 16) * groups_of(form) * 16; }
  int64_t at(int64_t n, int64_t g) const { return (n / 16 * groups_of(form) + g) * 16 + n % 16; }
  int zero(int64_t n, int64_t g) const {
    if (has_offset) return 0;
    return has_zero_point ? zero_point[at(n, g)] : 1 << (form.bits - 1);
  }
  float alpha(int64_t n, int64_t g, int i) const {
    return scale[((n / 16 * groups_of(form) + g) * planes + i) * 16 + n % 16];
  }
  int64_t super(int64_t n, int64_t g) const {
    return (n / 16 * groups_of(form) + g) / sub.groups * 16 + n % 16;
  }
  float affine_scale(int64_t n, int64_t g) const {
    const float d = scale[super(n, g)];
    return has_sub ? d * static_cast<float>(sub_scale[at(n, g)] + sub.lowest) : d;
  }
  // -0 for none, which changes no sum.
  float group_offset(int64_t n, int64_t g) const {
    if (!has_offset) return form.binary ? 0.0f : -0.0f;
    const float e = offset[super(n, g)];
    return has_sub ? e * static_cast<float>(sub_offset[at(n, g)]) : e;
  }
  const uint8_t* zeros() const {
    return !form.binary && !has_offset && has_zero_point ? zero_point.data() : nullptr;
  }
  const void* offsets() const { return has_offset ? offset.data() : nullptr; }

  // What a code of row n stands for.
  float value(int64_t n, int64_t k) const {
    const int64_t g = k / form.group;
    const int code = codes[n * form.inputs + k];
    float sum = group_offset(n, g);
    if (!form.binary) return sum + affine_scale(n, g) * static_cast<float>(code - zero(n, g));
    for (int i = 0; i < planes; ++i) sum += code >> i & 1 ? alpha(n, g, i) : -alpha(n, g, i);
    return sum;
  }

  // Its layer, without x, bias, y and rows.
  lowbit::Linear layer(int limbs) const {
    auto op = operation<lowbit::Linear>();
    op.limbs = limbs;
    return op;
  }

  // Its rows, without those that are decoded.
  lowbit::DecodePacked decoding() const { return operation<lowbit::DecodePacked>(); }

 private:
  // An operation on the stored weight.
  template <class Op>
  Op operation() const {
    Op op{};
    op.form = form;
    op.codes = packed.data();
    op.scale = scale.data();
    op.zero_point = zeros();
    op.offset = offsets();
    op.planes = planes;
    op.half_scale = scale.half;
    op.sub = sub;
    return op;
  }
};

// PackedLayout and linear layers against plain loops written from the text of packed_layout.h and
// linear.h and linear_float.h.
//
// Weights lie in buffers that end at an unreadable page: tiles and inline assembly are loaded by
// instructions that AddressSanitizer does not see. All else is an exact heap allocation.
#include "linear_float.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>
#include <limits>
#include <vector>

#include "quantize_rows.h"
#include "tests/check.h"
#include "tests/random.h"
#include "tests/walled.h"

using lowbit::Linear;
using lowbit::Nonlinearity;
using lowbit::PackedLayout;

namespace {

bool same_bits(float a, float b) { return std::memcmp(&a, &b, sizeof a) == 0; }

int64_t divided(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t groups_of(const PackedLayout& form) { return divided(form.inputs, form.group); }

int64_t inputs_of(const PackedLayout& form, int64_t g) {
  return std::min(form.group, form.inputs - g * form.group);
}

int64_t blocks_of(const PackedLayout& form) {
  int64_t blocks = 0;
  for (int64_t g = 0; g < groups_of(form); ++g) blocks += divided(inputs_of(form, g), 32);
  return blocks;
}

int64_t codes_bytes(const PackedLayout& form) {
  return divided(form.outputs, 16) * blocks_of(form) * form.bits * 64;
}

// What may be read behind the codes.
int64_t readable_bytes(const PackedLayout& form) {
  const bool odd = divided(inputs_of(form, groups_of(form) - 1), 32) % 2;
  return form.bits == 8 && odd && form.outputs ? 512 : 0;
}

// Input i of group g of row n, which may lie in the padding.
int packed_code(const PackedLayout& form, const uint8_t* packed, int64_t n, int64_t g, int64_t i) {
  static constexpr int affine[9][4] = {{}, {}, {2}, {2, 1}, {4}, {4, 1}, {4, 2}, {4, 2, 1}, {8}};
  static constexpr int binary[4] = {1, 1, 1, 1};
  const int* width = form.binary ? binary : affine[form.bits];
  const int64_t block = n / 16 * blocks_of(form) + g * divided(form.group, 32) + i / 32;
  const int64_t step = i % 32 / 4, byte = n % 16 * 4 + i % 4;
  const uint8_t* vectors = packed + block * form.bits * 64;
  int code = 0;
  for (int shift = 0; shift < form.bits; shift += *width++) {
    const uint8_t shared = vectors[step % *width * 64 + byte];
    code |= (shared >> (step / *width * *width) & ((1 << *width) - 1)) << shift;
    vectors += *width * 64;
  }
  return code;
}

float float_of(uint16_t half) {
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

PackedLayout random_form(int64_t size) {
  const bool binary = below(3) == 0;
  const int64_t bits = binary ? 1 + below(4) : 2 + below(7);
  PackedLayout form{.outputs = below(size),
                    .inputs = 1 + below(size),
                    .group = 0,
                    .bits = static_cast<int>(bits),
                    .binary = binary};
  const int64_t groups[] = {form.inputs, 1 + below(form.inputs + 40), 32, 64, 96};
  form.group = groups[below(std::size(groups))];
  return form;
}

// A weight: its codes one by one, as they are stored and in packed, and random parameters.
struct Weight {
  PackedLayout form;
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
  explicit Weight(const PackedLayout& form, int extreme = 0)
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
};

void check_packed(Weight& weight) {
  const PackedLayout& form = weight.form;
  for (int64_t n = 0; n < divided(form.outputs, 16) * 16; ++n) {
    for (int64_t g = 0; g < groups_of(form); ++g) {
      for (int64_t i = 0; i < divided(inputs_of(form, g), 32) * 32; ++i) {
        const bool real = n < form.outputs && i < inputs_of(form, g);
        const int code = real ? weight.codes[n * form.inputs + g * form.group + i] : 0;
        CHECK(packed_code(form, weight.packed.data(), n, g, i) == code);
      }
    }
  }

  std::vector<uint8_t> again(weight.stored.size(), 0xcd);
  lowbit::unpack_codes(form, weight.packed.data(), 0, again.data());
  CHECK(again == weight.stored);
  if (form.bits == 8) {
    // With a flip, the codes are int8.
    for (uint8_t& code : again) code ^= 0x80;
    Walled flipped(codes_bytes(form));
    lowbit::pack_codes(form, again.data(), 0x80, flipped.data());
    CHECK(std::memcmp(flipped.data(), weight.packed.data(), codes_bytes(form)) == 0);
    std::vector<uint8_t> int8(again.size());
    lowbit::unpack_codes(form, flipped.data(), 0x80, int8.data());
    CHECK(int8 == again);
  }
}

void check_decode(Weight& weight) {
  const PackedLayout& form = weight.form;
  if (form.outputs == 0) return;
  std::vector<int64_t> rows(below(20));
  for (int64_t& row : rows) row = below(form.outputs);
  // The bytes behind the codes are for tiles alone.
  Walled codes(codes_bytes(form));
  std::memcpy(codes.data(), weight.packed.data(), codes_bytes(form));
  for (const auto& path : lowbit::decode_packed_paths) {
    if (!lowbit::has_feature(path.feature)) continue;
    std::vector<float> out(rows.size() * form.inputs, 1234.5f);
    path.run({.form = form,
              .codes = codes.data(),
              .scale = weight.scale.data(),
              .zero_point = weight.zeros(),
              .offset = weight.offsets(),
              .planes = weight.planes,
              .half_scale = weight.scale.half,
              .rows = rows.data(),
              .count = static_cast<int64_t>(rows.size()),
              .out = out.data(),
              .sub = weight.sub});
    const float* got = out.data();
    for (const int64_t n : rows) {
      for (int64_t k = 0; k < form.inputs; ++k) {
        const int64_t g = k / form.group;
        const int code = weight.codes[n * form.inputs + k];
        float wanted;
        if (form.binary) {
          wanted = weight.group_offset(n, g);
          for (int i = 0; i < weight.planes; ++i) {
            wanted += code >> i & 1 ? weight.alpha(n, g, i) : -weight.alpha(n, g, i);
          }
        } else {
          wanted = weight.affine_scale(n, g) * static_cast<float>(code - weight.zero(n, g)) +
                   weight.group_offset(n, g);
        }
        CHECK(same_bits(*got++, wanted));
      }
    }
  }
}

// Codes of one group of one row of activations.
struct Digits {
  int digits;
  float scale = 1;
  std::vector<int8_t> code[4];

  Digits(const float* x, int64_t n, int digits) : digits(digits) {
    for (int d = 0; d < digits; ++d) code[d].resize(n);
    if (digits == 1) {
      lowbit::scalar::quantize_rows({.x = x,
                                     .codes = code[0].data(),
                                     .scales = &scale,
                                     .rows = 1,
                                     .cols = n,
                                     .group_size = n});
      return;
    }
    float largest = 0;
    for (int64_t i = 0; i < n; ++i) {
      if (!std::isfinite(x[i])) {
        scale = std::nanf("");
        return;
      }
      largest = std::max(largest, std::fabs(x[i]));
    }
    if (largest < 0x1p-90f) return;
    int exponent;
    std::frexp(largest, &exponent);  // largest < 2^exponent
    scale = std::ldexp(1.0f, exponent - 30);
    for (int64_t i = 0; i < n; ++i) {
      // Halves away from zero; a double holds the quotient exactly.
      int64_t whole = std::llround(static_cast<double>(x[i]) / scale);
      for (int d = 0; d < 4; ++d) {
        const int64_t low = ((whole + 128) % 256 + 256) % 256 - 128;
        code[d][i] = static_cast<int8_t>(low);
        whole = (whole - low) / 256;
      }
      CHECK(whole == 0);
    }
  }
};

struct Activations {
  int64_t rows, inputs;
  std::vector<float> x;

  Activations(int64_t rows, int64_t inputs) : rows(rows), inputs(inputs), x(rows * inputs) {
    using limits = std::numeric_limits<float>;
    const float special[] = {0.0f, -0.0f, 1e-40f, -0x1p-101f, 0x1p-91f, 1e4f, -1e30f};
    for (int64_t m = 0; m < rows; ++m) {
      const float size = below(4) ? 1.0f : std::ldexp(1.0f, static_cast<int>(below(180)) - 110);
      for (int64_t k = 0; k < inputs; ++k) {
        const int shift = below(2) ? 0 : -static_cast<int>(below(40));
        x[m * inputs + k] =
            below(50) ? size * std::ldexp(normal(), shift) : special[below(std::size(special))];
      }
      if (below(40) == 0) {
        x[m * inputs + below(inputs)] = below(2) ? limits::quiet_NaN() : -limits::infinity();
      }
    }
  }
};

std::vector<float> expected(const Weight& weight, const Activations& a, int digits,
                            const float* bias) {
  const PackedLayout& form = weight.form;
  std::vector<float> y;
  for (int64_t m = 0; m < a.rows; ++m) {
    std::vector<Digits> group;
    for (int64_t g = 0; g < groups_of(form); ++g) {
      group.emplace_back(&a.x[m * form.inputs + g * form.group], inputs_of(form, g), digits);
    }
    for (int64_t n = 0; n < form.outputs; ++n) {
      float total = 0;
      for (int d = 0; d < digits; ++d) {
        float acc = 0;
        for (int64_t g = 0; g < groups_of(form); ++g) {
          const int8_t* c = group[g].code[d].data();
          const int* q = &weight.codes[n * form.inputs + g * form.group];
          const float sx = std::ldexp(group[g].scale, 8 * d);
          if (form.binary) {
            float part = 0;
            int32_t sum_c = 0;
            for (int64_t k = 0; k < inputs_of(form, g); ++k) sum_c += c[k];
            for (int i = 0; i < weight.planes; ++i) {
              int32_t sum = 0;
              for (int64_t k = 0; k < inputs_of(form, g); ++k) sum += q[k] >> i & 1 ? c[k] : -c[k];
              part += static_cast<float>(sum) * weight.alpha(n, g, i);
            }
            if (weight.offsets()) {
              part += static_cast<float>(sum_c) * weight.group_offset(n, g);
            }
            acc += sx * part;
          } else {
            int32_t sum = 0;
            const int z = weight.zero(n, g);
            int32_t sum_c = 0;
            for (int64_t k = 0; k < inputs_of(form, g); ++k) {
              sum += c[k] * (q[k] - z);
              sum_c += c[k];
            }
            const float scale = weight.affine_scale(n, g);
            if (weight.offsets()) {
              const float part = static_cast<float>(sum) * scale +
                                 static_cast<float>(sum_c) * weight.group_offset(n, g);
              acc += sx * part;
            } else {
              acc += sx * scale * static_cast<float>(sum);
            }
          }
        }
        total = d ? total + acc : acc;
      }
      y.push_back(total + (bias ? bias[n] : 0.0f));
    }
  }
  return y;
}

// What linear_float.h says.
std::vector<float> expected_by_fma(const Weight& weight, const Activations& a, const float* bias) {
  const PackedLayout& form = weight.form;
  std::vector<float> y;
  for (int64_t m = 0; m < a.rows; ++m) {
    for (int64_t n = 0; n < form.outputs; ++n) {
      float total = 0, sum[4] = {};
      const auto end_span = [&] {
        for (float& s : sum) {
          total += s;
          s = 0;
        }
      };
      int64_t padded = 0;
      for (int64_t g = 0; g < groups_of(form); ++g) {
        for (int64_t i = 0; i < divided(inputs_of(form, g), 32) * 32; ++i, ++padded) {
          if (padded > 0 && padded % 1024 == 0) end_span();
          if (i >= inputs_of(form, g)) continue;
          const int64_t k = g * form.group + i;
          const int code = weight.codes[n * form.inputs + k];
          float w = weight.group_offset(n, g);
          for (int p = 0; form.binary && p < weight.planes; ++p) {
            w += code >> p & 1 ? weight.alpha(n, g, p) : -weight.alpha(n, g, p);
          }
          if (!form.binary) {
            w += weight.affine_scale(n, g) * static_cast<float>(code - weight.zero(n, g));
          }
          sum[i % 4] = std::fma(a.x[m * form.inputs + k], w, sum[i % 4]);
        }
      }
      end_span();
      y.push_back(total + (bias ? bias[n] : 0.0f));
    }
  }
  return y;
}

// f(x) in double; NaN if f is no member.
double exact(Nonlinearity f, double x) {
  const double cubic = 2 * std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x);
  switch (f) {
    case Nonlinearity::identity: return x;
    case Nonlinearity::gelu: return x * std::erfc(-x / std::sqrt(2.0)) / 2;
    case Nonlinearity::gelu_tanh: return x / (1 + std::exp(-cubic));
    case Nonlinearity::quick_gelu: return x / (1 + std::exp(-1.702 * x));
    case Nonlinearity::relu: return x < 0 ? 0 : x;
    case Nonlinearity::silu: return x / (1 + std::exp(-x));
  }
  return std::nan("");
}

// Any member: the compiler warns if `exact` lacks one.
Nonlinearity any_nonlinearity() {
  int count = 0;
  while (!std::isnan(exact(static_cast<Nonlinearity>(count), 1))) ++count;
  return static_cast<Nonlinearity>(below(count));
}

// digits 0: by fma.
void check_linear(Weight& weight, int64_t rows, int digits) {
  const PackedLayout& form = weight.form;
  const Activations a(rows, form.inputs);
  std::vector<float> bias;
  for (int64_t n = 0; n < form.outputs; ++n) bias.push_back(normal());
  const float* b = below(2) ? bias.data() : nullptr;
  const std::vector<float> wanted =
      digits ? expected(weight, a, digits, b) : expected_by_fma(weight, a, b);
  const Nonlinearity f = any_nonlinearity();
  std::vector<float> scalar_y;
  for (const auto& path : lowbit::linear_paths) {
    if (!lowbit::has_feature(path.feature)) continue;
    const auto run = digits ? path.run : lowbit::find_path(lowbit::linear_float_paths, path.name);
    // No result is this one, and none is NaN but where it should be. A second layer, the same but
    // for its nonlinearity, is computed from the same activations.
    std::vector<float> y(wanted.size(), 1234.5f), fy(wanted.size(), 1234.5f);
    const Linear linear{.form = form,
                        .x = a.x.data(),
                        .codes = weight.packed.data(),
                        .scale = weight.scale.data(),
                        .zero_point = weight.zeros(),
                        .offset = weight.offsets(),
                        .bias = b,
                        .y = y.data(),
                        .rows = rows,
                        .planes = weight.planes,
                        .digits = digits ? digits : 1,
                        .half_scale = weight.scale.half,
                        .nonlinearity = Nonlinearity::identity,
                        .sub = weight.sub};
    Linear both[] = {linear, linear};
    both[1].y = fy.data();
    both[1].nonlinearity = f;
    run(both, 2);
    if (scalar_y.empty()) scalar_y = fy;
    for (size_t i = 0; i < y.size(); ++i) {
      const bool both_nan = std::isnan(y[i]) && std::isnan(wanted[i]);
      const bool right = y[i] == wanted[i] || both_nan;
      if (!right)
        std::fprintf(stderr,
                     "%s: outputs %ld inputs %ld group %ld bits %d binary %d planes %d rows %ld"
                     " digits %d half %d: y[%zu] is %a, not %a\n",
                     path.name.data(), static_cast<long>(form.outputs),
                     static_cast<long>(form.inputs), static_cast<long>(form.group), form.bits,
                     form.binary, weight.planes, static_cast<long>(rows), digits, weight.scale.half,
                     i, y[i], wanted[i]);
      CHECK(right);
      CHECK(same_bits(fy[i], scalar_y[i]) || (std::isnan(fy[i]) && std::isnan(scalar_y[i])));
      // Float32 activations keep infinities.
      if (std::isinf(y[i])) {
        const bool kept = y[i] > 0 || f == Nonlinearity::identity;
        CHECK(kept ? fy[i] == y[i] : std::fabs(fy[i]) <= 4e-7);
        CHECK(y[i] == wanted[i]);
        continue;
      }
      const double wanted_f = exact(f, y[i]);
      CHECK(std::isnan(y[i]) ? std::isnan(fy[i])
                             : std::fabs(fy[i] - wanted_f) <= 4e-7 * std::fmax(std::fabs(y[i]), 1));
    }
  }
}

// Sums as large as they become: static activations of -128 or 127 throughout, or of either sign at
// random, against codes of all bits, none, or either at random.
void check_extremes(int bits, bool binary) {
  for (const int64_t inputs : {1, 31, 64, 1000, 4100}) {
    for (const int64_t rows : {1, 2, 4, 7, 19}) {
      const int kind_of_x = static_cast<int>(below(3));
      const PackedLayout form{
          .outputs = 37, .inputs = inputs, .group = inputs, .bits = bits, .binary = binary};
      const Weight weight(form, 1 + static_cast<int>(below(3)));
      std::vector<float> x(rows * inputs), y(rows * form.outputs, 1234.5f);
      for (float& value : x) {
        value = kind_of_x == 0 || (kind_of_x == 2 && below(2)) ? -1000.0f : 1000.0f;
      }
      const std::vector<float> ones(divided(form.outputs, 16) * 16 * bits, 1.0f);
      for (const auto& path : lowbit::linear_paths) {
        if (!lowbit::has_feature(path.feature)) continue;
        const Linear linear{.form = form,
                            .x = x.data(),
                            .codes = weight.packed.data(),
                            .scale = ones.data(),
                            .zero_point = nullptr,
                            .offset = nullptr,
                            .bias = nullptr,
                            .y = y.data(),
                            .rows = rows,
                            .planes = binary ? bits : 1,
                            .digits = 1,
                            .half_scale = false,
                            .nonlinearity = Nonlinearity::identity,
                            .input = {.scale = 1.0f, .zero_point = 0, .lowest = -128}};
        path.run(&linear, 1);
        for (int64_t m = 0; m < rows; ++m) {
          for (int64_t n = 0; n < form.outputs; ++n) {
            int32_t sums[4] = {};
            for (int64_t k = 0; k < inputs; ++k) {
              const int c = x[m * inputs + k] < 0 ? -128 : 127, q = weight.codes[n * inputs + k];
              if (!binary) sums[0] += c * (q - (1 << (bits - 1)));
              for (int i = 0; binary && i < bits; ++i) sums[i] += q >> i & 1 ? c : -c;
            }
            float wanted = 0;
            for (const int32_t sum : sums) wanted += static_cast<float>(sum);
            CHECK(y[m * form.outputs + n] == wanted);
          }
        }
      }
    }
  }
}

}  // namespace

void test_packed_layout() {
  for (int round = 0; round < 1500; ++round) {
    Weight weight(random_form(round % 10 ? 70 : 300));
    check_packed(weight);
    check_decode(weight);
  }
  std::printf("packed: ok\n");
}

void test_linear() {
  for (int round = 0; round < 1200; ++round) {
    const int64_t size = round % 20 ? 70 : 200;
    // A quarter has only the lowest or the highest codes.
    Weight weight(random_form(size), round % 8 < 2 ? 1 + round % 8 : 0);
    const int64_t most_rows = round % 3 ? 12 : size;
    const int digits[] = {0, 1, 4};
    check_linear(weight, below(most_rows), digits[below(3)]);
  }
  // So many inputs that only 32 rows are a chunk, and so many rows that sixteen chunks are not all.
  const PackedLayout long_rows[] = {
      {.outputs = 3, .inputs = 4200, .group = 4200, .bits = 8, .binary = false},
      {.outputs = 3, .inputs = 4200, .group = 1000, .bits = 4, .binary = false},
      {.outputs = 3, .inputs = 4200, .group = 96, .bits = 2, .binary = true}};
  for (const PackedLayout& form : long_rows) {
    Weight weight(form);
    for (const int digits : {4, 0}) check_linear(weight, 530, digits);
  }
  for (int bits = 1; bits <= 8; ++bits) {
    for (const bool binary : {false, true}) {
      if (binary ? bits <= 4 : bits >= 2) check_extremes(bits, binary);
    }
  }
  for (const auto& path : lowbit::linear_paths) {
    std::printf("linear %s: %s\n", path.name.data(),
                lowbit::has_feature(path.feature) ? "ok" : "skipped, this processor lacks it");
  }
}

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

#include "scratch.h"
#include "tests/check.h"
#include "tests/linear_oracle.h"
#include "tests/random.h"
#include "tests/walled.h"
#include "tests/weight.h"

using lowbit::Linear;
using lowbit::Nonlinearity;
using lowbit::PackedLayout;

namespace {

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
  for (const auto& target : lowbit::decode_packed_targets) {
    if (!lowbit::has_feature(target.feature)) continue;
    std::vector<float> out(rows.size() * form.inputs, 1234.5f);
    lowbit::DecodePacked op = weight.decoding();
    op.codes = codes.data();
    op.rows = rows.data();
    op.count = static_cast<int64_t>(rows.size());
    op.out = out.data();
    target.run(op);
    const float* got = out.data();
    for (const int64_t n : rows) {
      for (int64_t k = 0; k < form.inputs; ++k) CHECK(same_bits(*got++, weight.value(n, k)));
    }
  }
}

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

// What calls before left in the scratch: rows behind the last are computed from it too. Times the
// usual zero point it is almost the largest number.
void fill_scratch(const PackedLayout& form) {
  constexpr int64_t words = 1 << 16;
  auto* scratch = static_cast<uint32_t*>(lowbit::call_scratch(words * sizeof(uint32_t)));
  std::fill_n(scratch, words, (1u << (32 - form.bits)) + 1);
}

// limbs 0: by fma.
void check_linear(Weight& weight, int64_t rows, int limbs) {
  const PackedLayout& form = weight.form;
  const Activations a(rows, form.inputs);
  std::vector<float> bias;
  for (int64_t n = 0; n < form.outputs; ++n) bias.push_back(normal());
  const float* b = below(2) ? bias.data() : nullptr;
  const float* x = a.x.data();
  const std::vector<float> wanted =
      limbs ? expected(weight, x, rows, limbs, b) : expected_by_fma(weight, x, rows, b);
  const Nonlinearity f = any_nonlinearity();
  std::vector<float> scalar_y;
  for (const auto& target : lowbit::linear_targets) {
    if (!lowbit::has_feature(target.feature)) continue;
    const auto run =
        limbs ? target.run : lowbit::find_target(lowbit::linear_float_targets, target.name);
    // No result is this one, and none is NaN but where it should be. A second layer, the same but
    // for its nonlinearity, is computed from the same activations.
    std::vector<float> y(wanted.size(), 1234.5f), fy(wanted.size(), 1234.5f);
    Linear linear = weight.layer(limbs ? limbs : 1);
    linear.x = x;
    linear.bias = b;
    linear.y = y.data();
    linear.rows = rows;
    Linear both[] = {linear, linear};
    both[1].y = fy.data();
    fill_scratch(form);
    both[1].nonlinearity = f;
    run(both, 2);
    if (scalar_y.empty()) scalar_y = fy;
    for (size_t i = 0; i < y.size(); ++i) {
      const bool both_nan = std::isnan(y[i]) && std::isnan(wanted[i]);
      const bool right = y[i] == wanted[i] || both_nan;
      if (!right)
        std::fprintf(stderr,
                     "%s: outputs %ld inputs %ld group %ld bits %d binary %d planes %d rows %ld"
                     " limbs %d half %d: y[%zu] is %a, not %a\n",
                     target.name.data(), static_cast<long>(form.outputs),
                     static_cast<long>(form.inputs), static_cast<long>(form.group), form.bits,
                     form.binary, weight.planes, static_cast<long>(rows), limbs, weight.scale.half,
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
      for (const auto& target : lowbit::linear_targets) {
        if (!lowbit::has_feature(target.feature)) continue;
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
                            .limbs = 1,
                            .half_scale = false,
                            .nonlinearity = Nonlinearity::identity,
                            .input = {.scale = 1.0f, .zero_point = 0, .lowest = -128}};
        target.run(&linear, 1);
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
    const int limbs[] = {0, 1, 4};
    check_linear(weight, below(most_rows), limbs[below(3)]);
  }
  // So many inputs that only 32 rows are a chunk, and so many rows that sixteen chunks are not all.
  const PackedLayout long_rows[] = {
      {.outputs = 3, .inputs = 4200, .group = 4200, .bits = 8, .binary = false},
      {.outputs = 3, .inputs = 4200, .group = 1000, .bits = 4, .binary = false},
      {.outputs = 3, .inputs = 4200, .group = 96, .bits = 2, .binary = true}};
  for (const PackedLayout& form : long_rows) {
    Weight weight(form);
    for (const int limbs : {4, 0}) check_linear(weight, 530, limbs);
  }
  for (int bits = 1; bits <= 8; ++bits) {
    for (const bool binary : {false, true}) {
      if (binary ? bits <= 4 : bits >= 2) check_extremes(bits, binary);
    }
  }
  for (const auto& target : lowbit::linear_targets) {
    std::printf("linear %s: %s\n", target.name.data(),
                lowbit::has_feature(target.feature) ? "ok" : "skipped, this processor lacks it");
  }
}

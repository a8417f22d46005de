// Experts against one linear layer in float32 that has the outputs of all experts, on the scalar
// target (linear.cpp compares it with plain loops). Gates, sums and rounding to bfloat16 are plain
// loops, by the text of experts.h.
#include "experts.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <utility>
#include <vector>

#include "linear_float.h"
#include "tests/check.h"
#include "tests/linear_oracle.h"
#include "tests/random.h"
#include "tests/walled.h"
#include "tests/weight.h"

using lowbit::Experts;
using lowbit::Linear;
using lowbit::Nonlinearity;
using lowbit::PackedLayout;

namespace {

// To bfloat16: the nearest of 8 significant bits, fewer below 2^-126; ties to even.
float rounded(float x) {
  int exponent;
  std::frexp(x, &exponent);
  exponent = std::max(exponent, -125);
  return std::ldexp(std::nearbyint(std::ldexp(x, 8 - exponent)), exponent - 8);
}

// Numbers in float32 or bfloat16, as a kernel gets them and as floats.
struct Operand {
  bool bfloat16;
  std::vector<float> floats;
  std::vector<uint16_t> halves;

  Operand(int64_t count, bool bfloat16) : bfloat16(bfloat16), floats(count) {
    for (float& x : floats) x = bfloat16 ? rounded(normal()) : normal();
    fill_halves();
  }
  Operand(std::vector<float> numbers, bool bfloat16)
      : bfloat16(bfloat16), floats(std::move(numbers)) {
    fill_halves();
  }

  void* data() {
    return bfloat16 ? static_cast<void*>(halves.data()) : static_cast<void*>(floats.data());
  }
  bool equals(const Operand& other) const {
    return bfloat16 ? halves == other.halves
                    : floats.empty() || std::memcmp(floats.data(), other.floats.data(),
                                                    floats.size() * sizeof(float)) == 0;
  }

 private:
  void fill_halves() {
    if (!bfloat16) return;
    for (const float x : floats) {
      uint32_t bits;
      std::memcpy(&bits, &x, sizeof bits);
      halves.push_back(static_cast<uint16_t>(bits >> 16));
    }
  }
};

PackedLayout with_outputs(PackedLayout form, int64_t outputs) {
  form.outputs = outputs;
  return form;
}

// The weights of all experts: those of one layer, each expert beginning a panel, and the same
// expert after expert, as experts.h takes them.
class ExpertWeights {
 public:
  const PackedLayout form;  // of each
  const int64_t experts, padded_outputs = divided(form.outputs, 16) * 16;
  const Weight all;

  ExpertWeights(const PackedLayout& form, int64_t experts)
      : form(form),
        experts(experts),
        all(with_outputs(form, experts * padded_outputs)),
        bytes_(place_parts()) {
    for (const Part& part : parts_) {
      for (int64_t e = 0; e < experts; ++e) {
        std::memcpy(bytes_.data() + e * stride_ + part.first,
                    static_cast<const uint8_t*>(part.of_all) + e * part.bytes, part.bytes);
      }
    }
  }

  Experts op(int limbs) const {
    Experts made{};
    made.layer = all.layer(limbs);
    made.layer.form = form;
    made.layer.codes = part(all.packed.data());
    made.layer.scale = part(all.scale.data());
    made.layer.zero_point = part(all.zeros());
    made.layer.offset = part(all.offsets());
    made.layer.sub.scale = part(all.sub.scale);
    made.layer.sub.offset = part(all.sub.offset);
    made.experts = experts;
    made.stride = stride_;
    return made;
  }

 private:
  // Some numbers of each expert: where those of the first begin, and their bytes.
  struct Part {
    const void* of_all;
    int64_t first, bytes;
  };

  // Returns the size of all experts: nothing is readable behind the last part of the last.
  int64_t place_parts() {
    const int64_t groups = padded_outputs * groups_of(form);
    const int64_t scales = groups / all.sub.groups * (all.scale.half ? 2 : 4);
    int64_t end = 0;
    const auto place = [&](const void* of_all, int64_t bytes, int64_t readable = 0) {
      if (!of_all) return;
      const int64_t first = divided(end, 64) * 64;
      parts_.push_back({.of_all = of_all, .first = first, .bytes = bytes});
      end = first + bytes + readable;
    };
    place(all.packed.data(), codes_bytes(form), readable_bytes(form));
    place(all.zeros(), groups);
    place(all.offsets(), scales);
    place(all.sub.scale, groups);
    place(all.sub.offset, groups);
    place(all.scale.data(), scales * all.planes);
    stride_ = divided(end, 64) * 64;
    return (experts - 1) * stride_ + end;
  }

  // Where the part of the first expert is; null if there is none.
  const uint8_t* part(const void* of_all) const {
    for (const Part& each : parts_) {
      if (each.of_all == of_all) return bytes_.data() + each.first;
    }
    return nullptr;
  }

  std::vector<Part> parts_;
  int64_t stride_ = 0;
  Walled bytes_;
};

struct Case {
  PackedLayout form;
  int64_t experts, tokens, slots;
  bool gated = false, summed = false, bfloat16_weights = below(2);
};

void check(const Case& given) {
  const int64_t outputs = given.form.outputs, inputs = given.form.inputs;
  const int64_t inner = given.gated ? outputs / 2 : outputs;
  const int64_t pairs = given.tokens * given.slots, rows = given.summed ? pairs : given.tokens;
  const ExpertWeights weights(given.form, given.experts);
  const int64_t all_outputs = weights.all.form.outputs;
  const bool fma = below(3) == 0, half = below(2), has_bias = below(4);
  const int limbs = fma || below(2) ? 1 : 4;
  const Nonlinearity f = given.gated ? any_nonlinearity() : Nonlinearity::identity;
  Operand x(rows * inputs, half), bias(given.experts * outputs, half && below(2));
  Operand slot_weights(pairs, given.bfloat16_weights);
  std::vector<int64_t> ids(pairs);
  for (int64_t& id : ids) id = below(given.experts + 1);

  // Of all experts, in float32: plain, and after the nonlinearity.
  std::vector<float> plain(rows * all_outputs), bent(plain.size()), all_bias(all_outputs);
  for (int64_t i = 0; i < given.experts * outputs; ++i) {
    all_bias[i / outputs * weights.padded_outputs + i % outputs] = bias.floats[i];
  }
  Linear layers[] = {weights.all.layer(limbs), weights.all.layer(limbs)};
  for (Linear& layer : layers) {
    layer.x = x.floats.data();
    layer.bias = has_bias ? all_bias.data() : nullptr;
    layer.rows = rows;
  }
  layers[0].y = plain.data();
  layers[1].y = bent.data();
  layers[1].nonlinearity = f;
  (fma ? lowbit::scalar::linear_float : lowbit::scalar::linear)(layers, given.gated ? 2 : 1);

  const auto stored = [&](float number) { return half ? rounded(number) : number; };
  std::vector<float> wanted((given.summed ? given.tokens : pairs) * inner, 0.0f);
  for (int64_t pair = 0; pair < pairs; ++pair) {
    if (ids[pair] == given.experts) continue;
    const int64_t row = given.summed ? pair : pair / given.slots;
    const int64_t first = row * all_outputs + ids[pair] * weights.padded_outputs;
    for (int64_t i = 0; i < inner; ++i) {
      const float result = stored(plain[first + i]);
      if (given.gated) {
        wanted[pair * inner + i] =
            stored(stored(bent[first + i]) * stored(plain[first + inner + i]));
      } else if (given.summed) {
        const float term = result * slot_weights.floats[pair];
        wanted[pair / given.slots * inner + i] +=
            half && slot_weights.bfloat16 ? rounded(term) : term;
      } else {
        wanted[pair * inner + i] = result;
      }
    }
  }
  if (half) {
    for (float& number : wanted) number = rounded(number);  // sums; the others are already
  }
  const Operand right(wanted, half);

  Experts op = weights.op(limbs);
  op.ids = ids.data();
  op.slots = given.slots;
  op.gated = given.gated;
  if (given.summed) {
    op.weights = slot_weights.data();
    op.bfloat16_weights = slot_weights.bfloat16;
  }
  op.layer.x = x.data();
  op.layer.bias = has_bias ? bias.data() : nullptr;
  op.layer.rows = given.tokens;
  op.layer.nonlinearity = f;
  op.layer.bfloat16 = half;
  op.layer.bfloat16_bias = bias.bfloat16;
  for (const auto& target : lowbit::experts_targets) {
    if (!lowbit::has_feature(target.feature)) continue;
    Operand y(std::vector<float>(wanted.size(), NAN), half);
    op.layer.y = y.data();
    (fma ? lowbit::find_target(lowbit::experts_float_targets, target.name) : target.run)(op);
    CHECK(y.equals(right));
  }
}

PackedLayout affine(int64_t outputs, int64_t inputs, int bits) {
  return {.outputs = outputs, .inputs = inputs, .group = inputs, .bits = bits, .binary = false};
}

void check_refused(int64_t id) {
  const ExpertWeights weights(affine(16, 8, 4), 3);
  std::vector<float> x(8), y(16);
  Experts op = weights.op(1);
  op.ids = &id;
  op.slots = 1;
  op.layer.x = x.data();
  op.layer.y = y.data();
  op.layer.rows = 1;
  bool refused = false;
  try {
    lowbit::scalar::experts(op);
  } catch (const std::out_of_range&) {
    refused = true;
  }
  CHECK(refused);
}

}  // namespace

void test_experts() {
  for (int i = 0; i < 200; ++i) {
    Case any{.form = random_form(100),
             .experts = 1 + below(6),
             .tokens = below(40),
             .slots = 1 + below(4),
             .gated = i % 3 == 1,
             .summed = i % 3 == 2};
    any.form.outputs = any.gated ? 32 * (1 + below(3)) : 1 + below(70);
    check(any);
  }
  check({.form = affine(64, 70, 5), .experts = 2, .tokens = 300, .slots = 1, .gated = true});
  // More than are summed when all are there; and more than one round holds.
  check({.form = affine(100, 50, 4), .experts = 2, .tokens = 400, .slots = 3, .summed = true});
  for (const bool half : {false, true}) {
    check({.form = affine(3, 2000, 4),
           .experts = 1,
           .tokens = 2500,
           .slots = 4,
           .summed = true,
           .bfloat16_weights = half});
  }
  check_refused(-1);
  check_refused(4);
  std::printf("experts: ok\n");
}

// Experts against the linear layer of each, row by row.
#include "experts.h"

#include <cmath>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "linear_float.h"
#include "tests/check.h"
#include "tests/random.h"

using lowbit::Experts;
using lowbit::Linear;
using lowbit::PackedLayout;

namespace {

// Weights of all experts, 8-bit codes with float32 scales, one expert after the other.
struct Weights {
  PackedLayout form;
  int64_t scale_at, stride;
  std::vector<uint8_t> bytes;

  Weights(int64_t experts, int64_t outputs, int64_t inputs, int64_t group, int bits)
      : form{.outputs = outputs, .inputs = inputs, .group = group, .bits = bits, .binary = false} {
    const int64_t scales = form.panels() * form.groups() * 16;
    scale_at = form.panels() * form.panel_bytes();
    stride = (scale_at + scales * 4 + 512 + 63) / 64 * 64;
    bytes.resize(experts * stride);
    for (auto& byte : bytes) byte = static_cast<uint8_t>(below(256));
    for (int64_t e = 0; e < experts; ++e) {
      for (int64_t i = 0; i < scales; ++i) {
        const float scale = 0.01f * normal();
        std::memcpy(&bytes[e * stride + scale_at + i * 4], &scale, sizeof scale);
      }
    }
  }

  Linear layer(int64_t expert, int digits) const {
    Linear op{};
    op.form = form;
    op.codes = &bytes[expert * stride];
    op.scale = &bytes[expert * stride + scale_at];
    op.planes = 1;
    op.digits = digits;
    return op;
  }
};

void check_once(int64_t experts, int64_t tokens, int64_t slots, bool gated) {
  const int64_t inner = gated ? 16 * (1 + below(3)) : 1 + below(70);
  const int64_t outputs = gated ? 2 * inner : inner, inputs = 1 + below(100);
  const bool fma = below(3) == 0;
  const int digits = fma || below(2) ? 1 : 4;
  const auto alone = fma ? lowbit::scalar::linear_float : lowbit::scalar::linear;
  const Weights weights(experts, outputs, inputs, 1 + below(inputs),
                        2 + static_cast<int>(below(7)));
  std::vector<float> x(tokens * inputs), bias(experts * outputs), y(tokens * slots * inner);
  for (float& v : x) v = normal();
  for (float& v : bias) v = normal();
  std::vector<int64_t> ids(tokens * slots);
  for (auto& id : ids) id = below(experts + 1);
  Experts op{.layer = weights.layer(0, digits),
             .experts = experts,
             .stride = weights.stride,
             .ids = ids.data(),
             .slots = slots,
             .gated = gated};
  op.layer.x = x.data();
  op.layer.bias = bias.data();
  op.layer.rows = tokens;
  op.layer.y = y.data();
  op.layer.nonlinearity = gated ? lowbit::Nonlinearity::silu : lowbit::Nonlinearity::identity;
  std::vector<float> wanted(y.size(), 0.0f);
  for (int64_t pair = 0; pair < tokens * slots; ++pair) {
    if (ids[pair] == experts) continue;
    Linear one = weights.layer(ids[pair], digits);
    std::vector<float> plain(outputs), bent(outputs);
    one.x = &x[pair / slots * inputs];
    one.bias = &bias[ids[pair] * outputs];
    one.rows = 1;
    one.y = plain.data();
    alone(&one, 1);
    one.nonlinearity = op.layer.nonlinearity;
    one.y = bent.data();
    alone(&one, 1);
    for (int64_t i = 0; i < inner; ++i) {
      wanted[pair * inner + i] = gated ? bent[i] * plain[inner + i] : plain[i];
    }
  }
  for (const auto& path : lowbit::experts_paths) {
    if (!lowbit::has_feature(path.feature)) continue;
    for (float& v : y) v = NAN;
    (fma ? lowbit::find_path(lowbit::experts_float_paths, path.name) : path.run)(op);
    CHECK(y.empty() || std::memcmp(y.data(), wanted.data(), y.size() * sizeof(float)) == 0);
  }
}

// Of rows for each slot, with `weights`: what the rows give, weighted and added in order.
void check_sum(int64_t experts, int64_t tokens, int64_t slots, int64_t outputs, int64_t inputs) {
  const int64_t pairs = tokens * slots;
  const Weights weights(experts, outputs, inputs, 1 + below(inputs), 4);
  std::vector<float> x(pairs * inputs), bias(experts * outputs), slot_weights(pairs);
  for (float& v : x) v = normal();
  for (float& v : bias) v = normal();
  for (float& v : slot_weights) v = normal();
  std::vector<int64_t> ids(pairs);
  for (auto& id : ids) id = below(experts + 1);
  std::vector<float> wanted(tokens * outputs, 0.0f), y(wanted.size());
  for (int64_t pair = 0; pair < pairs; ++pair) {
    if (ids[pair] == experts) continue;
    std::vector<float> own(outputs);
    Linear one = weights.layer(ids[pair], 1);
    one.x = &x[pair * inputs];
    one.bias = &bias[ids[pair] * outputs];
    one.rows = 1;
    one.y = own.data();
    lowbit::scalar::linear(&one, 1);
    for (int64_t i = 0; i < outputs; ++i) {
      wanted[pair / slots * outputs + i] += own[i] * slot_weights[pair];
    }
  }
  Experts op{.layer = weights.layer(0, 1),
             .experts = experts,
             .stride = weights.stride,
             .ids = ids.data(),
             .slots = slots,
             .gated = false,
             .weights = slot_weights.data()};
  op.layer.x = x.data();
  op.layer.bias = bias.data();
  op.layer.rows = tokens;
  op.layer.y = y.data();
  for (const auto& path : lowbit::experts_paths) {
    if (!lowbit::has_feature(path.feature)) continue;
    for (float& v : y) v = NAN;
    path.run(op);
    CHECK(y.empty() || std::memcmp(y.data(), wanted.data(), y.size() * sizeof(float)) == 0);
  }
}

void check_refused(int64_t id) {
  const Weights weights(3, 16, 8, 8, 4);
  std::vector<float> x(8), y(16);
  Experts op{.layer = weights.layer(0, 1),
             .experts = 3,
             .stride = weights.stride,
             .ids = &id,
             .slots = 1,
             .gated = false};
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
  for (int i = 0; i < 60; ++i) check_once(1 + below(6), below(40), 1 + below(4), i % 2 == 1);
  check_once(2, 300, 1, true);
  for (int i = 0; i < 20; ++i) {
    check_sum(1 + below(6), below(12), 1 + below(9), 1 + below(90), 1 + below(100));
  }
  check_sum(3, 400, 3, 100, 50);   // more than are summed when all are there
  check_sum(2, 2500, 4, 3, 2000);  // and more than one round holds
  check_refused(-1);
  check_refused(4);
}

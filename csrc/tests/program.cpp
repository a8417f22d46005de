// Programs: the same bits on every target, in operands that end at an unreadable page. Lookups,
// sums and linear layers have the bits of plain loops; an attention with a bias is near one in
// double. (tests/runtime/test_program.py compares the other operations with float64.)
#include "program.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <vector>

#include "linear_float.h"
#include "tests/check.h"
#include "tests/linear_oracle.h"
#include "tests/random.h"
#include "tests/walled.h"
#include "tests/weight.h"

using lowbit::PackedLayout;

namespace {

constexpr int64_t float_bytes = sizeof(float);

float* floats(const Walled& memory) { return reinterpret_cast<float*>(memory.data()); }

struct Case {
  int64_t heads, size, tokens;
  std::vector<int64_t> starts, places;
  bool causal;
  int64_t window;
};

Case any_case() {
  Case made{1 + below(3), 1 + below(40), 0, {0}, {}, below(2) == 0, below(3)};
  const int64_t sequences = below(4);
  for (int64_t i = 0; i < sequences; ++i) {
    const int64_t length = below(3) == 0 ? below(150) : below(20);
    for (int64_t place = 0; place < length; ++place) made.places.push_back(place);
    made.starts.push_back(made.starts.back() + length);
  }
  made.tokens = made.starts.back();
  return made;
}

// The numbers of the result, from the first target and from each later one.
void run_on(const Case& given, std::string_view target, float* x, float* weight, float* y) {
  const int64_t columns = given.heads * given.size;
  lowbit::Program program;
  const int64_t step = (columns + 15) / 16 * 16;
  const int from = program.input(columns), between = program.in_arena(columns, 0),
            sum = program.in_arena(columns, step), turned = program.in_arena(columns, 2 * step),
            gated = program.in_arena(columns / 2 + 1, 3 * step), to = program.result(columns);
  lowbit::NormalizeRows norm{};
  norm.columns = columns;
  norm.weight = weight;
  norm.epsilon = 1e-6f;
  norm.centered = given.causal;
  program.normalize(norm, target, from, from, sum, between);
  int operations = 2;  // the norm and the attention
  if (columns > 1) {
    program.gate(lowbit::Nonlinearity::gelu, target, {from, columns / 2 - 1},
                 {between, (columns - 1) / 2}, gated);
    program.gate(lowbit::Nonlinearity::quick_gelu, target, {gated, 0}, {-1, 0}, gated);
    operations += 2;
  }
  const bool turns = given.size % 2 == 0;
  if (turns) {
    const int angles = program.input(given.size);
    program.rotate({between, 0}, given.heads, given.size, angles, angles, turned);
    ++operations;
  }
  lowbit::Attention attention{};
  attention.heads = attention.key_heads = given.heads;
  attention.size = attention.value_size = given.size;
  attention.scale = 0.3f;
  attention.causal = given.causal;
  attention.window = given.window;
  program.attention(attention, target, {turns ? turned : between, 0}, {from, 0}, {sum, 0}, -1, to);
  Walled arena(program.arena_bytes(given.tokens));
  lowbit::ProgramCall call{};
  call.tokens = given.tokens;
  call.sequences = static_cast<int64_t>(given.starts.size()) - 1;
  call.starts = given.starts.data();
  call.places = given.places.data();
  call.inputs = {x};
  if (turns) call.inputs.push_back(x);  // more numbers than there are angles
  call.results = {y};
  call.arena = arena.data();
  program.run(call, 0, 2);
  program.run(call, 2, operations);
}

struct Matrix {
  int64_t columns;
  Walled memory;

  Matrix(int64_t rows, int64_t columns) : columns(columns), memory(rows * columns * float_bytes) {
    for (int64_t i = 0; i < rows * columns; ++i) floats(memory)[i] = normal();
  }
  float* row(int64_t i) const { return floats(memory) + i * columns; }
};

// Equal numbers, none of them NaN.
bool equal(const Matrix& got, const std::vector<float>& wanted) {
  return std::equal(wanted.begin(), wanted.end(), got.row(0));
}

std::vector<int64_t> any_ids(int64_t count, int64_t rows) {
  std::vector<int64_t> ids(count);
  for (int64_t& id : ids) id = below(rows);
  return ids;
}

// c = rows of a plain table (a) + rows of a packed one (b), and two layers of c.
void check_products() {
  PackedLayout form = random_form(70), other = random_form(70);
  form.outputs = 1 + below(40);
  other.outputs = 1 + below(40);
  // Layers over one input have as many inputs and as wide groups.
  other.inputs = form.inputs;
  other.group = form.group;
  const Weight packed(form), first(form), second(other);
  const int64_t tokens = below(30), table_rows = 1 + below(20), inputs = form.inputs;
  const Matrix table(table_rows, inputs), bias(1, form.outputs);
  const std::vector<int64_t> ids = any_ids(tokens, table_rows);
  const std::vector<int64_t> packed_ids = any_ids(tokens, form.outputs);
  const int kinds[] = {0, 1, 4}, kind = kinds[below(3)];  // limbs; 0: by fma

  std::vector<float> looked_up, decoded, sum;
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t k = 0; k < inputs; ++k) {
      looked_up.push_back(table.row(ids[t])[k]);
      decoded.push_back(packed.value(packed_ids[t], k));
      sum.push_back(looked_up.back() + decoded.back());
    }
  }
  const auto product = [&](const Weight& weight, const float* added) {
    return kind ? expected(weight, sum.data(), tokens, kind, added)
                : expected_by_fma(weight, sum.data(), tokens, added);
  };
  const std::vector<float> of_first = product(first, bias.row(0));
  const std::vector<float> of_second = product(second, nullptr);

  for (const auto& target : lowbit::linear_targets) {
    if (!lowbit::has_feature(target.feature)) continue;
    lowbit::Program program;
    const int a = program.result(inputs), b = program.result(inputs), c = program.result(inputs);
    const std::vector<int> ys{program.result(form.outputs), program.result(other.outputs)};
    lowbit::Table plain{}, coded{};
    plain.numbers = table.row(0);
    plain.rows = table_rows;
    coded.packed = packed.decoding();
    coded.rows = form.outputs;
    plain.columns = coded.columns = inputs;
    std::vector<lowbit::Linear> layers{first.layer(kind ? kind : 1), second.layer(kind ? kind : 1)};
    layers[0].bias = bias.row(0);
    program.lookup(plain, 0, a, "scalar");
    program.lookup(coded, 1, b, "scalar");
    program.add(a, b, c);
    program.linear(
        kind ? target.run : lowbit::find_target(lowbit::linear_float_targets, target.name), layers,
        c, ys);

    const Matrix got_a(tokens, inputs), got_b(tokens, inputs), got_c(tokens, inputs);
    const Matrix got_first(tokens, form.outputs), got_second(tokens, other.outputs);
    const int64_t starts[] = {0, tokens};
    lowbit::ProgramCall call{};
    call.tokens = tokens;
    call.sequences = 1;
    call.starts = starts;
    call.ids = {ids.data(), packed_ids.data()};
    for (const Matrix* got : {&got_a, &got_b, &got_c, &got_first, &got_second}) {
      call.results.push_back(got->row(0));
    }
    program.run(call, 0, 4);
    CHECK(equal(got_a, looked_up));
    CHECK(equal(got_b, decoded));
    CHECK(equal(got_c, sum));
    CHECK(equal(got_first, of_first));
    CHECK(equal(got_second, of_second));
  }
}

// Heads that share keys, and a bias that begins anywhere for each sequence.
struct BiasedAttention {
  int64_t key_heads = 1 + below(3), heads = key_heads * (1 + below(3));
  int64_t size = 1 + below(40), value_size = 1 + below(40), length = 70;
  bool causal = below(2);
  int64_t window = below(2) ? 0 : 1 + below(20);
  std::vector<int64_t> starts{0}, places;

  BiasedAttention() {
    for (int64_t sequences = 1 + below(3); sequences > 0; --sequences) {
      const int64_t tokens = below(60), place = below(length - tokens + 1);
      for (int64_t i = 0; i < tokens; ++i) places.push_back(place + i);
      starts.push_back(starts.back() + tokens);
    }
  }
  int64_t tokens() const { return starts.back(); }

  // The score of a key for a query of a head, both of the sequence from row `first` on.
  double score(const Matrix& query, const Matrix& key, const Matrix& bias, int64_t head,
               int64_t first, int64_t i, int64_t j) const {
    if ((causal && j > i) || (window && std::abs(i - j) > window)) {
      return -std::numeric_limits<double>::infinity();
    }
    const float* q = query.row(first + i) + head * size;
    const float* k = key.row(first + j) + head / (heads / key_heads) * size;
    double sum = 0;
    for (int64_t d = 0; d < size; ++d) sum += static_cast<double>(q[d]) * k[d];
    return 0.3f * sum + bias.row(head * length + places[first + i])[places[first + j]];
  }

  // In double.
  std::vector<double> expected_y(const Matrix& query, const Matrix& key, const Matrix& value,
                                 const Matrix& bias) const {
    std::vector<double> y(tokens() * heads * value_size);
    for (size_t s = 0; s + 1 < starts.size(); ++s) {
      const int64_t first = starts[s], count = starts[s + 1] - first;
      for (int64_t i = 0; i < count; ++i) {
        for (int64_t head = 0; head < heads; ++head) {
          std::vector<double> weights;
          for (int64_t j = 0; j < count; ++j) {
            weights.push_back(std::exp(score(query, key, bias, head, first, i, j)));
          }
          double total = 0;
          for (const double weight : weights) total += weight;
          double* to = &y[((first + i) * heads + head) * value_size];
          for (int64_t j = 0; j < count; ++j) {
            const float* v = value.row(first + j) + head / (heads / key_heads) * value_size;
            for (int64_t d = 0; d < value_size; ++d) to[d] += weights[j] / total * v[d];
          }
        }
      }
    }
    return y;
  }
};

void check_biased_attention() {
  const BiasedAttention given;
  const int64_t tokens = given.tokens(), length = given.length;
  const Matrix query(tokens, given.heads * given.size), key(tokens, given.key_heads * given.size);
  const Matrix value(tokens, given.key_heads * given.value_size);
  const Matrix bias(given.heads * length, length);
  const std::vector<double> wanted = given.expected_y(query, key, value, bias);
  std::vector<float> first;
  for (const auto& target : lowbit::sequence_attention_targets) {
    if (!lowbit::has_feature(target.feature)) continue;
    lowbit::Program program;
    const int q = program.input(query.columns), k = program.input(key.columns);
    const int v = program.input(value.columns), to = program.result(given.heads * given.value_size);
    lowbit::Attention attention{};
    attention.heads = given.heads;
    attention.key_heads = given.key_heads;
    attention.size = given.size;
    attention.value_size = given.value_size;
    attention.scale = 0.3f;
    attention.causal = given.causal;
    attention.window = given.window;
    program.attention(attention, target.name, {q, 0}, {k, 0}, {v, 0}, 0, to);
    const Matrix y(tokens, given.heads * given.value_size);
    lowbit::ProgramCall call{};
    call.tokens = tokens;
    call.sequences = static_cast<int64_t>(given.starts.size()) - 1;
    call.starts = given.starts.data();
    call.places = given.places.data();
    call.inputs = {query.row(0), key.row(0), value.row(0)};
    call.results = {y.row(0)};
    call.biases = {{.kind = lowbit::MaskKind::additive,
                    .data = bias.memory.data(),
                    .batch_step = 0,
                    .head_step = length * length * float_bytes,
                    .query_step = length * float_bytes}};
    program.run(call, 0, 1);
    for (size_t i = 0; i < wanted.size(); ++i) {
      CHECK(std::fabs(y.row(0)[i] - wanted[i]) <= 1e-4);  // of values of about 1
    }
    if (first.empty()) first.assign(y.row(0), y.row(0) + wanted.size());
    CHECK(first.empty() || std::memcmp(first.data(), y.row(0), y.memory.bytes()) == 0);
  }
}

}  // namespace

void test_program() {
  for (int round = 0; round < 12; ++round) {
    const Case given = any_case();
    const int64_t columns = given.heads * given.size, numbers = given.tokens * columns;
    Walled x(numbers * float_bytes), weight(columns * float_bytes);
    for (int64_t i = 0; i < numbers; ++i) floats(x)[i] = normal();
    for (int64_t i = 0; i < columns; ++i) floats(weight)[i] = normal();
    std::vector<float> first;
    for (const auto& target : lowbit::normalize_rows_targets) {
      if (!lowbit::has_feature(target.feature)) continue;
      Walled y(numbers * float_bytes);
      run_on(given, target.name, floats(x), floats(weight), floats(y));
      if (numbers == 0) continue;
      if (first.empty()) first.assign(floats(y), floats(y) + numbers);
      CHECK(std::memcmp(first.data(), floats(y), numbers * float_bytes) == 0);
    }
  }
  for (int round = 0; round < 100; ++round) check_products();
  for (int round = 0; round < 40; ++round) check_biased_attention();
  std::printf("program: ok\n");
}

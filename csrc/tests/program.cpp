// A program of a norm and an attention: the same bits on every path, in operands that end at an
// unreadable page. (tests/runtime/test_program.py compares numbers with float64.)
#include "program.h"

#include <cstring>
#include <vector>

#include "tests/check.h"
#include "tests/random.h"
#include "tests/walled.h"

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

// The numbers of the result, from the first path and from each later one.
void run_on(const Case& given, std::string_view path, float* x, float* weight, float* y) {
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
  program.normalize(norm, path, from, from, sum, between);
  int operations = 2;  // the norm and the attention
  if (columns > 1) {
    program.gate(lowbit::Nonlinearity::gelu, path, {from, columns / 2 - 1},
                 {between, (columns - 1) / 2}, gated);
    program.gate(lowbit::Nonlinearity::quick_gelu, path, {gated, 0}, {-1, 0}, gated);
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
  program.attention(attention, path, {turns ? turned : between, 0}, {from, 0}, {sum, 0}, -1, to);
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

}  // namespace

void test_program() {
  for (int round = 0; round < 12; ++round) {
    const Case given = any_case();
    const int64_t columns = given.heads * given.size, numbers = given.tokens * columns;
    Walled x(numbers * float_bytes), weight(columns * float_bytes);
    for (int64_t i = 0; i < numbers; ++i) floats(x)[i] = normal();
    for (int64_t i = 0; i < columns; ++i) floats(weight)[i] = normal();
    std::vector<float> first;
    for (const auto& path : lowbit::normalize_rows_paths) {
      if (!lowbit::has_feature(path.feature)) continue;
      Walled y(numbers * float_bytes);
      run_on(given, path.name, floats(x), floats(weight), floats(y));
      if (numbers == 0) continue;
      if (first.empty()) first.assign(floats(y), floats(y) + numbers);
      CHECK(std::memcmp(first.data(), floats(y), numbers * float_bytes) == 0);
    }
  }
}

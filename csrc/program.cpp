#include "program.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "parallel.h"

namespace lowbit {
namespace {

constexpr int64_t alignment = 16;              // floats: a cache line
constexpr int64_t numbers_per_thread = 32768;  // fewer are moved sooner by one thread alone

int64_t rows_per_thread(int64_t columns) { return 1 + numbers_per_thread / (columns + 1); }

// Rows are read and written by them.
void check_sequences(const ProgramCall& call) {
  const auto bad = [](const std::string& what) {
    throw std::invalid_argument("sequences " + what);
  };
  if (call.tokens < 0 || call.sequences < 0 || call.starts[0] != 0) bad("do not begin at row 0");
  for (int64_t i = 0; i < call.sequences; ++i) {
    const int64_t first = call.starts[i], count = call.starts[i + 1] - first;
    if (count < 0 || call.starts[i + 1] > call.tokens) bad("do not follow each other");
    for (const Mask& bias : call.biases) {
      if (count && call.places[first] + count > bias.query_step / mask_bytes(bias.kind)) {
        bad("are longer than their bias");
      }
    }
  }
  if (call.starts[call.sequences] != call.tokens) bad("are not all of the rows");
}

// Rows of a table are read by them.
void check_ids(const ProgramCall& call, int ids, int64_t rows) {
  if (ids >= static_cast<int>(call.ids.size())) {
    throw std::invalid_argument("ids " + std::to_string(ids) + " are missing");
  }
  for (int64_t i = 0; i < call.tokens; ++i) {
    const int64_t id = call.ids[ids][i];
    if (id < 0 || id >= rows) {
      throw std::out_of_range("id " + std::to_string(id) + " leaves a table of " +
                              std::to_string(rows) + " rows");
    }
  }
}

// Where a line of the cache begins in it.
float* arena(const ProgramCall& call) {
  constexpr uintptr_t line = alignment * sizeof(float);
  return reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(call.arena) + line - 1) / line *
                                  line);
}

int64_t aligned(int64_t numbers) { return (numbers + alignment - 1) / alignment * alignment; }

}  // namespace

int Program::made(const Matrix& matrix) {
  if (matrix.columns < 1) {
    throw std::invalid_argument("a matrix of " + std::to_string(matrix.columns) + " columns");
  }
  matrices_.push_back(matrix);
  return static_cast<int>(matrices_.size()) - 1;
}

int Program::in_arena(int64_t columns, int64_t first) {
  if (first < 0 || first % alignment) {
    throw std::invalid_argument("column " + std::to_string(first) +
                                " of the arena is no multiple of " + std::to_string(alignment));
  }
  const int matrix = made({columns, first, -1, -1});
  arena_columns_ = std::max(arena_columns_, first + aligned(columns));
  return matrix;
}

int Program::input(int64_t columns) { return made({columns, -1, inputs_++, -1}); }

int Program::result(int64_t columns) { return made({columns, -1, -1, results_++}); }

void Program::check(int matrix, int64_t columns, const char* what) const {
  const auto say = [&](const std::string& is) {
    throw std::invalid_argument(std::string(what) + " " + is + ", not a matrix of " +
                                std::to_string(columns) + " columns");
  };
  if (matrix < 0 || matrix >= static_cast<int>(matrices_.size())) {
    say("is number " + std::to_string(matrix) + " of " + std::to_string(matrices_.size()));
  }
  if (matrices_[matrix].columns != columns) {
    say("has " + std::to_string(matrices_[matrix].columns) + " columns");
  }
}

void Program::check_columns(Columns x, int64_t columns, const char* what) const {
  const bool known = x.matrix >= 0 && x.matrix < static_cast<int>(matrices_.size());
  const int64_t there = known ? matrices_[x.matrix].columns : 0;
  if (!known || x.first < 0 || columns > there - x.first) {
    throw std::invalid_argument(std::string(what) + " are columns " + std::to_string(x.first) +
                                " to " + std::to_string(x.first + columns) + " of matrix " +
                                std::to_string(x.matrix) + ", which has " + std::to_string(there));
  }
}

void Program::linear(void (*run)(const Linear*, int), std::vector<Linear> layers, int x,
                     std::vector<int> ys) {
  if (layers.empty() || layers.size() != ys.size()) {
    throw std::invalid_argument(std::to_string(layers.size()) + " layers for " +
                                std::to_string(ys.size()) + " results");
  }
  for (size_t i = 0; i < ys.size(); ++i) {
    check(x, layers[i].form.inputs, "the input of a linear layer");
    check(ys[i], layers[i].form.outputs, "the result of a linear layer");
  }
  operations_.push_back([=](const ProgramCall& call, const Pointers& at) {
    std::vector<Linear> ops = layers;
    for (size_t i = 0; i < ops.size(); ++i) {
      ops[i].x = at[x];
      ops[i].y = at[ys[i]];
      ops[i].rows = call.tokens;
    }
    run(ops.data(), static_cast<int>(ops.size()));
  });
}

void Program::lookup(const Table& table, int ids, int y, std::string_view target) {
  check(y, table.columns, "the result of a lookup");
  if (ids < 0) throw std::invalid_argument("ids " + std::to_string(ids) + " are less than 0");
  if (!table.numbers) {
    const auto decode = find_target(decode_packed_targets, target);
    operations_.push_back([=](const ProgramCall& call, const Pointers& at) {
      check_ids(call, ids, table.rows);
      DecodePacked op = table.packed;
      op.rows = call.ids[ids];
      op.count = call.tokens;
      op.out = at[y];
      decode(op);
    });
    return;
  }
  operations_.push_back([=](const ProgramCall& call, const Pointers& at) {
    check_ids(call, ids, table.rows);
    const int64_t n = table.columns;
    parallel_for(0, call.tokens, rows_per_thread(n), [&](int64_t first, int64_t last) {
      for (int64_t row = first; row < last; ++row) {
        std::copy_n(table.numbers + call.ids[ids][row] * n, n, at[y] + row * n);
      }
    });
  });
}

void Program::add(int a, int b, int y) {
  check(y, y >= 0 && y < static_cast<int>(matrices_.size()) ? matrices_[y].columns : 0, "a sum");
  const int64_t n = matrices_[y].columns;
  check(a, n, "a term");
  check(b, n, "a term");
  operations_.push_back([=](const ProgramCall& call, const Pointers& at) {
    parallel_for(0, call.tokens, rows_per_thread(n), [&](int64_t first, int64_t last) {
      const float *left = at[a], *right = at[b];
      float* sum = at[y];
      for (int64_t i = first * n; i < last * n; ++i) sum[i] = left[i] + right[i];
    });
  });
}

void Program::normalize(NormalizeRows op, std::string_view target, int x, int residual, int sum,
                        int y) {
  check(x, op.columns, "what is normalized");
  check(y, op.columns, "the result of a normalization");
  if (residual >= 0) check(residual, op.columns, "what is added");
  if (sum >= 0) check(sum, op.columns, "a sum");
  const auto run = find_target(normalize_rows_targets, target);
  operations_.push_back([=](const ProgramCall& call, const Pointers& at) {
    NormalizeRows now = op;
    now.x = at[x];
    now.residual = residual >= 0 ? at[residual] : nullptr;
    now.sum = sum >= 0 ? at[sum] : nullptr;
    now.y = at[y];
    now.rows = call.tokens;
    run(now);
  });
}

void Program::attention(const Attention& each, std::string_view target, Columns query, Columns key,
                        Columns value, int bias, int y) {
  if (each.heads < 1 || each.key_heads < 1 || each.heads % each.key_heads || each.size < 1 ||
      each.size > most_head || each.value_size < 1 || each.value_size > most_head ||
      each.window < 0) {
    throw std::invalid_argument(
        "attention of " + std::to_string(each.heads) + " heads of " + std::to_string(each.size) +
        " and " + std::to_string(each.value_size) + " numbers over " +
        std::to_string(each.key_heads) + ": heads have 1 to " + std::to_string(most_head));
  }
  check_columns(query, each.heads * each.size, "queries");
  check_columns(key, each.key_heads * each.size, "keys");
  check_columns(value, each.key_heads * each.value_size, "values");
  check(y, each.heads * each.value_size, "the result of an attention");
  biases_ = std::max(biases_, bias + 1);
  const auto run = find_target(sequence_attention_targets, target);
  const auto step = [this](Columns x) { return matrices_[x.matrix].columns; };
  const int64_t query_step = step(query), key_step = step(key), value_step = step(value);
  operations_.push_back([=](const ProgramCall& call, const Pointers& at) {
    const auto rows = [&](Columns x, int64_t token_step, int64_t size) {
      return TokenRows{.data = at[x.matrix] + x.first,
                       .batch_step = 0,
                       .head_step = size,
                       .token_step = token_step};
    };
    SequenceAttention all{each, call.starts, call.places, call.sequences};
    all.each.batch = 1;
    all.each.query = rows(query, query_step, each.size);
    all.each.key = rows(key, key_step, each.size);
    all.each.value = rows(value, value_step, each.value_size);
    all.each.y = at[y];
    if (bias >= 0) all.each.mask = call.biases[bias];
    run(all);
  });
}

void Program::rotate(Columns x, int64_t heads, int64_t size, int cos, int sin, int y) {
  if (heads < 1 || size < 2 || size % 2) {
    throw std::invalid_argument("rotation of " + std::to_string(heads) + " heads of " +
                                std::to_string(size) + " numbers");
  }
  check_columns(x, heads * size, "what is rotated");
  check(cos, size, "cosines");
  check(sin, size, "sines");
  check(y, heads * size, "the result of a rotation");
  const int64_t step = matrices_[x.matrix].columns, half = size / 2;
  operations_.push_back([=](const ProgramCall& call, const Pointers& at) {
    parallel_for(0, call.tokens, rows_per_thread(heads * size), [&](int64_t first, int64_t last) {
      for (int64_t row = first; row < last; ++row) {
        const float* from = at[x.matrix] + row * step + x.first;
        const float *c = at[cos] + row * size, *s = at[sin] + row * size;
        float* to = at[y] + row * heads * size;
        for (int64_t head = 0; head < heads; ++head, from += size, to += size) {
          for (int64_t d = 0; d < half; ++d) to[d] = from[d] * c[d] - from[d + half] * s[d];
          for (int64_t d = half; d < size; ++d) to[d] = from[d] * c[d] + from[d - half] * s[d];
        }
      }
    });
  });
}

void Program::gate(Nonlinearity nonlinearity, std::string_view target, Columns a, Columns b,
                   int y) {
  const bool known = y >= 0 && y < static_cast<int>(matrices_.size()), gated = b.matrix != -1;
  const int64_t n = known ? matrices_[y].columns : 0;
  check(y, n, "the result of a gate");
  check_columns(a, n, "what is gated");
  if (gated) check_columns(b, n, "a gate");
  const int64_t a_step = matrices_[a.matrix].columns;
  const int64_t b_step = gated ? matrices_[b.matrix].columns : 0;
  const auto run = find_target(gate_rows_targets, target);
  operations_.push_back([=](const ProgramCall& call, const Pointers& at) {
    run({.a = at[a.matrix] + a.first,
         .b = gated ? at[b.matrix] + b.first : nullptr,
         .y = at[y],
         .rows = call.tokens,
         .columns = n,
         .a_step = a_step,
         .b_step = b_step,
         .nonlinearity = nonlinearity});
  });
}

int64_t Program::arena_bytes(int64_t tokens) const {
  return (alignment + arena_columns_ * tokens) * static_cast<int64_t>(sizeof(float));
}

float* Program::place(int matrix, const ProgramCall& call) const {
  if (matrix < 0 || matrix >= static_cast<int>(matrices_.size()) || matrices_[matrix].first < 0) {
    throw std::invalid_argument("matrix " + std::to_string(matrix) + " is not in the arena");
  }
  return arena(call) + matrices_[matrix].first * call.tokens;
}

void Program::run(const ProgramCall& call, int64_t first, int64_t last) const {
  check_sequences(call);
  if (static_cast<int>(call.inputs.size()) != inputs_ ||
      static_cast<int>(call.results.size()) != results_ ||
      static_cast<int>(call.biases.size()) < biases_) {
    throw std::invalid_argument("the program has " + std::to_string(inputs_) + " inputs and " +
                                std::to_string(results_) + " results");
  }
  const auto count = static_cast<int64_t>(operations_.size());
  if (first < 0 || last > count || first > last) {
    throw std::invalid_argument("operations " + std::to_string(first) + " to " +
                                std::to_string(last) + " of " + std::to_string(count));
  }
  Pointers at;
  for (const Matrix& matrix : matrices_) {
    // Inputs are read only.
    at.push_back(matrix.first >= 0   ? arena(call) + matrix.first * call.tokens
                 : matrix.input >= 0 ? const_cast<float*>(call.inputs[matrix.input])
                                     : call.results[matrix.result]);
  }
  for (int64_t i = first; i < last; ++i) operations_[i](call, at);
}

}  // namespace lowbit

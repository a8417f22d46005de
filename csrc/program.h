// A program: several operations in one call, on matrices whose rows are the tokens of several
// sequences. A matrix is float32 [tokens, columns], contiguous. The number of tokens is known only
// when the program runs, so one program serves all batches and lengths. Padding has no rows.
//
// Results have the same bits on all instruction sets, with any number of threads and with any other
// sequences, if activations are integers or all targets multiply floats alike (linear_float.h).
#pragma once

#include <cstdint>
#include <functional>
#include <string_view>
#include <utility>
#include <vector>

#include "attention.h"
#include "gate_rows.h"
#include "linear.h"
#include "normalize_rows.h"
#include "packed_layout.h"

namespace lowbit {

// The arguments of a call. `ids` are [tokens] each, `results` are the matrices of the program's
// outputs, `arena` has `arena_bytes` bytes, `biases` are the biases of attentions.
struct ProgramCall {
  int64_t tokens, sequences;
  const int64_t* starts;  // [sequences + 1]: where sequences begin, and the number of tokens
  const int64_t* places;  // [tokens]: of each token in its sequence
  std::vector<const int64_t*> ids;
  std::vector<const float*> inputs;
  std::vector<float*> results;
  std::vector<Mask> biases;
  uint8_t* arena;
};

// A table of an embedding lookup: float32 [rows, columns], or packed.
struct Table {
  const float* numbers;  // or null, and `packed` then
  DecodePacked packed;
  int64_t rows, columns;
};

// Some columns of a matrix, from `first` on.
struct Columns {
  int matrix;
  int64_t first;
};

class Program {
 public:
  // Matrices are referred to by number. A matrix in the arena begins at column `first`, a multiple
  // of 16. Matrices that overlap must not be in use at the same time.
  int in_arena(int64_t columns, int64_t first);
  int input(int64_t columns);
  int result(int64_t columns);

  // These functions throw std::invalid_argument if matrices do not fit. `layers` lack x, y and
  // rows.
  void linear(void (*run)(const Linear*, int), std::vector<Linear> layers, int x,
              std::vector<int> ys);
  void lookup(const Table& table, int ids, int y, std::string_view target);
  void add(int a, int b, int y);
  void normalize(NormalizeRows op, std::string_view target, int x, int residual, int sum, int y);
  // `each` has heads, sizes, scale, causality and the window; bias: which of a call's, or -1.
  void attention(const Attention& each, std::string_view target, Columns query, Columns key,
                 Columns value, int bias, int y);
  // Rotary embedding of heads of `size` numbers, d and d + size / 2 of each being a pair:
  // y = x cos + (-x[d + size / 2] or x[d - size / 2]) sin. cos and sin are [tokens, size].
  void rotate(Columns x, int64_t heads, int64_t size, int cos, int sin, int y);
  // y = f(a) b, or f(a) if b is no matrix (-1).
  void gate(Nonlinearity nonlinearity, std::string_view target, Columns a, Columns b, int y);

  int64_t arena_bytes(int64_t tokens) const;
  // The address of a matrix in the arena.
  float* place(int matrix, const ProgramCall& call) const;
  // The operations from `first` up to `last`. std::out_of_range for an id that a table lacks.
  void run(const ProgramCall& call, int64_t first, int64_t last) const;

 private:
  struct Matrix {
    int64_t columns;
    int64_t first;  // in the arena, or -1
    int input, result;
  };
  using Pointers = std::vector<float*>;
  using Operation = std::function<void(const ProgramCall&, const Pointers&)>;

  int made(const Matrix& matrix);
  void check(int matrix, int64_t columns, const char* what) const;
  void check_columns(Columns x, int64_t columns, const char* what) const;

  std::vector<Matrix> matrices_;
  std::vector<Operation> operations_;
  int64_t arena_columns_ = 0;
  int inputs_ = 0, results_ = 0, biases_ = 0;
};

}  // namespace lowbit

// The loops of linear_float.h. The including file is compiled for an instruction set, names it in
// LOWBIT_ISA and describes it:
//
//   struct Isa {
//     Words, Ints, Floats, registers, widen, fma    // as in linear.inl
//     static constexpr int64_t macs_per_ns;         // as in Product
//     static Floats broadcast(const float* x);
//     static constexpr bool combines_three;         // (a & b) | c is one instruction
//   };
//
// For a few rows, which wait for the weights, codes are decoded in registers. With more, the
// weights of a span are decoded once for all rows of a chunk:
//
//   chunk     rows of activations, in L2 or L3    linear_schedule.cpp
//    task     panels of one layer                 linear_schedule.cpp
//     panels  P at once                           multiply_many
//      span   of 1,024 inputs                     multiply_panels
//       sum   a quarter of a span, decoded to L1  multiply_panels
//        rows R at once: a register block         add_sum
//
// Nothing from the standard library is called here (see quantize_rows.inl).

#include "experts_schedule.h"
#include "linear_float.h"
#include "linear_lanes.inl"
#include "linear_schedule.h"
#include "scratch.h"

namespace lowbit::LOWBIT_ISA {
namespace {

constexpr int64_t span_blocks = 32;  // as linear_float.h has it
constexpr int sums = step_inputs;

// Of one group of affine codes, for the lanes of a part: a weight is s (q - z) + o.
template <int bits, bool half, bool plain>
struct AffineParameters {
  Floats s, z{};
  Floats o = Floats{} - 0.0f;  // which, added, changes nothing

  AffineParameters(const Linear& op, int64_t group, int part) {
    const bool short_scale = half || op.half_scale;
    s = plain ? load_scales(op.scale, short_scale, group * panel_rows + part * lanes)
              : scales_of(op, short_scale, group, part);
    if (!plain && op.offset) {
      o = offsets_of(op, short_scale, group, part);
      return;
    }
    Ints zero = Ints{} + (1 << (bits - 1));
    if (op.zero_point) zero = Isa::widen(op.zero_point + group * panel_rows + part * lanes);
    z = __builtin_convertvector(zero, Floats);
  }
};

template <int bits>
struct Affine {
  static int64_t block_bytes(const PackedLayout&) { return bits * vector_bytes; }

  static constexpr uint32_t mask = (1u << bits) - 1;

  // Byte i of a lane ends with code i of the step, once `word` is shifted. The bits above it are of
  // other steps, if a code is one field.
  struct Step {
    Words word;
    int right = 0;

    Step(const uint8_t* block, int s, int part) {
      if constexpr (fields_of(bits, false).count == 1) {
        word = load<Words>(block + s % bits * vector_bytes + part * sizeof(Words));
        right = s / bits * bits;
      } else {
        word = codes_of_step<bits>(block, s, part);
      }
    }

    LOWBIT_INLINE Words shifted(int left) const {
      const int by = left - right;
      return by >= 0 ? word << by : word >> -by;
    }
  };

  template <bool exact, bool plain>
  struct Weights : AffineParameters<bits, false, plain> {
    using AffineParameters<bits, false, plain>::AffineParameters;

    Floats of(const Step& step, int i) const {
      const Words q = step.shifted(-8 * i) & mask;
      return this->s * (__builtin_convertvector(reinterpret_cast<Ints>(q), Floats) - this->z) +
             this->o;
    }
  };

  // If scales are float16 and s times a code is exact in float32, so is s times a zero point, and
  // fma gives s (q - z) or s q + o in one operation.
  template <bool plain>
  struct Weights<true, plain> {
    // Code i is masked and not shifted, as shifts take a port of the multiply-adds: as a number it
    // is 2^place(i) times as large. Only the top byte of 8 bits, which would be negative, is
    // shifted.
    static constexpr int place(int i) { return bits == 8 && i == 3 ? 0 : 8 * i; }

    Floats s_at[step_inputs], z;

    Weights(const Linear& op, int64_t group, int part) {
      const AffineParameters<bits, true, plain> w(op, group, part);
      z = !plain && op.offset ? w.o : -w.s * w.z;
      for (int i = 0; i < step_inputs; ++i) {
        s_at[i] = w.s * (1.0f / static_cast<float>(1u << place(i)));
      }
    }

    Floats of(const Step& step, int i) const {
      const Words codes = step.shifted(0);
      const Words q = place(i) == 8 * i ? codes & mask << 8 * i : codes >> 8 * i;
      return Isa::fma(__builtin_convertvector(reinterpret_cast<Ints>(q), Floats), s_at[i], z);
    }
  };

  // A short code becomes bits of a mantissa, those of 1 + q 2^(place - 23), in one operation where
  // a mask and a conversion are two. s (z + 2^(23 - place)) is exact: scales of one level have 11
  // bits, and what they multiply 13. (In such a specialization gcc 12 finds no names of Affine.)
  template <bool plain>
    requires(plain && bits <= 4 && Isa::combines_three)
  struct Weights<true, plain> {
    static constexpr int place(int i) { return i % 2 ? 19 : 11; }

    Floats s_at[2], z_at[2];

    Weights(const Linear& op, int64_t group, int part) {
      const AffineParameters<bits, true, true> w(op, group, part);
      for (int i = 0; i < 2; ++i) {
        const auto one = static_cast<float>(1 << (23 - place(i)));  // as a code
        s_at[i] = w.s * one;
        z_at[i] = -w.s * (w.z + one);
      }
    }

    Floats of(const Step& step, int i) const {
      const Words one = reinterpret_cast<Words>(Floats{} + 1.0f);
      const Words q =
          (step.shifted(i < 2 ? place(0) : place(0) - 16) & ((1u << bits) - 1) << place(i)) | one;
      return Isa::fma(reinterpret_cast<Floats>(q), s_at[i % 2], z_at[i % 2]);
    }
  };
};

template <int planes>
struct Binary {
  // A block has all planes, those that are not in use too.
  static int64_t block_bytes(const PackedLayout& form) { return form.block_bytes(); }

  struct Step {
    Words plane[planes];
    int s;
    Step(const uint8_t* block, int s, int part) : s(s) {
      for (int p = 0; p < planes; ++p) {
        plane[p] = load<Words>(block + p * vector_bytes + part * sizeof(Words));
      }
    }
  };

  template <bool half, bool plain>
  struct Weights {
    Floats minus_alpha[planes], o{};

    Weights(const Linear& op, int64_t group, int part) {
      for (int p = 0; p < planes; ++p) {
        const int64_t at = (group * planes + p) * panel_rows + part * lanes;
        minus_alpha[p] = -load_scales(op.scale, half, at);
      }
      if (!plain && op.offset) {
        o = load_scales(op.offset, half, group * panel_rows + part * lanes);
      }
    }

    Floats of(const Step& step, int i) const {
      constexpr uint32_t sign = 1u << 31;
      Floats w = o;
      for (int p = 0; p < planes; ++p) {
        const Words plus = step.plane[p] << (31 - 8 * i - step.s) & sign;
        const auto term = reinterpret_cast<Floats>(plus ^ reinterpret_cast<Words>(minus_alpha[p]));
        w = plain && p == 0 ? term : w + term;
      }
      return w;
    }
  };
};

// Whether scales times codes are exact in float32, with 24 bits: a float16 has 11, and what
// multiplies it and is signed a bit less than it takes.
bool is_exact(const Linear& op) {
  const int sub_bits = op.sub.bits - (op.sub.lowest < 0);
  return op.half_scale && (op.form.binary || 11 + sub_bits + op.form.bits <= 24);
}

// Whether scales have one level and weights no offset. Loops for a few rows are compiled for it: to
// ask for each group costs them up to a tenth.
bool is_plain(const Linear& op) { return !op.offset && !op.sub.scale; }

// fn(group, first block, last block) for the groups of a span, whose blocks are first … last - 1.
template <class Fn>
void for_groups(const PackedLayout& form, int64_t first, int64_t last, const Fn& fn) {
  const int64_t group_blocks = PackedLayout::blocks_of(form.group);
  for (int64_t g = first / group_blocks; first < last; ++g) {
    const int64_t end = (g + 1) * group_blocks < last ? (g + 1) * group_blocks : last;
    fn(g, first, end);
    first = end;
  }
}

// Rows in blocks of at most R, of as many each as can be: a short block would wait for its few
// sums. The first `longer` blocks have size + 1 rows, the others `size`.
template <int R>
struct RowBlocks {
  int64_t blocks, size, longer;

  explicit RowBlocks(int64_t rows)
      : blocks(divided(rows, R)), size(rows / blocks), longer(rows % blocks) {}

  int64_t first(int64_t block) const { return block * size + (block < longer ? block : longer); }
  int64_t rows(int64_t block) const { return size + (block < longer); }
  int64_t of(int64_t row) const {
    return row < longer * (size + 1) ? row / (size + 1) : (row - longer) / size;
  }

  // fn(first, rows) of each.
  template <class Fn>
  void each(const Fn& fn) const {
    for (int64_t b = 0; b < blocks; ++b) fn(first(b), rows(b));
  }
};

// The zeros after the inputs of a group change no sum. Loops skip them if they fill half a block:
// in groups of 16 that is half of all steps.
constexpr int64_t half_block = block_inputs / 2, half_steps = block_steps / 2;

// --- A few rows. ---

// A register block: R rows, of which each has two or all of its sums in registers, beside a weight,
// its parameters and an input.
constexpr int few_rows_at_once = (Isa::registers - 4) / 2 < 8 ? (Isa::registers - 4) / 2 : 8;

constexpr int64_t ahead_bytes = 4096, cache_line = 64;

template <int R>
constexpr int sums_at_once = sums * R <= Isa::registers - 4 ? sums : 2;

// How often the codes of a span are read.
template <int R>
constexpr int passes = parts * sums / sums_at_once<R>;

// Adds sums I … of a span to the totals of one part of a panel.
template <class Codes, bool plain, int R, int I>
[[gnu::noinline]] void add_span(const Linear& op, const float* x, int64_t row_inputs, int64_t panel,
                                int64_t first, int64_t last, int part, Floats (&total)[R][parts]) {
  constexpr int S = sums_at_once<R>;
  const PackedLayout& form = op.form;
  const int64_t block_bytes = Codes::block_bytes(form);
  const uint8_t* codes = op.codes + panel * form.panel_bytes();
  const int64_t first_group = panel * form.groups();  // outside of loops: it divides
  // Later passes find the codes in cache. So that memory is not idle meanwhile, each pass
  // prefetches its share of what follows the span, usually the next one.
  const int64_t share = block_bytes / passes<R>, pass = (part * sums + I) / S;
  const uint8_t* ahead = passes<R> == 1
                             ? codes + first * block_bytes + ahead_bytes
                             : codes + last * block_bytes + pass * (last - first) * share;
  const bool half = form.group <= half_block;
  Floats sum[S][R] = {};
  for_groups(form, first, last, [&](int64_t g, int64_t from, int64_t to) {
    const typename Codes::template Weights<true, plain> weights(op, first_group + g, part);
    for (int64_t at = from; at < to; ++at, ahead += share) {
      const uint8_t* block = codes + at * block_bytes;
      for (int64_t i = 0; i < share; i += cache_line) __builtin_prefetch(ahead + i);
#pragma GCC unroll 8
      for (int s = 0; s < block_steps; ++s) {
        if (s == half_steps && half) break;
        const float* four = x + at * block_inputs + s * step_inputs + I;
        const typename Codes::Step step(block, s, part);
#pragma GCC unroll 4
        for (int i = 0; i < S; ++i) {
          const Floats w = weights.of(step, I + i);
#pragma GCC unroll 8
          for (int r = 0; r < R; ++r) {
            sum[i][r] = Isa::fma(Isa::broadcast(four + r * row_inputs + i), w, sum[i][r]);
          }
        }
      }
    }
  });
#pragma GCC unroll 4
  for (int i = 0; i < S; ++i) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) total[r][part] += sum[i][r];
  }
}

template <class Codes, bool plain, int R>
void multiply_rows(const Linear& op, const Activations& a, int64_t row, int64_t rows,
                   int64_t panel) {
  if constexpr (R > 1) {
    if (rows < R) return multiply_rows<Codes, plain, R - 1>(op, a, row, rows, panel);
  }
  const float* x = reinterpret_cast<const float*>(a.codes) + row * a.padded_inputs;
  Floats total[R][parts] = {};
  const int64_t blocks = op.form.blocks();
  for (int64_t first = 0; first < blocks; first += span_blocks) {
    const int64_t last = first + span_blocks < blocks ? first + span_blocks : blocks;
    for (int part = 0; part < parts; ++part) {
      add_span<Codes, plain, R, 0>(op, x, a.padded_inputs, panel, first, last, part, total);
      if constexpr (sums_at_once<R> < sums) {
        add_span<Codes, plain, R, 2>(op, x, a.padded_inputs, panel, first, last, part, total);
      }
    }
  }
  finish<1, R>(op, total[0], R * parts, row, R, panel);
}

template <class Codes, bool plain>
void multiply_few(const Linear& op, const Activations& a, int64_t first_row, int64_t last_row,
                  int64_t first_panel, int64_t last_panel) {
  for (int64_t panel = first_panel; panel < last_panel; ++panel) {
    RowBlocks<few_rows_at_once>(last_row - first_row).each([&](int64_t row, int64_t n) {
      multiply_rows<Codes, plain, few_rows_at_once>(op, a, first_row + row, n, panel);
    });
  }
}

// --- Many rows. ---

// A register block: R rows of P panels, beside their weights and an input. Two vectors of weights
// are few enough that a sum's stay in L1.
constexpr int most_panels = parts == 1 ? 2 : 1;
constexpr int register_rows = (Isa::registers - 3) / (most_panels * parts);

// The loops for many rows also skip the padding of a last group that fills half a block.
int64_t steps_of_block(const PackedLayout& form, int64_t group, int64_t block) {
  const int64_t before = (block - group * PackedLayout::blocks_of(form.group)) * block_inputs;
  return form.group_inputs(group) - before > half_block ? block_steps : half_steps;
}

// Of a group's blocks first … last - 1: only its last block may be halved.
int64_t steps_of_blocks(const PackedLayout& form, int64_t group, int64_t first, int64_t last) {
  return (last - 1 - first) * block_steps + steps_of_block(form, group, last - 1);
}

int64_t steps_of_span(const PackedLayout& form, int64_t first, int64_t last) {
  int64_t steps = 0;
  for_groups(form, first, last, [&](int64_t g, int64_t from, int64_t end) {
    steps += steps_of_blocks(form, g, from, end);
  });
  return steps;
}

// The weights of one sum of a span: to[step][vectors], those of one panel from `to` on. All four
// would not fit L1, where stores are fast.
template <class Codes, bool exact, bool plain, int I>
void decode_sum(const Linear& op, int64_t panel, int64_t first, int64_t last, int64_t vectors,
                Floats* to) {
  const PackedLayout& form = op.form;
  const uint8_t* codes = op.codes + panel * form.panel_bytes();
  for_groups(form, first, last, [&](int64_t g, int64_t from, int64_t end) {
    for (int p = 0; p < parts; ++p) {
      const typename Codes::template Weights<exact, plain> weights(op, panel * form.groups() + g,
                                                                   p);
      Floats* out = to + p;
      for (int64_t at = from; at < end; ++at, out += block_steps * vectors) {
        const uint8_t* block = codes + at * Codes::block_bytes(form);
        const int64_t kept = steps_of_block(form, g, at);
#pragma GCC unroll 8
        for (int s = 0; s < block_steps; ++s) {
          if (s == half_steps && kept == half_steps) break;
          out[s * vectors] = weights.of(typename Codes::Step(block, s, p), I);
        }
      }
    }
    to += steps_of_blocks(form, g, from, end) * vectors;
  });
}

using DecodeSum = void (*)(const Linear& op, int64_t panel, int64_t first, int64_t last,
                           int64_t vectors, Floats* to);

template <class Codes, bool exact, bool plain>
constexpr DecodeSum decode_sums[sums] = {
    decode_sum<Codes, exact, plain, 0>, decode_sum<Codes, exact, plain, 1>,
    decode_sum<Codes, exact, plain, 2>, decode_sum<Codes, exact, plain, 3>};

// Scales of float32, which are rare, have one loop for all that they come with.
template <class Codes>
const DecodeSum* decode_sums_of(const Linear& op) {
  if (!is_exact(op)) return decode_sums<Codes, false, false>;
  return is_plain(op) ? decode_sums<Codes, true, true> : decode_sums<Codes, true, false>;
}

constexpr int64_t ahead_inputs = 16;  // of each row, as far ahead as inputs are prefetched

// Adds one sum of a span to the totals of R rows, those of P panels panel_stride apart: inputs
// x[step/4][R][4], w[step][P][parts]. Every four steps prefetch a token of `outputs`.
template <int R, int P>
void add_sum(int64_t rows, const float* x, const Floats* w, int64_t steps,
             OutputPrefetch<P> outputs, Floats* total, int64_t panel_stride) {
  if constexpr (R > 1) {
    if (rows < R) return add_sum<R - 1, P>(rows, x, w, steps, outputs, total, panel_stride);
  }
  constexpr int V = P * parts;
  Floats sum[R][V] = {};
  for (int64_t first = 0; first < steps; first += 4) {
    // The activations of the chunk are in L2, not in L1.
#pragma GCC unroll 4
    for (int i = 0; i < R * 4; i += 16) __builtin_prefetch(x + R * ahead_inputs + i);
    outputs.next();
#pragma GCC unroll 4
    for (int s = 0; s < 4; ++s, w += V) {
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const Floats input = Isa::broadcast(x + r * 4 + s);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) sum[r][v] = Isa::fma(input, w[v], sum[r][v]);
      }
    }
    x += R * 4;
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      total[v / parts * panel_stride + r * parts + v % parts] += sum[r][v];
    }
  }
}

template <class Codes, int P>
void multiply_panels(const Linear& op, const Activations& a, int64_t first_row, int64_t last_row,
                     int64_t panel) {
  constexpr int V = P * parts;
  const DecodeSum* decode = decode_sums_of<Codes>(op);
  const int64_t rows = last_row - first_row, blocks = op.form.blocks();
  const int64_t weights = span_blocks * block_steps * V, panel_stride = rows * parts;
  auto* w = static_cast<Floats*>(
      task_scratch((weights + P * panel_stride) * static_cast<int64_t>(sizeof(Floats))));
  Floats* total = w + weights;
  for (int64_t i = 0; i < P * panel_stride; ++i) total[i] = Floats{};
  const float* x = reinterpret_cast<const float*>(a.codes) + first_row * a.padded_inputs;
  const RowBlocks<register_rows> row_blocks(rows);
  const int64_t all_steps = a.padded_inputs / sums;
  for (int64_t first = 0, done = 0; first < blocks; first += span_blocks) {
    const int64_t last = first + span_blocks < blocks ? first + span_blocks : blocks;
    const int64_t steps = steps_of_span(op.form, first, last);
    for (int i = 0; i < sums; ++i) {
      for (int q = 0; q < P; ++q) decode[i](op, panel + q, first, last, V, w + q * parts);
      const int64_t before = i * all_steps + done;
      const bool finishes = last == blocks && i == sums - 1;
      row_blocks.each([&](int64_t row, int64_t n) {
        const OutputPrefetch<P> outputs(op, first_row + row, finishes ? n : 0, panel);
        add_sum<register_rows, P>(n, x + row * a.padded_inputs + before * n, w, steps, outputs,
                                  total + row * parts, panel_stride);
        if (!finishes) return;
        finish<P, register_rows>(op, total + row * parts, panel_stride, first_row + row, n, panel);
      });
    }
    done += steps;
  }
}

template <class Codes>
void multiply_many(const Linear& op, const Activations& a, int64_t first_row, int64_t last_row,
                   int64_t first_panel, int64_t last_panel) {
  int64_t panel = first_panel;
  for (; panel + most_panels <= last_panel; panel += most_panels) {
    multiply_panels<Codes, most_panels>(op, a, first_row, last_row, panel);
  }
  for (; panel < last_panel; ++panel) {
    multiply_panels<Codes, 1>(op, a, first_row, last_row, panel);
  }
}

// --- Activations. ---

// Rows first … last - 1 of op.x as float32.
const float* inputs_of(const Linear& op, int64_t first, int64_t last) {
  const int64_t inputs = op.form.inputs, at = first * inputs, count = (last - first) * inputs;
  if (!op.bfloat16) return static_cast<const float*>(op.x) + at;
  auto* widened = static_cast<float*>(task_scratch(count * static_cast<int64_t>(sizeof(float))));
  widen(static_cast<const uint16_t*>(op.x) + at, count, widened);
  return widened;
}

// x [rows][padded_inputs]
void arrange_few(const Linear& op, const Activations& a, int64_t first, int64_t last) {
  const PackedLayout& form = op.form;
  const float* x = inputs_of(op, first, last);
  float* to = reinterpret_cast<float*>(a.codes) + first * a.padded_inputs;
  for (int64_t m = first; m < last; ++m) {
    for (int64_t g = 0; g < form.groups(); ++g) {
      const int64_t n = form.group_inputs(g), end = padded(n, block_inputs);
      __builtin_memcpy(to, x, n * sizeof(float));
      for (int64_t k = n; k < end; ++k) to[k] = 0;
      x += n;
      to += end;
    }
  }
}

// From x, four steps of a row, to[sum] = the inputs of its sum.
void transpose_steps(const float* x, float* const (&to)[sums]) {
  using Four = float __attribute__((vector_size(16)));
  const Four a = load<Four>(x), b = load<Four>(x + 4), c = load<Four>(x + 8),
             d = load<Four>(x + 12);
  const Four ab = __builtin_shufflevector(a, b, 0, 4, 1, 5);
  const Four cd = __builtin_shufflevector(c, d, 0, 4, 1, 5);
  const Four ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
  const Four cd_high = __builtin_shufflevector(c, d, 2, 6, 3, 7);
  const Four of_sum[sums] = {__builtin_shufflevector(ab, cd, 0, 1, 4, 5),
                             __builtin_shufflevector(ab, cd, 2, 3, 6, 7),
                             __builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5),
                             __builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7)};
  for (int i = 0; i < sums; ++i) __builtin_memcpy(to[i], &of_sum[i], sizeof(Four));
}

// x [blocks of rows][sum][steps/4][rows][4]: what a register block reads lies together. The rows
// of a block are arranged together, so that each cache line is written once.
void arrange_many(const Linear& op, const Activations& a, int64_t first, int64_t last) {
  const PackedLayout& form = op.form;
  const int64_t steps = a.padded_inputs / sums;
  for (int64_t n; first < last; first += n) {
    const int64_t chunk = first / a.chunk_rows * a.chunk_rows, left = op.rows - chunk;
    const RowBlocks<register_rows> blocks(left < a.chunk_rows ? left : a.chunk_rows);
    const int64_t block = blocks.of(first - chunk), R = blocks.rows(block);
    const int64_t top = chunk + blocks.first(block);
    n = top + R < last ? top + R - first : last - first;
    const float* x = inputs_of(op, first, first + n);
    float* to =
        reinterpret_cast<float*>(a.codes) + top * a.padded_inputs + (first - top) * half_steps;
    for (int64_t g = 0; g < form.groups(); ++g) {
      const int64_t inputs = form.group_inputs(g);
      for (int64_t k = 0; k < inputs; k += half_block, to += half_steps * R) {
        for (int64_t r = 0; r < n; ++r) {
          const float* own = x + r * form.inputs + k;
          float padded[half_block] = {};
          if (k + half_block > inputs) {
            __builtin_memcpy(padded, own, (inputs - k) * sizeof(float));
            own = padded;
          }
          float* of_sum[sums];
          for (int i = 0; i < sums; ++i) of_sum[i] = to + i * steps * R + r * half_steps;
          transpose_steps(own, of_sum);
        }
      }
      x += inputs;
    }
  }
}

template <class Codes, bool plain>
constexpr Product few{.rows = 1,
                      .panels = 1,
                      .group_padding = block_inputs,
                      .bytes_per_input = sizeof(float),
                      .macs_per_ns = Isa::macs_per_ns,
                      .quantize = arrange_few,
                      .multiply = multiply_few<Codes, plain>};

template <class Codes>
constexpr Product many{.rows = register_rows,
                       .panels = most_panels,
                       .group_padding = half_block,
                       .bytes_per_input = sizeof(float),
                       .macs_per_ns = Isa::macs_per_ns,
                       .chunk_bytes = 1 << 22,
                       .quantize = arrange_many,
                       .multiply = multiply_many<Codes>};

struct Products {
  const Product *plain_few, *few, *many;
};

template <class Codes>
constexpr Products products{&few<Codes, true>, &few<Codes, false>, &many<Codes>};

// By bits, and by planes in use.
constexpr Products affine_products[] = {
    products<Affine<2>>, products<Affine<3>>, products<Affine<4>>, products<Affine<5>>,
    products<Affine<6>>, products<Affine<7>>, products<Affine<8>>};
constexpr Products binary_products[] = {products<Binary<1>>, products<Binary<2>>,
                                        products<Binary<3>>, products<Binary<4>>};

const Products& products_of(const Linear& op) {
  return op.form.binary ? binary_products[op.planes - 1] : affine_products[op.form.bits - 2];
}

const Product& few_rows(const Linear& op) {
  const Products& known = products_of(op);
  return is_plain(op) ? *known.plain_few : *known.few;
}
const Product& many_rows(const Linear& op) { return *products_of(op).many; }

// Affine codes are decoded in as little time as it takes to store them and load them again; binary
// ones are not. Weights that are not exact, which are rare, have loops for many rows alone.
bool is_few(const Linear& op) {
  const int blocks = op.form.binary ? 1 : 2;
  return is_exact(op) && op.rows <= blocks * few_rows_at_once;
}

const Product& by_itself(const Linear& op) { return is_few(op) ? few_rows(op) : many_rows(op); }

}  // namespace

// Layers that share their activations share their arrangement.
void linear_float(const Linear* ops, int count) {
  bool few = true;
  for (int i = 0; i < count; ++i) few = few && is_few(ops[i]);
  run(ops, count, few ? few_rows : many_rows);
}

void experts_float(const Experts& op) { run_experts(op, by_itself); }

}  // namespace lowbit::LOWBIT_ISA

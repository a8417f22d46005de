// The loops of linear.h for a few rows of activations against codes decoded in registers. The
// including file is compiled for an instruction set, names it in LOWBIT_ISA and describes it:
//
//   struct Isa {
//     using Words = …;     // gcc vector of uint32_t, a whole part of the 64 bytes of a step
//     using Ints = …;      // of int32_t, as long
//     using Floats = …;    // of float, as long
//     static constexpr int registers;        // of vectors that the processor has
//     static constexpr int unroll;           // steps: 8 makes shifts constants
//     static constexpr int64_t macs_per_ns;  // as in Product
//     static Floats widen(const uint16_t* half);  // float16, as many as there are lanes
//     static Ints widen(const uint8_t* bytes);    // as many; gcc 12 converts vectors one by one
//     static Floats fma(Floats a, Floats b, Floats c);  // a b + c, rounded once
//     template <int bits> using Dot = …;
//   };
//
// Dot multiplies unsigned codes of so many bits with activations:
//
//   struct Dot {
//     using Codes = …;                           // a part of a step as it is multiplied
//     static constexpr int64_t bytes_per_input;  // of an activation in this arrangement
//     static constexpr bool any_bits;            // also multiplies codes of 8 bits
//     // Puts the codes of one row, n inputs from k on, n a multiple of 32, at `row`.
//     static void place(const int8_t* piece, int64_t n, int8_t* row, int64_t k);
//     static Codes prepare(Words codes);
//     // The four activations at `at`, as `add` takes them that many times.
//     template <int times> static … four(const int8_t* at);
//     // Adds the products of step s of a block to `sum`, the last of them by the block's last step;
//     // `pairs` is kept from step to step for nothing else.
//     static void add(int s, Codes codes, … four, Words& pairs, Ints& sum);
//   };
//
// Nothing from the standard library is called here (see quantize_rows.inl).

#include "experts_schedule.h"
#include "linear_lanes.inl"
#include "linear_schedule.h"
#include "quantize_group.inl"
#include "scratch.h"

namespace lowbit::LOWBIT_ISA {
namespace {

// A register block (linear_schedule.h): max_rows rows of activations and max_vectors panels or
// planes. Each part of a panel takes a register for its codes and one for the sums of each row.
constexpr int max_rows = Isa::registers / 4;
constexpr int fitting_vectors = Isa::registers / (parts * (max_rows + 1));
constexpr int max_vectors = fitting_vectors > 1 ? fitting_vectors : 1;

// Of wrapped signed integers.
Floats floats_of(Words sums) {
  return __builtin_convertvector(reinterpret_cast<Ints>(sums), Floats);
}

// How codes are read, and what the sums over a group are worth. An affine weight has one term, the
// codes; a binary one a term for each plane: `term_bytes` is how far its field is from the next
// one's. `centred` sums are those of q - z, or of -1 and 1; others those of q, or of 0 and 1.
template <int bits_>
struct Affine {
  static constexpr bool binary = false;
  static constexpr int bits = bits_, terms = 1;
  static constexpr int64_t term_bytes = 0;

  static Words zero_points(const Linear& op, int64_t group, int part) {
    Words z = Words{} + (op.offset ? 0 : 1 << (bits - 1));
    if (!op.zero_point) return z;
    return reinterpret_cast<Words>(Isa::widen(op.zero_point + group * panel_rows + part * lanes));
  }

  // Of one group, for the lanes of a part.
  template <bool centred>
  struct Parameters {
    Floats s{}, o{};
    Words z{};
    bool same_zero = true;  // for all rows: costs no product per lane
    bool has_offset = false;

    Parameters() = default;
    Parameters(const Linear& op, int64_t group, int part)
        : s(scales_of(op, op.half_scale, group, part)),
          same_zero(!op.zero_point),
          has_offset(op.offset) {
      if constexpr (!centred) z = zero_points(op, group, part);
      if (has_offset) o = offsets_of(op, op.half_scale, group, part);
    }

    // `sums[i]` of term i; sx and the sum of the codes are the activations'. `offset` is
    // has_offset, known where the loops over rows are compiled.
    template <bool offset>
    Floats value(const Words (&sums)[terms], float sx, int32_t row_sum) const {
      Words exact = sums[0];
      if constexpr (offset) return (floats_of(exact) * s + static_cast<float>(row_sum) * o) * sx;
      if constexpr (!centred) {
        const auto sum = static_cast<uint32_t>(row_sum);
        exact -= same_zero ? Words{} + (sum << (bits - 1)) : z * sum;
      }
      return floats_of(exact) * (sx * s);
    }
  };
};

template <int planes>
struct Binary {
  static constexpr bool binary = true;
  static constexpr int bits = 1, terms = planes;
  static constexpr int64_t term_bytes = vector_bytes;

  // Of planes of 0 and 2.
  static Words zero_points(const Linear&, int64_t, int) { return Words{} + 1; }

  template <bool centred>
  struct Parameters {
    Floats alpha[planes] = {}, o{};
    bool has_offset = false;

    Parameters() = default;
    Parameters(const Linear& op, int64_t group, int part) : has_offset(op.offset) {
      for (int i = 0; i < planes; ++i) {
        const int64_t at = (group * planes + i) * panel_rows + part * lanes;
        alpha[i] = load_scales(op.scale, op.half_scale, at);
      }
      if (has_offset) {
        o = load_scales(op.offset, op.half_scale, group * panel_rows + part * lanes);
      }
    }

    template <bool offset>
    Floats value(const Words (&sums)[terms], float sx, int32_t row_sum) const {
      Floats part{};
      for (int i = 0; i < planes; ++i) {
        const auto exact = centred ? sums[i] : 2 * sums[i] - static_cast<uint32_t>(row_sum);
        part += floats_of(exact) * alpha[i];
      }
      if constexpr (offset) part += static_cast<float>(row_sum) * o;
      return part * sx;
    }
  };
};

// A few rows wait for the weights, which come faster one panel after the other, prefetched across
// the pages where the processor's own prefetching stops.
constexpr int64_t waiting_rows = 4;
constexpr bool waits_for_weights(int64_t rows) { return rows <= waiting_rows; }
constexpr int64_t ahead_bytes = 4096, cache_line = 64;

// Of so many terms or panels, how many are taken together.
constexpr int together(int count) {
  for (int n = max_vectors; n > 1; --n) {
    if (count % n == 0) return n;
  }
  return 1;
}

// Additions to one sum wait for each other. If Dot takes codes of any 8 bits, steps whose codes lie
// in the same bits of their bytes share a sum of their own, 2^kept times its worth, and no code is
// shifted. These sums take at most half of the registers, for so many outputs. They fit 32 bits:
// packed_layout.py limits the inputs of a group so that sums of 8-bit codes fit.
template <class Dot, int bits, int outputs>
struct Sums {
  static constexpr int width = bits == 3 ? 4 : bits;  // from a code to the next in a byte
  static constexpr int most = width > 4 ? 2 : width == 1 ? 4 : 8 / width;
  static constexpr int count = Dot::any_bits && most * outputs <= Isa::registers / 2 ? most : 1;
  static constexpr bool in_place = count > 1 && width <= 4;

  static constexpr int of_step(int s) { return (in_place ? s / width : s) % count; }
  static constexpr int kept(int sum) { return in_place ? sum * width : 0; }

  static Words total(const Ints (&sum)[count]) {
    Ints all = sum[0];
#pragma GCC unroll 4
    for (int i = 1; i < count; ++i) all += sum[i] >> kept(i);
    return reinterpret_cast<Words>(all);
  }
};

// to = the sums of all groups of P panels for R rows of codes from `row` on. Each block of inputs
// prefetches a token of `outputs`.
template <class Codes, int P, int R>
void sum_panels(const Linear& op, const Activations& a, int64_t row, int64_t panel,
                OutputPrefetch<P>& outputs, Floats (&to)[P][R][parts]) {
  Floats acc[P][R][parts] = {};
  constexpr int terms = Codes::terms, at_once = together(terms);
  const PackedLayout& form = op.form;
  const int64_t groups = form.groups();
  const int64_t block_bytes = Codes::binary ? form.block_bytes() : Codes::bits * vector_bytes;
  const int64_t panel_bytes = form.panel_bytes();
  using Dot = Isa::template Dot<Codes::bits>;
  using Own = Sums<Dot, Codes::bits, at_once * P * R * parts>;
  const int64_t row_bytes = a.padded_inputs * Dot::bytes_per_input;
  const uint8_t* codes = op.codes + panel * panel_bytes;
  const int8_t* x = a.codes + row * row_bytes;
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t blocks = PackedLayout::blocks_of(form.group_inputs(g));
    Words total[P][R][parts][terms];
    for (int first = 0; first < terms; first += at_once) {
      const uint8_t* block = codes + first * Codes::term_bytes;
      const int8_t* inputs = x;
      Ints sum[at_once][P][R][parts][Own::count] = {};
      for (int64_t b = 0; b < blocks; ++b, block += block_bytes) {
        if (first == 0) outputs.next();
        if (waits_for_weights(R) && first == 0) {
          for (int64_t at = 0; at < block_bytes; at += cache_line) {
            __builtin_prefetch(block + ahead_bytes + at);
          }
        }
        Words pairs[at_once][P][R][parts] = {};
#pragma GCC unroll Isa::unroll
        for (int s = 0; s < block_steps; ++s) {
          const int own = Own::of_step(s);
          typename Dot::Codes step[at_once][P][parts];
          for (int i = 0; i < at_once; ++i) {
            for (int q = 0; q < P; ++q) {
              const uint8_t* at = block + i * Codes::term_bytes + q * panel_bytes;
              for (int p = 0; p < parts; ++p) {
                step[i][q][p] = Dot::prepare(codes_of_step<Codes::bits>(at, s, p, Own::kept(own)));
              }
            }
          }
          for (int r = 0; r < R; ++r) {
            const int8_t* at = inputs + r * row_bytes + s * step_inputs * Dot::bytes_per_input;
            const auto four = Dot::template four<at_once * P>(at);
            for (int i = 0; i < at_once; ++i) {
              for (int q = 0; q < P; ++q) {
                for (int p = 0; p < parts; ++p) {
                  Dot::add(s, step[i][q][p], four, pairs[i][q][r][p], sum[i][q][r][p][own]);
                }
              }
            }
          }
        }
        inputs += block_inputs * Dot::bytes_per_input;
      }
      for (int i = 0; i < at_once; ++i) {
        for (int q = 0; q < P; ++q) {
          for (int r = 0; r < R; ++r) {
            for (int p = 0; p < parts; ++p) {
              total[q][r][p][first + i] = Own::total(sum[i][q][r][p]);
            }
          }
        }
      }
    }
    codes += blocks * block_bytes;
    x += blocks * block_inputs * Dot::bytes_per_input;
#pragma GCC unroll 4
    for (int q = 0; q < P; ++q) {
#pragma GCC unroll 4
      for (int p = 0; p < parts; ++p) {
        const typename Codes::template Parameters<false> group(op, (panel + q) * groups + g, p);
        const auto add = [&]<bool offset>() {
#pragma GCC unroll 8
          for (int r = 0; r < R; ++r) {
            const int64_t at = (row + r) * groups + g;
            acc[q][r][p] += group.template value<offset>(total[q][r][p], a.scales[at], a.sums[at]);
          }
        };
        group.has_offset ? add.template operator()<true>() : add.template operator()<false>();
      }
    }
  }
  __builtin_memcpy(to, acc, sizeof acc);
}

template <class Codes, int P, int R>
void multiply_rows(const Linear& op, const Activations& a, int64_t row, int64_t last,
                   int64_t panel) {
  const int64_t rows = last - row < R ? last - row : R;
  const int64_t m = row / op.limbs, tokens = rows / op.limbs;
  OutputPrefetch<P> outputs(op, m, tokens, panel);
  Floats sums[P][R][parts];
  sum_panels<Codes, P, R>(op, a, row, panel, outputs, sums);
  finish<P, R>(op, sums[0][0], R * parts, m, tokens, panel);
}

// Rows of activations in blocks of max_rows, and what is left in the smallest block that holds it:
// its further rows are scratch. A token's limbs are never parted.
template <class Codes, int P>
void multiply_blocks(const Linear& op, const Activations& a, int64_t first, int64_t last,
                     int64_t panel) {
  for (int64_t row = first; row < last; row += max_rows) {
    const int64_t n = last - row;
    if (n <= 1) {
      multiply_rows<Codes, P, 1>(op, a, row, last, panel);
    } else if (n <= 2) {
      multiply_rows<Codes, P, 2>(op, a, row, last, panel);
    } else if (n <= 4 || max_rows == 4) {
      multiply_rows<Codes, P, 4>(op, a, row, last, panel);
    } else {
      multiply_rows<Codes, P, max_rows>(op, a, row, last, panel);
    }
  }
}

template <class Codes>
void multiply(const Linear& op, const Activations& a, int64_t first_row, int64_t last_row,
              int64_t first_panel, int64_t last_panel) {
  constexpr int panels = Codes::terms == 1 ? max_vectors : 1;
  const int64_t first = first_row * op.limbs, last = last_row * op.limbs;
  int64_t panel = first_panel;
  if (!waits_for_weights(last - first)) {
    for (; panel + panels <= last_panel; panel += panels) {
      multiply_blocks<Codes, panels>(op, a, first, last, panel);
    }
  }
  for (; panel < last_panel; ++panel) multiply_blocks<Codes, 1>(op, a, first, last, panel);
}

// The power of two that makes |x| < 2^30 of it, and its inverse.
GroupScale fixed_point_scale(const float* x, int64_t n) {
  const int32_t largest = largest_magnitude(x, n);
  if (largest >= infinity_bits) return {__builtin_nanf(""), 0.0f};
  const int32_t exponent = largest >> 23;  // |x| < 2^(exponent - 126)
  if (exponent < 127 - 90) return {1.0f, 0.0f};
  return {float_of((exponent - 29) << 23), float_of((283 - exponent) << 23)};
}

// The four limbs of x * inv rounded to an integer, least significant first, -128 … 127 each; adds
// them to `sums`.
void encode_limbs(const float* x, int64_t n, float inv, int8_t* const (&limbs)[4],
                  int32_t (&sums)[4]) {
  for (int64_t i = 0; i < n; ++i) {
    const float v = inv == 0.0f ? 0.0f : x[i] * inv;
    int32_t whole = static_cast<int32_t>(v);
    const float rest = v - static_cast<float>(whole);  // exact
    whole += (rest >= 0.5f) - (rest <= -0.5f);
    for (int d = 0; d < 4; ++d) {
      const auto limb = static_cast<int8_t>(whole);
      limbs[d][i] = limb;
      sums[d] += limb;
      whole = (whole - limb) >> 8;
    }
  }
}

// The sum of the products of each two codes, for kernels whose sums contain it.
[[maybe_unused]] int32_t cross_sum(const int8_t* codes, int64_t n) {
  int32_t sum = 0;
  for (int64_t i = 0; i < n; i += 2) sum += codes[i] * codes[i + 1];
  return sum;
}

// Rows first … last - 1 as codes. Where they lie is a Row's:
//
//   struct Row {
//     Row(const Activations& a, int64_t row, int64_t groups);
//     // n inputs from input k of the group on.
//     void place(const int8_t* piece, int64_t n, const GroupInputs& group, int64_t k) const;
//     int64_t parameter(int64_t group) const;  // of scales and sums
//   };
template <class Row, int64_t group_padding>
void quantize(const Linear& op, const Activations& a, int64_t first, int64_t last) {
  constexpr int64_t piece_size = 1024;
  alignas(64) int8_t piece[4][piece_size];
  int8_t* const limbs[4] = {piece[0], piece[1], piece[2], piece[3]};
  const int64_t groups = op.form.groups(), all = op.form.inputs;
  float* widened = op.bfloat16 ? static_cast<float*>(task_scratch(all * 4)) : nullptr;
  for (int64_t m = first; m < last; ++m) {
    if (widened) widen(static_cast<const uint16_t*>(op.x) + m * all, all, widened);
    const float* inputs_of_row = widened ? widened : static_cast<const float*>(op.x) + m * all;
    Row rows[4];
    for (int d = 0; d < op.limbs; ++d) rows[d] = Row(a, m * op.limbs + d, groups);
    int64_t to = 0;
    for (int64_t g = 0; g < groups; ++g) {
      const float* x = inputs_of_row + g * op.form.group;
      const int64_t inputs = op.form.group_inputs(g), end = padded(inputs, group_padding);
      const bool fixed = op.limbs == 4;
      const bool is_static = op.input.scale > 0.0f;
      const GroupScale s = fixed       ? fixed_point_scale(x, inputs)
                           : is_static ? static_group_scale(x, inputs, op.input.scale)
                                       : group_scale(x, inputs);
      int32_t sums[4] = {}, cross_sums[4] = {};
      for (int64_t k = 0; k < end; k += piece_size) {
        const int64_t n = end - k < piece_size ? end - k : piece_size;
        const int64_t real = inputs - k < n ? inputs - k : n;
        if (fixed) {
          encode_limbs(x + k, real, s.inv, limbs, sums);
        } else if (is_static) {
          sums[0] += encode_static(x + k, piece[0], real, s.inv, op.input);
        } else {
          sums[0] += encode(x + k, piece[0], real, s.inv);
        }
        for (int d = 0; d < op.limbs; ++d) {
          for (int64_t i = real; i < n; ++i) piece[d][i] = 0;
          rows[d].place(piece[d], n, {.first = to, .count = end}, k);
          if constexpr (requires { Row::crossed; }) {
            if constexpr (Row::crossed) cross_sums[d] += cross_sum(piece[d], n);
          }
        }
      }
      float scale = s.scale;
      for (int d = 0; d < op.limbs; ++d, scale *= 256.0f) {
        const int64_t at = rows[d].parameter(g);
        a.scales[at] = scale;
        a.sums[at] = sums[d];
        a.cross_sums[at] = cross_sums[d];
      }
      to += end;
    }
  }
}

template <class Dot>
struct RowByRow {
  int8_t* codes;
  int64_t first_parameter;

  RowByRow() = default;
  RowByRow(const Activations& a, int64_t row, int64_t groups)
      : codes(a.codes + row * a.padded_inputs * Dot::bytes_per_input),
        first_parameter(row * groups) {}

  void place(const int8_t* piece, int64_t n, const GroupInputs& group, int64_t k) const {
    Dot::place(piece, n, codes, group.first + k);
  }

  int64_t parameter(int64_t group) const { return first_parameter + group; }
};

template <class Codes>
struct FewRows {
  using Dot = Isa::template Dot<Codes::bits>;

  static constexpr Product product{.rows = max_rows,
                                   .panels = max_vectors,
                                   .group_padding = block_inputs,
                                   .bytes_per_input = Dot::bytes_per_input,
                                   .macs_per_ns = Isa::macs_per_ns,
                                   .quantize = quantize<RowByRow<Dot>, block_inputs>,
                                   .multiply = multiply<Codes>};
};

// The loops for the bits of affine codes or the planes in use.
template <template <class> class Affines, template <class> class Binaries = Affines>
const Product& choose(const Linear& op) {
  static constexpr const Product* by_bits[] = {
      &Affines<Affine<2>>::product, &Affines<Affine<3>>::product, &Affines<Affine<4>>::product,
      &Affines<Affine<5>>::product, &Affines<Affine<6>>::product, &Affines<Affine<7>>::product,
      &Affines<Affine<8>>::product};
  static constexpr const Product* by_planes[] = {
      &Binaries<Binary<1>>::product, &Binaries<Binary<2>>::product, &Binaries<Binary<3>>::product,
      &Binaries<Binary<4>>::product};
  return op.form.binary ? *by_planes[op.planes - 1] : *by_bits[op.form.bits - 2];
}

}  // namespace
}  // namespace lowbit::LOWBIT_ISA

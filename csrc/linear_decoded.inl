// The loops of linear.h for codes that are decoded once for all rows of a chunk: a task takes the
// codes of one group and a few panels, decodes them into scratch, multiplies them with all rows and
// adds what that is worth to the rows' sums, group after group. How codes are decoded and
// multiplied is a Kernel's:
//
//   struct Kernel {
//     using Codes = …;              // Affine or Binary
//     static constexpr bool centred;  // its sums are (linear.inl)
//     static constexpr int panels, rows;  // of a register block
//     static constexpr int64_t block_bytes;  // of a block of all panels, decoded
//     // Rows of activations, as quantize places them.
//     static void place(const Activations& a, const int8_t* piece, int64_t n, int64_t row, int64_t k);
//     // The blocks from codes[panel] on.
//     static void decode(const uint8_t* const (&codes)[panels], int64_t blocks, int64_t stored_bytes, uint8_t* decoded);
//     // sums[term][panel][row][part] of R rows from `row` on; the group's blocks begin at `first`.
//     template <int R> static void sum(const Group& group, const Activations& a, int64_t row, Ints (&sums)[terms][panels][rows][parts]);
//   };

#include "linear.inl"

namespace lowbit::LOWBIT_ISA {
namespace {

// The blocks of one group.
struct GroupBlocks {
  int64_t number, groups;  // of the group, of all groups
  int64_t first, count;    // blocks
};

template <class Kernel, int R>
void add_rows(const GroupBlocks& group, const Activations& a, const uint8_t* decoded,
              const typename Kernel::Codes::template Parameters<Kernel::centred> (
                  &parameters)[Kernel::panels][parts],
              int64_t row, int64_t stride, Floats* acc) {
  constexpr int P = Kernel::panels, terms = Kernel::Codes::terms;
  Ints sums[terms][P][R][parts];
  Kernel::sum(group, a, decoded, row, sums);
  for (int q = 0; q < P; ++q) {
    for (int r = 0; r < R; ++r) {
      const int64_t at = (row + r) * group.groups + group.number;
      for (int p = 0; p < parts; ++p) {
        Words of_terms[terms];
        for (int i = 0; i < terms; ++i) of_terms[i] = reinterpret_cast<Words>(sums[i][q][r][p]);
        const Floats value = parameters[q][p].value(of_terms, a.scales[at], a.sums[at]);
        acc[q * stride + r * parts + p] += value;
      }
    }
  }
}

// Rows are finished so many at once: whole register blocks, and whole tokens of four digits.
template <class Kernel>
constexpr int finished_rows = Kernel::rows % 3 == 0 ? 2 * Kernel::rows : 4;

template <class Kernel>
[[gnu::noinline]] void multiply_decoded_panels(const Linear& op, const Activations& a,
                                               int64_t first, int64_t last, int64_t panel) {
  using Codes = Kernel::Codes;
  constexpr int P = Kernel::panels, R = Kernel::rows, F = finished_rows<Kernel>;
  static_assert(F % R == 0 && F % 4 == 0);
  const PackedLayout& form = op.form;
  const int64_t blocks = PackedLayout::blocks_of(form.group_inputs(0));
  const int64_t decoded_bytes = blocks * Kernel::block_bytes;
  const int64_t stride = padded(last - first, F) * parts;
  auto* decoded = static_cast<uint8_t*>(
      task_scratch(decoded_bytes + P * stride * static_cast<int64_t>(sizeof(Floats))));
  auto* acc = reinterpret_cast<Floats*>(decoded + decoded_bytes);
  for (int64_t i = 0; i < P * stride; ++i) acc[i] = Floats{};

  // Panels after the last are the last one again, and what comes of them is not written.
  int64_t own[P];
  const uint8_t* codes[P];
  for (int q = 0; q < P; ++q) {
    own[q] = panel + q < form.panels() ? panel + q : form.panels() - 1;
    codes[q] = op.codes + own[q] * form.panel_bytes();
  }
  GroupBlocks group{.number = 0, .groups = form.groups(), .first = 0, .count = 0};
  for (; group.number < group.groups; ++group.number) {
    group.count = PackedLayout::blocks_of(form.group_inputs(group.number));
    Kernel::decode(codes, group.count, form.block_bytes(), decoded);
    typename Codes::template Parameters<Kernel::centred> parameters[P][parts];
    for (int q = 0; q < P; ++q) {
      codes[q] += group.count * form.block_bytes();
      for (int p = 0; p < parts; ++p) {
        parameters[q][p] = {op, own[q] * group.groups + group.number, p};
      }
    }
    for (int64_t row = first; row < last; row += F) {
      const int64_t n = last - row < F ? last - row : F;
      Floats* to = acc + (row - first) * parts;
      for (int64_t r = 0; r < n; r += R, to += R * parts) {
        if (n - r > R / 2) {
          add_rows<Kernel, R>(group, a, decoded, parameters, row + r, stride, to);
        } else if (n - r > 1) {
          add_rows<Kernel, (R + 1) / 2>(group, a, decoded, parameters, row + r, stride, to);
        } else {
          add_rows<Kernel, 1>(group, a, decoded, parameters, row + r, stride, to);
        }
      }
      if (group.number < group.groups - 1) continue;
      finish<P, F>(op, acc + (row - first) * parts, stride, row / op.digits, n / op.digits, panel);
    }
    group.first += group.count;
  }
}

template <class Kernel>
void multiply_decoded(const Linear& op, const Activations& a, int64_t first_row, int64_t last_row,
                      int64_t first_panel, int64_t last_panel) {
  for (int64_t panel = first_panel; panel < last_panel; panel += Kernel::panels) {
    multiply_decoded_panels<Kernel>(op, a, first_row * op.digits, last_row * op.digits, panel);
  }
}

template <class Kernel>
constexpr Product decoded_product{.rows = finished_rows<Kernel>,
                                  .panels = Kernel::panels,
                                  .group_padding = block_inputs,
                                  .bytes_per_input = Kernel::bytes_per_input,
                                  .macs_per_ns = Isa::macs_per_ns,
                                  .quantize = quantize<Kernel, block_inputs>,
                                  .multiply = multiply_decoded<Kernel>};

// Affine codes, as Dot takes them. A register block's rows of activations lie block by block:
//
//   cx [rows/R][inputs/32][R][32]
template <class Codes_>
struct Bytes {
  using Codes = Codes_;
  using Dot = Isa::template Dot<Codes::bits>;
  static constexpr bool centred = false;
  // A register for the codes of each part and for the sums of each row and part, one for
  // activations and one for products: 12 sums hide the latency of dpbusd, 5 cycles at two a cycle.
  static constexpr int panels = Isa::registers == 32 ? 2 : 1, rows = 6;
  static constexpr int64_t bytes_per_input = Dot::bytes_per_input;
  static constexpr int64_t row_bytes = block_inputs * bytes_per_input;
  using Step = typename Dot::Codes[panels][parts];
  static constexpr int64_t block_bytes = block_steps * sizeof(Step);

  static void place(const Activations& a, const int8_t* piece, int64_t n, int64_t row, int64_t k) {
    int8_t* at = a.codes + row / rows * rows * a.padded_inputs * bytes_per_input +
                 (k / block_inputs * rows + row % rows) * row_bytes;
    for (int64_t i = 0; i < n; i += block_inputs, at += rows * row_bytes) {
      Dot::place(piece + i, block_inputs, at, 0);
    }
  }

  static void decode(const uint8_t* const (&codes)[panels], int64_t blocks, int64_t stored_bytes,
                     uint8_t* decoded) {
    auto* to = reinterpret_cast<Step*>(decoded);
    for (int64_t b = 0; b < blocks; ++b, to += block_steps) {
#pragma GCC unroll 8
      for (int s = 0; s < block_steps; ++s) {
        for (int q = 0; q < panels; ++q) {
          for (int p = 0; p < parts; ++p) {
            to[s][q][p] =
                Dot::prepare(codes_of_step<Codes::bits>(codes[q] + b * stored_bytes, s, p));
          }
        }
      }
    }
  }

  template <int R>
  static void sum(const GroupBlocks& group, const Activations& a, const uint8_t* decoded,
                  int64_t row, Ints (&sums)[1][panels][R][parts]) {
    Ints sum[panels][R][parts] = {};
    auto* codes = reinterpret_cast<const Step*>(decoded);
    const int8_t* x = a.codes + row / rows * rows * a.padded_inputs * bytes_per_input +
                      (group.first * rows + row % rows) * row_bytes;
    for (int64_t b = 0; b < group.count; ++b, codes += block_steps, x += rows * row_bytes) {
      Words pairs[panels][R][parts] = {};
#pragma GCC unroll 8
      for (int s = 0; s < block_steps; ++s) {
        for (int r = 0; r < R; ++r) {
          const auto four = Dot::template four<parts * panels>(x + r * row_bytes +
                                                               s * step_inputs * bytes_per_input);
          for (int q = 0; q < panels; ++q) {
            for (int p = 0; p < parts; ++p) {
              Dot::add(s, codes[s][q][p], four, pairs[q][r][p], sum[q][r][p]);
            }
          }
        }
      }
    }
    __builtin_memcpy(sums, sum, sizeof sums);
  }
};

template <class Codes>
struct Decoded {
  static constexpr const Product& product = decoded_product<Bytes<Codes>>;
};

}  // namespace
}  // namespace lowbit::LOWBIT_ISA

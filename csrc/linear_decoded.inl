// The loops of linear.h for codes that are decoded once for all rows of a chunk: a task takes the
// codes of one group of a few panels, decodes them into scratch, multiplies them with all rows and
// adds what that is worth to the rows' sums, group after group. How codes are decoded and
// multiplied is a Kernel's:
//
//   struct Kernel {
//     using Codes = …;                       // Affine or Binary
//     static constexpr int panels, rows;     // of a register block
//     static constexpr int64_t block_bytes;  // of a block of all panels, decoded
//     static constexpr int64_t bytes_per_input;
//     static constexpr int64_t chunk_bytes;  // as in Product
//     static constexpr bool crossed;         // sums contain cross_sums (linear_schedule.h), too
//     static constexpr bool centred;         // zero points are subtracted from decoded codes
//     static constexpr bool apart;           // a block is a function of its own (add_block)
//     // The codes of one of `rows` rows, n inputs from k on, among `inputs` inputs of a group.
//     static void place(const int8_t* piece, int64_t n, int64_t row, int64_t inputs, int64_t k,
//                       int8_t* to);
//     // `blocks` blocks from codes[panel] on, the first steps of each. Sums of each lane begin with
//     // `start`, as `sum` adds so much too much whatever the row.
//     template <int steps>
//     static void decode(const uint8_t* const (&codes)[panels], int64_t blocks,
//                        int64_t stored_bytes, const Words (&minus_zero)[panels][parts],
//                        uint8_t* decoded, Words (&start)[terms][panels][parts]);
//     // Adds the sums of R rows of x, where they were placed, over `blocks` blocks, the first steps
//     // of each; binary ones are those of 0 and 2, or of -1 and 1 if they are centred.
//     template <int R, int steps>
//     static void sum(const int8_t* x, int64_t blocks, const uint8_t* decoded,
//                     Words (&sums)[terms][panels][R][parts]);
//   };
//
// Activations lie as they are read, group by group of each chunk:
//
//   cx [chunks][groups][rows/R] of what Kernel::place makes of R rows

#include "linear.inl"

namespace lowbit::LOWBIT_ISA {
namespace {

// The rows of a chunk, from row `first` on.
template <class Kernel>
struct Chunk {
  int8_t* codes;
  int64_t first, rows, groups;

  Chunk() = default;
  Chunk(const Activations& a, int64_t first, int64_t groups)
      : codes(a.codes + first * a.padded_inputs * Kernel::bytes_per_input),
        first(first),
        rows(a.rows_of_chunk(first)),
        groups(groups) {}

  // Of its row `row`, the first of a register block.
  int8_t* inputs(const GroupInputs& group, int64_t row) const {
    return codes + (rows * group.first + row * group.count) * Kernel::bytes_per_input;
  }

  int64_t parameter(int64_t group, int64_t row) const {
    return first * groups + rows * group + row;
  }
};

template <class Kernel>
struct RowOfChunk {
  static constexpr bool crossed = Kernel::crossed;

  Chunk<Kernel> chunk;
  int64_t row, own;  // of the chunk; of the register block

  RowOfChunk() = default;
  RowOfChunk(const Activations& a, int64_t row, int64_t groups)
      : chunk(a, row / a.chunk_rows * a.chunk_rows, groups),
        row(row - chunk.first),
        own(this->row % Kernel::rows) {}

  void place(const int8_t* piece, int64_t n, const GroupInputs& group, int64_t k) const {
    Kernel::place(piece, n, own, group.count, k, chunk.inputs(group, row - own));
  }

  int64_t parameter(int64_t group) const { return chunk.parameter(group, row); }
};

// A group of at most half a block, as two levels of scales have, is not multiplied by the zeros
// behind it.
constexpr int half_steps = block_steps / 2;

template <class Kernel, int steps>
struct DecodedGroup {
  using Codes = typename Kernel::Codes;
  static constexpr int P = Kernel::panels, terms = Codes::terms;

  int64_t number, groups, blocks;  // of the group, of all groups; its blocks
  const float* scales;             // of the chunk's rows, and so are the next two
  const int32_t *row_sums, *cross_sums;
  const uint8_t* decoded;
  Words start[terms][P][parts], minus_zero[P][parts];
  typename Codes::template Parameters<true> parameters[P][parts];

  // acc[panel][row][part] += what the sums of R rows of the chunk from row `row` on, x, are worth;
  // panels are `stride` apart. Sums begin with what is to be taken off them.
  template <int R>
  void add_rows(const int8_t* x, int64_t row, int64_t stride, Floats* acc) const {
    Words sums[terms][P][R][parts];
    for (int r = 0; r < R; ++r) {
      const auto row_sum = static_cast<uint32_t>(row_sums[row + r]);
      Words of_row{};
      if constexpr (Kernel::crossed) of_row -= static_cast<uint32_t>(cross_sums[row + r]);
      for (int q = 0; q < P; ++q) {
        for (int p = 0; p < parts; ++p) {
          Words off = of_row;
          if constexpr (!Kernel::centred) {
            off += Codes::binary ? Words{} - row_sum : minus_zero[q][p] * row_sum;
          }
          for (int i = 0; i < terms; ++i) sums[i][q][r][p] = start[i][q][p] + off;
        }
      }
    }
    Kernel::template sum<R, steps>(x, blocks, decoded, sums);
    if (parameters[0][0].has_offset) {
      add_values<R, true>(row, stride, sums, acc);
    } else {
      add_values<R, false>(row, stride, sums, acc);
    }
  }

  // If gcc inlines a large block, it keeps sums in memory, because the outer loops need registers
  // too. For a small block the call costs more than that.
  template <int R>
  [[gnu::noinline]] void add_rows_apart(const int8_t* x, int64_t row, int64_t stride,
                                        Floats* acc) const {
    add_rows<R>(x, row, stride, acc);
  }

  template <int R>
  LOWBIT_INLINE void add_block(const int8_t* x, int64_t row, int64_t stride, Floats* acc) const {
    if constexpr (Kernel::apart) {
      add_rows_apart<R>(x, row, stride, acc);
    } else {
      add_rows<R>(x, row, stride, acc);
    }
  }

  template <int R, bool offset>
  LOWBIT_INLINE void add_values(int64_t row, int64_t stride,
                                const Words (&sums)[terms][P][R][parts], Floats* acc) const {
    for (int r = 0; r < R; ++r) {
      const float scale = scales[row + r];
      const int32_t row_sum = row_sums[row + r];
      for (int q = 0; q < P; ++q) {
        for (int p = 0; p < parts; ++p) {
          Words of_terms[terms];
          for (int i = 0; i < terms; ++i) of_terms[i] = sums[i][q][r][p];
          acc[q * stride + r * parts + p] +=
              parameters[q][p].template value<offset>(of_terms, scale, row_sum);
        }
      }
    }
  }

  void read_parameters(const Linear& op, int64_t at, int q) {
    for (int p = 0; p < parts; ++p) {
      parameters[q][p] = {op, at, p};
      minus_zero[q][p] = -Codes::zero_points(op, at, p);
    }
  }
};

// Rows are finished so many at once: whole register blocks, and whole tokens of four limbs.
template <class Kernel>
constexpr int finished_rows = Kernel::rows * (Kernel::rows % 4 == 0   ? 1
                                              : Kernel::rows % 2 == 0 ? 2
                                                                      : 4);

template <class Kernel, int steps>
[[gnu::noinline]] void multiply_decoded_panels(const Linear& op, const Activations& a,
                                               int64_t first, int64_t last, int64_t panel) {
  constexpr int P = Kernel::panels, R = Kernel::rows, F = finished_rows<Kernel>;
  static_assert(F % R == 0 && F % 4 == 0);
  const PackedLayout& form = op.form;
  const int64_t decoded_bytes = PackedLayout::blocks_of(form.group_inputs(0)) * Kernel::block_bytes;
  const int64_t stride = padded(last - first, F) * parts;
  auto* decoded = static_cast<uint8_t*>(
      task_scratch(decoded_bytes + P * stride * static_cast<int64_t>(sizeof(Floats))));
  auto* acc = reinterpret_cast<Floats*>(decoded + decoded_bytes);
  for (int64_t i = 0; i < P * stride; ++i) acc[i] = Floats{};

  // Panels after the last are the last one again, and what comes of them is not written.
  int64_t own[P];
  const uint8_t *codes[P], *ends[P];
  for (int q = 0; q < P; ++q) {
    own[q] = panel + q < form.panels() ? panel + q : form.panels() - 1;
    codes[q] = op.codes + own[q] * form.panel_bytes();
    ends[q] = codes[q] + form.panel_bytes();
  }
  DecodedGroup<Kernel, steps> group{};
  group.decoded = decoded;
  group.groups = form.groups();
  const Chunk<Kernel> chunk(a, first, group.groups);
  GroupInputs inputs{};
  for (; group.number < group.groups; ++group.number, inputs.first += inputs.count) {
    group.blocks = PackedLayout::blocks_of(form.group_inputs(group.number));
    inputs.count = group.blocks * block_inputs;
    const int64_t bytes = group.blocks * form.block_bytes();
    for (int q = 0; q < P && waits_for_weights(last - first); ++q) {
      // After these panels come the next P.
      const uint8_t* next = codes[q] + ahead_bytes;
      if (next >= ends[q]) next += (P - 1) * form.panel_bytes();
      for (int64_t i = 0; i < bytes; i += cache_line) __builtin_prefetch(next + i);
    }
    for (int q = 0; q < P; ++q) {
      group.read_parameters(op, own[q] * group.groups + group.number, q);
    }
    Kernel::template decode<steps>(codes, group.blocks, form.block_bytes(), group.minus_zero,
                                   decoded, group.start);
    for (int q = 0; q < P; ++q) codes[q] += bytes;
    const int8_t* x = chunk.inputs(inputs, 0);
    const int64_t parameters = chunk.parameter(group.number, 0);
    group.scales = a.scales + parameters;
    group.row_sums = a.sums + parameters;
    group.cross_sums = a.cross_sums + parameters;
    const bool finishes = group.number == group.groups - 1;
    for (int64_t row = first; row < last; row += F) {
      const int64_t n = last - row < F ? last - row : F;
      if (finishes) OutputPrefetch<P>(op, row / op.limbs, n / op.limbs, panel).all();
      Floats* to = acc + (row - first) * parts;
      for (int64_t r = 0; r < n; r += R, x += R * inputs.count * Kernel::bytes_per_input) {
        if (n - r > R / 2) {
          group.template add_block<R>(x, row - first + r, stride, to + r * parts);
        } else if (n - r > 1) {
          group.template add_block<(R + 1) / 2>(x, row - first + r, stride, to + r * parts);
        } else {
          group.template add_block<1>(x, row - first + r, stride, to + r * parts);
        }
      }
      if (finishes) finish<P, F>(op, to, stride, row / op.limbs, n / op.limbs, panel);
    }
  }
}

template <class Kernel>
void multiply_decoded(const Linear& op, const Activations& a, int64_t first_row, int64_t last_row,
                      int64_t first_panel, int64_t last_panel) {
  auto* multiply_panels = multiply_decoded_panels<Kernel, block_steps>;
  if constexpr (!Kernel::Codes::binary) {
    if (op.form.group <= half_steps * step_inputs) {
      multiply_panels = multiply_decoded_panels<Kernel, half_steps>;
    }
  }
  for (int64_t panel = first_panel; panel < last_panel; panel += Kernel::panels) {
    multiply_panels(op, a, first_row * op.limbs, last_row * op.limbs, panel);
  }
}

template <class Kernel>
constexpr Product decoded_product{.rows = finished_rows<Kernel>,
                                  .panels = Kernel::panels,
                                  .group_padding = block_inputs,
                                  .bytes_per_input = Kernel::bytes_per_input,
                                  .macs_per_ns = Isa::macs_per_ns,
                                  .chunk_bytes = Kernel::chunk_bytes,
                                  .quantize = quantize<RowOfChunk<Kernel>, block_inputs>,
                                  .multiply = multiply_decoded<Kernel>};

// Codes as bytes, of each plane if they are binary: [terms][blocks][steps][panels][parts]. A
// register block's rows of activations lie block by block, cx [blocks][R][32].
template <class Codes_>
struct Bytes {
  using Codes = Codes_;
  using Dot = Isa::template DecodedDot<Codes::bits>;
  static constexpr bool crossed = Dot::crossed, centred = Dot::centred, apart = Dot::apart;
  static constexpr int panels = Dot::panels, rows = Dot::rows, terms = Codes::terms;
  static constexpr int64_t bytes_per_input = Dot::bytes_per_input;
  static constexpr int64_t row_bytes = block_inputs * bytes_per_input;
  // Each panel reads them once, in order: they need not stay in L2.
  static constexpr int64_t chunk_bytes = 1 << 19;
  using Step = typename Dot::Codes[panels][parts];
  static constexpr int64_t block_bytes = terms * block_steps * sizeof(Step);

  static void place(const int8_t* piece, int64_t n, int64_t row, int64_t, int64_t k, int8_t* to) {
    to += (k / block_inputs * rows + row) * row_bytes;
    for (int64_t i = 0; i < n; i += block_inputs, to += rows * row_bytes) {
      Dot::place(piece + i, block_inputs, to, 0);
    }
  }

  template <int steps>
  static void decode(const uint8_t* const (&codes)[panels], int64_t blocks, int64_t stored_bytes,
                     const Words (&minus_zero)[panels][parts], uint8_t* decoded,
                     Words (&start)[terms][panels][parts]) {
    auto* to = reinterpret_cast<Step*>(decoded);
    Words minus_zeros[panels][parts];
    for (int q = 0; q < panels; ++q) {
      for (int p = 0; p < parts; ++p) {
        minus_zeros[q][p] = (minus_zero[q][p] & 0xffu) * 0x01010101u;
      }
    }
    for (int i = 0; i < terms; ++i) {
      Ints off[panels][parts] = {};
      for (int64_t b = 0; b < blocks; ++b, to += block_steps) {
#pragma GCC unroll 8
        for (int s = 0; s < steps; ++s) {
          for (int q = 0; q < panels; ++q) {
            const uint8_t* at = codes[q] + b * stored_bytes + i * Codes::term_bytes;
            for (int p = 0; p < parts; ++p) {
              // Planes are those of 0 and 2.
              Words step = codes_of_step<Codes::bits>(at, s, p, Codes::binary);
              if constexpr (centred) step = Isa::add_bytes(step, minus_zeros[q][p]);
              to[s][q][p] = Dot::prepare(step);
              if constexpr (crossed || centred) Dot::correct(to[s][q][p], off[q][p]);
            }
          }
        }
      }
      __builtin_memcpy(start[i], off, sizeof off);
    }
  }

  template <int R, int steps>
  static void sum(const int8_t* x, int64_t blocks, const uint8_t* decoded,
                  Words (&sums)[terms][panels][R][parts]) {
    auto* codes = reinterpret_cast<const Step*>(decoded);
#pragma GCC unroll 4
    for (int i = 0; i < terms; ++i) {
      Ints sum[panels][R][parts];
      __builtin_memcpy(sum, sums[i], sizeof sum);
      const int8_t* inputs = x;
      for (int64_t b = 0; b < blocks; ++b, codes += block_steps, inputs += rows * row_bytes) {
        Words pairs[panels][R][parts] = {};
#pragma GCC unroll 8
        for (int s = 0; s < steps; ++s) {
          for (int r = 0; r < R; ++r) {
            const auto four = Dot::template four<parts * panels>(inputs + r * row_bytes +
                                                                 s * step_inputs * bytes_per_input);
            for (int q = 0; q < panels; ++q) {
              for (int p = 0; p < parts; ++p) {
                // The last of them is a block's last step, as Dot wants it.
                Dot::add(block_steps - steps + s, codes[s][q][p], four, pairs[q][r][p],
                         sum[q][r][p]);
              }
            }
          }
        }
      }
      __builtin_memcpy(sums[i], sum, sizeof sum);
    }
  }
};

template <class Codes>
struct Decoded {
  static constexpr const Product& product = decoded_product<Bytes<Codes>>;
};

}  // namespace
}  // namespace lowbit::LOWBIT_ISA

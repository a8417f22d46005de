// Many rows on AMX tiles of 16 rows x 64 inputs, as 2 x 2 in registers: four tiles are loaded for
// four products. A few rows go through AVX-512 VNNI.
//
// Activations lie tile by tile, cx [rows/16][inputs/64][16][64]. A tile of 8-bit codes is sixteen
// steps as they lie; narrower codes of a group are decoded into such tiles first, once for all rows
// of the chunk, and centred, q - z in int8 (binary: -1 and 1), so that nothing is left to correct.
#define LOWBIT_ISA amx
#include "isa_avx512vnni.inl"
#include "linear.inl"
#include "tiles.h"

namespace lowbit::amx {
namespace {

constexpr int64_t tile_inputs = tile_row_bytes, tile_blocks = tile_inputs / block_inputs;
constexpr int64_t block_rows = 2 * tile_rows, block_panels = 2;

struct RowInTiles {
  int8_t* codes;
  int64_t first_parameter;

  RowInTiles() = default;
  RowInTiles(const Activations& a, int64_t row, int64_t groups)
      : codes(a.codes + row / tile_rows * tile_rows * a.padded_inputs +
              row % tile_rows * tile_inputs),
        first_parameter(row * groups) {}

  void place(const int8_t* piece, int64_t n, const GroupInputs& group, int64_t k) const {
    int8_t* at = codes + (group.first + k) / tile_inputs * tile_bytes;
    for (int64_t i = 0; i < n; i += tile_inputs) {
      _mm512_store_si512(at + i / tile_inputs * tile_bytes, _mm512_load_si512(piece + i));
    }
  }

  int64_t parameter(int64_t group) const { return first_parameter + group; }
};

// out[32][P][16] = the sums over `tiles` tiles of activations from a on, R of them `row_stride`
// apart, against as many of codes from w on, P of them `panel_stride` apart. Tiles 0 … 3 hold the
// sums, 4 and 5 activations, 6 and 7 codes.
template <bool centred, int R, int P>
void sum_tiles(const int8_t* a, int64_t row_stride, const uint8_t* w, int64_t panel_stride,
               int64_t tiles, int32_t* out) {
  _tile_zero(0);
  if constexpr (P > 1) _tile_zero(1);
  if constexpr (R > 1) _tile_zero(2);
  if constexpr (R > 1 && P > 1) _tile_zero(3);
  for (int64_t at = 0; at < tiles * tile_bytes; at += tile_bytes) {
    _tile_loadd(6, w + at, tile_row_bytes);
    _tile_stream_loadd(4, a + at, tile_row_bytes);
    if constexpr (P > 1) _tile_loadd(7, w + panel_stride + at, tile_row_bytes);
    if constexpr (R > 1) _tile_stream_loadd(5, a + row_stride + at, tile_row_bytes);
    if constexpr (centred) {
      _tile_dpbssd(0, 4, 6);
      if constexpr (P > 1) _tile_dpbssd(1, 4, 7);
      if constexpr (R > 1) _tile_dpbssd(2, 5, 6);
      if constexpr (R > 1 && P > 1) _tile_dpbssd(3, 5, 7);
    } else {
      _tile_dpbsud(0, 4, 6);
      if constexpr (P > 1) _tile_dpbsud(1, 4, 7);
      if constexpr (R > 1) _tile_dpbsud(2, 5, 6);
      if constexpr (R > 1 && P > 1) _tile_dpbsud(3, 5, 7);
    }
  }
  constexpr int64_t row = P * panel_rows, row_bytes = row * sizeof(int32_t);
  _tile_stored(0, out, row_bytes);
  if constexpr (P > 1) _tile_stored(1, out + panel_rows, row_bytes);
  if constexpr (R > 1) _tile_stored(2, out + tile_rows * row, row_bytes);
  if constexpr (R > 1 && P > 1) _tile_stored(3, out + tile_rows * row + panel_rows, row_bytes);
}

// Which codes a target of tiles multiplies: 8-bit ones as they lie, others from `scratch`.
template <class Codes>
constexpr bool centred = Codes::binary || Codes::bits < 8;

// One term of a group and panel as tiles: q - z, or -1 and 1.
template <class Codes>
void decode_group(const Linear& op, const uint8_t* block, int64_t blocks, int64_t group, int term,
                  uint8_t* tiles) {
  Words zero = Words{} + 0x01010101u;
  if constexpr (!Codes::binary) {
    zero = Codes::zero_points(op, group, 0) * 0x01010101u;
  }
  block += term * Codes::term_bytes;
  for (int64_t b = 0; b < blocks; ++b, block += op.form.block_bytes()) {
#pragma GCC unroll 8
    for (int s = 0; s < block_steps; ++s, tiles += vector_bytes) {
      Words codes = codes_of_step<Codes::bits>(block, s, 0);
      if constexpr (Codes::binary) codes <<= 1;
      _mm512_store_si512(tiles, _mm512_sub_epi8(reinterpret_cast<__m512i>(codes),
                                                reinterpret_cast<__m512i>(zero)));
    }
  }
}

// What the sums of one group are worth, sums[terms][32][P][16] for rows of codes from `row` on and
// P panels from `panel` on: put(i, p, value) for each row i of them.
template <class Codes, int P, class Put>
void each_value(const Linear& op, const Activations& a, const int32_t* sums, int64_t row,
                int64_t rows, int64_t panel, int64_t g, const Put& put) {
  const int64_t groups = op.form.groups();
  for (int p = 0; p < P; ++p) {
    const typename Codes::template Parameters<centred<Codes>> group(op, (panel + p) * groups + g,
                                                                    0);
    for (int64_t r = 0; r < rows; ++r) {
      Words of_terms[Codes::terms];
      for (int i = 0; i < Codes::terms; ++i) {
        of_terms[i] = load<Words>(sums + ((i * block_rows + r) * P + p) * panel_rows);
      }
      const int64_t at = (row + r) * groups + g;
      put(r, p,
          group.has_offset ? group.template value<true>(of_terms, a.scales[at], a.sums[at])
                           : group.template value<false>(of_terms, a.scales[at], a.sums[at]));
    }
  }
}

template <class Codes, int P>
void multiply_panels(const Linear& op, const Activations& a, int64_t first, int64_t last,
                     int64_t panel) {
  const PackedLayout& form = op.form;
  const int64_t groups = form.groups(), acc_stride = padded(last - first, block_rows);
  const int64_t group_tiles = divided(form.group, tile_inputs);
  const int64_t decoded = centred<Codes> ? Codes::terms * P * group_tiles * tile_bytes : 0;
  auto* scratch = static_cast<uint8_t*>(
      task_scratch(decoded + P * acc_stride * static_cast<int64_t>(sizeof(Floats))));
  auto* acc = reinterpret_cast<Floats*>(scratch + decoded);

  // One group of one limb is all there is to a sum: it needs no place of its own.
  const bool to_y =
      groups == 1 && op.limbs == 1 && (panel + P) * panel_rows <= form.outputs && !op.bfloat16;
  float* y = static_cast<float*>(op.y) + (to_y ? panel * panel_rows : 0);
  Floats bias[P] = {};
  if (to_y && op.bias) {
    __builtin_memcpy(&bias, static_cast<const float*>(op.bias) + panel * panel_rows, sizeof bias);
  }

  const uint8_t* codes = op.codes + panel * form.panel_bytes();
  const int8_t* x = a.codes + first * a.padded_inputs;
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t blocks = PackedLayout::blocks_of(form.group_inputs(g));
    const int64_t tiles = divided(blocks, tile_blocks);
    const int64_t term_stride = P * group_tiles * tile_bytes;
    const uint8_t* w = codes;
    int64_t panel_stride = form.panel_bytes();
    if constexpr (centred<Codes>) {
      w = scratch;
      panel_stride = group_tiles * tile_bytes;
      for (int i = 0; i < Codes::terms; ++i) {
        for (int p = 0; p < P; ++p) {
          decode_group<Codes>(op, codes + p * form.panel_bytes(), blocks, (panel + p) * groups + g,
                              i, scratch + i * term_stride + p * panel_stride);
        }
      }
    }
    for (int64_t row = first; row < last; row += block_rows) {
      alignas(64) int32_t sums[Codes::terms][block_rows * P * panel_rows];
      const int64_t rows = last - row < block_rows ? last - row : block_rows;
      const int8_t* at = x + (row - first) * a.padded_inputs;
      for (int i = 0; i < Codes::terms; ++i) {
        const auto sum =
            rows > tile_rows ? sum_tiles<centred<Codes>, 2, P> : sum_tiles<centred<Codes>, 1, P>;
        sum(at, tile_rows * a.padded_inputs, w + i * term_stride, panel_stride, tiles, sums[i]);
      }
      if (to_y) {
        float* block = y + row * form.outputs;
        const auto put = [&](int64_t r, int p, Floats value) {
          value += bias[p];
          __builtin_memcpy(block + r * form.outputs + p * panel_rows, &value, sizeof value);
        };
        each_value<Codes, P>(op, a, sums[0], row, rows, panel, g, put);
        apply(op.nonlinearity, block, rows, P * panel_rows, form.outputs);
        continue;
      }
      Floats* to = acc + row - first;
      const auto put = [&](int64_t r, int p, Floats value) {
        Floats& sum = to[p * acc_stride + r];
        sum = g == 0 ? value : sum + value;
      };
      each_value<Codes, P>(op, a, sums[0], row, rows, panel, g, put);
      if (g < groups - 1) continue;
      finish<P, block_rows>(op, to, acc_stride, row / op.limbs, rows / op.limbs, panel);
    }
    codes += blocks * form.block_bytes();
    x += tiles * tile_rows * tile_inputs;
  }
}

// Tile state belongs to the thread: it is set up for each task and given up after it.
template <class Codes>
void multiply_tiles(const Linear& op, const Activations& a, int64_t first_row, int64_t last_row,
                    int64_t first_panel, int64_t last_panel) {
  const int64_t first = first_row * op.limbs, last = last_row * op.limbs;
  _tile_loadconfig(&all_full);
  for (int64_t panel = first_panel; panel < last_panel; panel += block_panels) {
    last_panel - panel > 1 ? multiply_panels<Codes, 2>(op, a, first, last, panel)
                           : multiply_panels<Codes, 1>(op, a, first, last, panel);
  }
  _tile_release();
}

template <class Codes>
struct Tiles {
  static constexpr Product product{.rows = block_rows,
                                   .panels = block_panels,
                                   .group_padding = tile_inputs,
                                   .bytes_per_input = 1,
                                   .macs_per_ns = 1000,
                                   .quantize = quantize<RowInTiles, tile_inputs>,
                                   .multiply = multiply_tiles<Codes>};
};

auto loops(const Linear& op) {
  return op.rows * op.limbs <= max_rows ? choose<FewRows> : choose<Tiles>;
}

const Product& by_itself(const Linear& op) { return loops(op)(op); }

}  // namespace

void linear(const Linear* ops, int count) { run(ops, count, loops(*ops)); }

void experts(const Experts& op) { run_experts(op, by_itself); }

}  // namespace lowbit::amx

// Binary codes by lookup: four bits of a plane select one of the sixteen sums of four activations,
// which are made once for all outputs. A lookup in bytes serves as many outputs as a vector has
// bytes, so that 128 products of 32 bytes take two lookups and two additions and no multiplication.
//
// Let t = x0 b0 + x1 b1 + x2 b2 + x3 b3, -512 … 508. Its table is two of bytes without sign,
//
//   low  = t mod 32            0 … 31
//   high = floor(t / 32) + 16  0 … 31
//
// of which the eight of a block sum up in bytes, 8 · 31 < 2^8. After a block, twice that is added
// in 16 bits, 2 low + 64 high, four blocks of which fit, 4 · 8 · 31 · 66 < 2^16. Their sum over a
// group is 2 sum t + 2 · 512 · 8 for each block, and twice the sum of x b less the sum of x is that
// of x times -1 and 1.
//
// A byte of a plane holds an input of all eight steps of a block (packed_layout.h): the inputs
// i, 4 + i, …, 28 + i of one row, i = 0 … 3 the phase. Half a byte is an index. Activations of a
// register block lie as
//
//   tables [rows][blocks][phase][half][low, high][16]    uint8
//
// and the indices of one phase and half of a strip of four parts of panels make up a vector.

#include "linear_decoded.inl"

namespace lowbit::LOWBIT_ISA {
namespace {

// The bytes of four rows in 128 bits ordered by phase.
Words by_phase(Words v) {
  alignas(16) static constexpr int8_t order[16] = {0, 4, 8,  12, 1, 5, 9,  13,
                                                   2, 6, 10, 14, 3, 7, 11, 15};
  return Isa::lookup(v, Isa::broadcast_16(order));
}

template <class Codes_>
struct Lookups {
  using Codes = Codes_;
  static constexpr bool crossed = false, centred = false, apart = false;
  static constexpr int planes = Codes::terms, strip = 4, phases = 4, halves = 2;
  // Registers for two sums of each row and plane, for two tables and for indices.
  static constexpr int panels = strip / parts, rows = planes < 3 ? 4 / planes : 1;
  static constexpr int indices = phases * halves;
  static constexpr int64_t table_bytes = 16, tables_bytes = indices * 2 * table_bytes;
  static constexpr int64_t bytes_per_input = tables_bytes / block_inputs;
  static constexpr int64_t chunk_bytes = 1 << 18;
  using Block = Words[indices][planes];
  static constexpr int64_t block_bytes = sizeof(Block);
  static constexpr int64_t fitting_blocks = 4;
  static constexpr int bias = 2 * 512 * indices;  // of a block

  static void place(const int8_t* piece, int64_t n, int64_t row, int64_t inputs, int64_t k,
                    int8_t* to) {
    using Sums = int16_t __attribute__((vector_size(32)));
    using Table = uint8_t __attribute__((vector_size(16)));
    // Whether index j has bit s.
    static constexpr Sums has[4] = {{0, -1, 0, -1, 0, -1, 0, -1, 0, -1, 0, -1, 0, -1, 0, -1},
                                    {0, 0, -1, -1, 0, 0, -1, -1, 0, 0, -1, -1, 0, 0, -1, -1},
                                    {0, 0, 0, 0, -1, -1, -1, -1, 0, 0, 0, 0, -1, -1, -1, -1},
                                    {0, 0, 0, 0, 0, 0, 0, 0, -1, -1, -1, -1, -1, -1, -1, -1}};
    to += (row * inputs + k) * bytes_per_input;
    for (int64_t i = 0; i < n; i += block_inputs) {
      for (int j = 0; j < indices; ++j, to += 2 * table_bytes) {
        const int8_t* x = piece + i + j / halves + j % halves * block_inputs / halves;
        Sums t{};
        for (int s = 0; s < 4; ++s) t += has[s] & static_cast<int16_t>(x[s * step_inputs]);
        const Table low = __builtin_convertvector(t & 31, Table);
        const Table high = __builtin_convertvector((t >> 5) + 16, Table);
        __builtin_memcpy(to, &low, sizeof low);
        __builtin_memcpy(to + table_bytes, &high, sizeof high);
      }
    }
  }

  template <int steps>
  static void decode(const uint8_t* const (&codes)[panels], int64_t blocks, int64_t stored_bytes,
                     const Words (&)[panels][parts], uint8_t* decoded,
                     Words (&start)[planes][panels][parts]) {
    for (int i = 0; i < planes; ++i) {
      for (int j = 0; j < strip; ++j) {
        start[i][j / parts][j % parts] = Words{} - static_cast<uint32_t>(bias * blocks);
      }
    }
    auto* to = reinterpret_cast<Block*>(decoded);
    for (int64_t b = 0; b < blocks; ++b, ++to) {
      for (int i = 0; i < planes; ++i) {
        Words part[strip];
        for (int j = 0; j < strip; ++j) {
          const uint8_t* at = codes[j / parts] + b * stored_bytes + i * Codes::term_bytes +
                              j % parts * sizeof(Words);
          part[j] = by_phase(load<Words>(at));
        }
        const Words low01 = Isa::template zip_low<32>(part[0], part[1]);
        const Words low23 = Isa::template zip_low<32>(part[2], part[3]);
        const Words high01 = Isa::template zip_high<32>(part[0], part[1]);
        const Words high23 = Isa::template zip_high<32>(part[2], part[3]);
        const Words phase[phases] = {
            Isa::template zip_low<64>(low01, low23), Isa::template zip_high<64>(low01, low23),
            Isa::template zip_low<64>(high01, high23), Isa::template zip_high<64>(high01, high23)};
        for (int j = 0; j < phases; ++j) {
          (*to)[j * halves][i] = phase[j] & 0x0f0f0f0fu;
          (*to)[j * halves + 1][i] = phase[j] >> 4 & 0x0f0f0f0fu;
        }
      }
    }
  }

  template <int R, int steps>
  static void sum(const int8_t* x, int64_t blocks, const uint8_t* decoded,
                  Words (&sums)[planes][panels][R][parts]) {
    const int64_t row_bytes = blocks * tables_bytes;
    auto* codes = reinterpret_cast<const Block*>(decoded);
    for (int64_t b = 0; b < blocks;) {
      const int64_t left = blocks - b, end = b + (left < fitting_blocks ? left : fitting_blocks);
      Words shorts[planes][R][2] = {};
      for (; b < end; ++b, ++codes, x += tables_bytes) {
        Words low[planes][R] = {}, high[planes][R] = {};
#pragma GCC unroll 8
        for (int j = 0; j < indices; ++j) {
#pragma GCC unroll 4
          for (int r = 0; r < R; ++r) {
            const int8_t* tables = x + r * row_bytes + j * 2 * table_bytes;
            const Words low_table = Isa::broadcast_16(tables);
            const Words high_table = Isa::broadcast_16(tables + table_bytes);
#pragma GCC unroll 4
            for (int i = 0; i < planes; ++i) {
              const Words index = (*codes)[j][i];
              low[i][r] = Isa::in_order(Isa::add_bytes(low[i][r], Isa::lookup(low_table, index)));
              high[i][r] =
                  Isa::in_order(Isa::add_bytes(high[i][r], Isa::lookup(high_table, index)));
            }
          }
        }
        const Words weights = Words{} + 0x40024002u;
#pragma GCC unroll 4
        for (int i = 0; i < planes; ++i) {
#pragma GCC unroll 4
          for (int r = 0; r < R; ++r) {
            const Words first = Isa::template zip_low<8>(low[i][r], high[i][r]);
            const Words second = Isa::template zip_high<8>(low[i][r], high[i][r]);
            shorts[i][r][0] = Isa::add_shorts(shorts[i][r][0], Isa::dot_bytes(first, weights));
            shorts[i][r][1] = Isa::add_shorts(shorts[i][r][1], Isa::dot_bytes(second, weights));
          }
        }
      }
#pragma GCC unroll 4
      for (int i = 0; i < planes; ++i) {
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
          for (int j = 0; j < strip; ++j) {
            const Words two = shorts[i][r][j / 2];
            sums[i][j / parts][r][j % parts] += j % 2 ? Isa::template zip_high<16>(two, Words{})
                                                      : Isa::template zip_low<16>(two, Words{});
          }
        }
      }
    }
  }
};

template <class Codes>
struct Tables {
  static constexpr const Product& product = decoded_product<Lookups<Codes>>;
};

// The loops for all rows of a call. With VNNI, one or two rows are multiplied by planes as they are
// stored: to order planes for lookups takes longer.
auto loops(const Linear& op) {
  const int64_t rows = op.rows * op.limbs;
  if (Isa::Dot<1>::any_bits && rows <= 2) return choose<FewRows>;
  return rows <= Isa::few_rows ? choose<FewRows, Tables> : choose<Decoded, Tables>;
}

const Product& by_itself(const Linear& op) { return loops(op)(op); }

}  // namespace

void linear(const Linear* ops, int count) { run(ops, count, loops(*ops)); }

void experts(const Experts& op) { run_experts(op, by_itself); }

}  // namespace lowbit::LOWBIT_ISA

// Tiles of 16 rows x 64 inputs, as 2 x 2 in registers: four tiles are loaded for four products.
// Activations lie tile by tile, cx [rows/16][inputs/64][16][64]; a few rows go through dpbusd.
#define LOWBIT_ISA amx
#include "linear_int8_dpbusd.inl"

namespace lowbit::amx {
namespace {

constexpr int64_t tile_bytes = 1024;
constexpr int64_t few_rows = 4;

// LDTILECFG's operand: all eight tiles are 16 rows of 64 bytes.
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
constexpr TileConfig all_full;

struct Tiles {
  static constexpr int64_t rows = 32, cols = 32, bytes_per_input = 1, macs_per_ns = 1000;

  static void place(const int8_t* piece, int64_t n, int8_t* codes, int64_t padded, int64_t m,
                    int64_t k) {
    int8_t* row = codes + m / 16 * 16 * padded + k / 64 * tile_bytes + m % 16 * 64;
    for (int64_t i = 0; i < n; i += 64) {
      _mm512_store_si512(row + i / 64 * tile_bytes, _mm512_load_si512(piece + i));
    }
  }

  static void sums(const int8_t* codes, int64_t padded, int64_t m, int64_t n, const uint8_t* w,
                   int64_t steps, int64_t panels, int32_t out[][cols]) {
    const int8_t* a = codes + m * padded;
    if (n > 16) {
      panels > 1 ? sums_of<2, 2>(a, padded, w, steps, out) : sums_of<2, 1>(a, padded, w, steps, out);
    } else {
      panels > 1 ? sums_of<1, 2>(a, padded, w, steps, out) : sums_of<1, 1>(a, padded, w, steps, out);
    }
  }

  // Tiles 0 … 3 hold the sums, 4 and 5 activations, 6 and 7 weights.
  template <int R, int P>
  static void sums_of(const int8_t* a, int64_t padded, const uint8_t* w, int64_t steps,
                      int32_t out[][cols]) {
    const int64_t panel_bytes = steps * 64, whole = panel_bytes / tile_bytes * tile_bytes;
    _tile_zero(0);
    if constexpr (P > 1) _tile_zero(1);
    if constexpr (R > 1) _tile_zero(2);
    if constexpr (R > 1 && P > 1) _tile_zero(3);
    for (int64_t at = 0; at < whole; at += tile_bytes) {
      add_products<R, P>(a + at, padded, w + at, w + panel_bytes + at);
    }
    if (whole < panel_bytes) {
      alignas(64) uint8_t last[P][tile_bytes] = {};
      for (int p = 0; p < P; ++p) {
        __builtin_memcpy(last[p], w + p * panel_bytes + whole, panel_bytes - whole);
      }
      add_products<R, P>(a + whole, padded, last[0], last[P - 1]);
    }
    constexpr int64_t stride = cols * sizeof(int32_t);
    _tile_stored(0, out[0], stride);
    if constexpr (P > 1) _tile_stored(1, out[0] + 16, stride);
    if constexpr (R > 1) _tile_stored(2, out[16], stride);
    if constexpr (R > 1 && P > 1) _tile_stored(3, out[16] + 16, stride);
  }

  template <int R, int P>
  static void add_products(const int8_t* a, int64_t padded, const uint8_t* w0, const uint8_t* w1) {
    _tile_loadd(6, w0, 64);
    _tile_loadd(4, a, 64);
    _tile_dpbsud(0, 4, 6);
    if constexpr (P > 1) {
      _tile_loadd(7, w1, 64);
      _tile_dpbsud(1, 4, 7);
    }
    if constexpr (R > 1) {
      _tile_loadd(5, a + 16 * padded, 64);
      _tile_dpbsud(2, 5, 6);
      if constexpr (P > 1) _tile_dpbsud(3, 5, 7);
    }
  }
};

// Tile state belongs to the thread: it is set up for each task and given up after it.
void multiply_tiles(const LinearInt8& op, const Activations& a, int64_t first, int64_t last,
                    int64_t first_col) {
  _tile_loadconfig(&all_full);
  multiply<Tiles>(op, a, first, last, first_col);
  _tile_release();
}

constexpr Product tiles{Tiles::rows,        Tiles::cols,     Tiles::bytes_per_input,
                        Tiles::macs_per_ns, quantize<Tiles>, multiply_tiles};

}  // namespace

void linear_int8(const LinearInt8& op) { run(op, op.rows <= few_rows ? product<Dpbusd> : tiles); }

}  // namespace lowbit::amx

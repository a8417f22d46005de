// The loops of linear_int8.h around a register block. The including file names its instruction set
// in LOWBIT_ISA, is compiled for it, and has one or more blocks:
//
//   struct Block {
//     static constexpr int64_t rows, cols, bytes_per_input, macs_per_ns;   // as in Product
//     // Puts the codes of row m, inputs k … k + n, where `sums` wants them; k and n are multiples
//     // of 64, and `padded` is the padded number of inputs.
//     static void place(const int8_t* piece, int64_t n, int8_t* codes, int64_t padded, int64_t m,
//                       int64_t k);
//     // out[r][c] = sum_k cx q for n <= rows rows from row m, and `panels` <= cols / 16 panels
//     // from w on. Rows below `rows` and columns of absent panels may be left as they are.
//     static void sums(const int8_t* codes, int64_t padded, int64_t m, int64_t n, const uint8_t* w,
//                      int64_t steps, int64_t panels, int32_t out[][cols]);
//   };
//
// Nothing from the standard library is called here (see quantize_rows.inl).

#include "linear_int8_schedule.h"
#include "quantize_group.inl"

namespace lowbit::LOWBIT_ISA {
namespace {

template <class Block>
void quantize(const LinearInt8& op, const Activations& a, int64_t first, int64_t last) {
  constexpr int64_t piece_size = 1024;
  alignas(64) int8_t piece[piece_size];
  const int64_t padded = padded_inputs(op.inputs);
  for (int64_t m = first; m < last; ++m) {
    const float* x = op.x + m * op.inputs;
    const GroupScale s = group_scale(x, op.inputs);
    int32_t sum = 0;
    for (int64_t k = 0; k < padded; k += piece_size) {
      const int64_t n = padded - k < piece_size ? padded - k : piece_size;
      const int64_t real = op.inputs - k < n ? op.inputs - k : n;
      encode(x + k, piece, real, s.inv);
      for (int64_t i = real; i < n; ++i) piece[i] = 0;
      for (int64_t i = 0; i < n; ++i) sum += piece[i];
      Block::place(piece, n, a.codes, padded, m, k);
    }
    a.scales[m] = s.scale;
    a.sums[m] = sum;
  }
}

// Scales are normal numbers, so that float16 widens by its exponent alone.
float widened(uint16_t half) {
  return float_of((half & 0x8000) << 16 | (half & 0x7fff) << 13) * 0x1p112f;
}

// The parameters of a block of columns.
template <int64_t cols>
struct Columns {
  alignas(64) float scale[cols];
  alignas(64) float bias[cols];
  alignas(64) uint32_t zero_point[cols];

  Columns(const LinearInt8& op, int64_t first, int64_t n) {
    for (int64_t c = 0; c < n; ++c) {
      const int64_t at = op.one_scale ? 0 : first + c;
      scale[c] = op.half_scale ? widened(static_cast<const uint16_t*>(op.scale)[at])
                               : static_cast<const float*>(op.scale)[at];
      bias[c] = op.bias ? op.bias[first + c] : 0.0f;
      zero_point[c] = op.zero_point ? op.zero_point[at] : 128;
    }
  }

  // Adding a bias of zero also makes -0 the 0 that a sum from zero would have been.
  void finish(const int32_t* __restrict sums, int32_t row_sum, float row_scale,
              float* __restrict y, int64_t n) const {
    const uint32_t activations = row_sum;
    for (int64_t c = 0; c < n; ++c) {
      const auto sum = static_cast<int32_t>(sums[c] - zero_point[c] * activations);
      y[c] = static_cast<float>(sum) * (row_scale * scale[c]) + bias[c];
    }
  }
};

template <class Block>
void multiply(const LinearInt8& op, const Activations& a, int64_t first, int64_t last,
              int64_t first_col) {
  constexpr int64_t cols = Block::cols;
  const int64_t left = op.outputs - first_col, width = left < cols ? left : cols;
  const Columns<cols> columns(op, first_col, width);
  const int64_t padded = padded_inputs(op.inputs), steps = (op.inputs + 3) / 4;
  const uint8_t* w = op.codes + first_col * steps * 4;
  for (int64_t m = first; m < last; m += Block::rows) {
    alignas(64) int32_t sums[Block::rows][cols];
    const int64_t n = last - m < Block::rows ? last - m : Block::rows;
    Block::sums(a.codes, padded, m, n, w, steps, (width + 15) / 16, sums);
    for (int64_t r = 0; r < n; ++r) {
      float* y = op.y + (m + r) * op.outputs + first_col;
      // The usual width is a constant, for which the compiler needs no loop.
      if (width == cols) {
        columns.finish(sums[r], a.sums[m + r], a.scales[m + r], y, cols);
      } else {
        columns.finish(sums[r], a.sums[m + r], a.scales[m + r], y, width);
      }
    }
  }
}

template <class Block>
constexpr Product product{Block::rows,        Block::cols,     Block::bytes_per_input,
                          Block::macs_per_ns, quantize<Block>, multiply<Block>};

}  // namespace
}  // namespace lowbit::LOWBIT_ISA

// What all targets of linear.h share: the scratch for quantized activations and the order of work.
//
// Rows are processed in chunks whose codes stay in the L2 cache while all weights are read. The
// work on a chunk is a list of tasks: first "quantize these rows", each taken by the next free
// thread; then, after all of these, "multiply the chunk by these panels of this layer". A thread
// waits only for tasks that are already running, so it cannot deadlock. Each thread starts with the
// panels of its own share of the weights, in order, and then takes free panels of other shares: a
// slow thread gets fewer of them.
//
// The loops, the outermost first. A few rows (linear.inl):
//
//   chunk     rows of codes                       linear_schedule.cpp
//    task     panels of one layer, by one thread  linear_schedule.cpp
//     panels  P at once                           multiply
//      rows   R at once: a register block         multiply_blocks
//       group     inputs of one scale             sum_panels
//        block    32 inputs                       sum_panels
//         step    4 inputs                        sum_panels, unrolled
//          dot    P R times 16 outputs            Isa::Dot
//
//   registers  of R rows and P panels the sums, and the codes of one step, decoded once for all R
//   L1, L2     the codes of P panels, as they are stored, for all rows of the chunk
//   L2         the activations of the chunk, for all panels
//   memory     all weights, once for each chunk
//
// Many rows (linear_decoded.inl), and binary codes by lookup (linear_tables.inl), below a task:
//
//     panels  P at once                           multiply_decoded
//      group  inputs of one scale, decoded        multiply_decoded_panels
//       rows  R at once: a register block         DecodedGroup::add_rows
//        block    32 inputs                       Kernel::sum
//         step    4 inputs                        Kernel::sum, unrolled
//
//   registers  of R rows and P panels the sums over one group
//   L1         the codes of one group of P panels, decoded once for all rows of the chunk
//   L2         the activations of the chunk, and of all its rows and P panels the sums so far
//
// On tiles (linear_amx.cpp) a register block is 32 rows of 2 panels, a step 64 inputs, and codes of
// fewer than 8 bits are decoded group by group, once for all rows of the chunk.
//
// What gcc 12 makes of a block, in instructions per 32 products (those of 3 planes for each plane;
// 8 bits on avx2 with many rows: 4 x 1):
//
//                         R x P   8 bits   4 bits        R x P   3 planes
//   avx2, a few rows      4 x 1      6.3      3.5        1 x 2        1.4
//   avx2, many            3 x 1      5.6      3.1        1 x 2        1.4
//   avxvnni, a few        4 x 1      2.0      2.3        1 x 2        1.4
//   avxvnni, many         6 x 1      1.7      1.7        1 x 2        1.4
//   avx512, a few         8 x 3      2.8      1.4        1 x 4       0.70
//   avx512, many          4 x 2      2.8      1.5        1 x 4       0.70
//   avx512vnni, a few     8 x 3     0.81     0.83        8 x 1       0.83
//   avx512vnni, many      8 x 3     0.81     0.79        8 x 3       0.79
//   avx512vnni            1 x 1      1.8      1.6        1 x 1        1.6
//   amx                  32 x 2    0.007    0.007
#pragma once

#include "linear.h"

namespace lowbit {

// Activations in the arrangement of a target. Row r = m limbs + d is limb d of row m of op.x. Each
// group of inputs is padded with zeros to a multiple that the target chooses.
struct Activations {
  int8_t* codes;
  float* scales;        // of each row and group, and so are the sums
  int32_t* sums;        // of the codes
  int32_t* cross_sums;  // of the products of each two codes, if a target wants them
  int64_t padded_inputs;
  int64_t rows, chunk_rows;  // all, whole register blocks; those that are multiplied together

  // Of the chunk that begins with row `first`.
  LOWBIT_INLINE int64_t rows_of_chunk(int64_t first) const {
    const int64_t left = rows - first;
    return left < chunk_rows ? left : chunk_rows;
  }
};

// Those of a group in the arrangement of a target, with the zeros behind them.
struct GroupInputs {
  int64_t first, count;
};

// The loops of a target. Rows and panels are those of the chunk and the task, `first` … `last` - 1.
struct Product {
  int64_t rows;                   // of codes, in a register block; chunks start at multiples of it
  int64_t panels;                 // in a register block; tasks are multiples of it
  int64_t group_padding;          // inputs of a group are padded to a multiple of this
  int64_t bytes_per_input;        // of an activation in the target's arrangement
  int64_t macs_per_ns;            // roughly, on one core: decides when a second thread pays
  int64_t chunk_bytes = 1 << 18;  // of the activations of a chunk: a share of the L2 cache
  void (*quantize)(const Linear& op, const Activations& a, int64_t first_row, int64_t last_row);
  void (*multiply)(const Linear& op, const Activations& a, int64_t first_row, int64_t last_row,
                   int64_t first_panel, int64_t last_panel);
};

// Rounded up.
LOWBIT_INLINE constexpr int64_t divided(int64_t a, int64_t b) { return (a + b - 1) / b; }

LOWBIT_INLINE constexpr int64_t padded(int64_t n, int64_t multiple) {
  return divided(n, multiple) * multiple;
}

// The size of a row of activations, including the padding of each group.
LOWBIT_INLINE int64_t padded_inputs(const PackedLayout& form, const Product& product) {
  const int64_t last = form.groups() - 1;
  return last * padded(form.group, product.group_padding) +
         padded(form.group_inputs(last), product.group_padding);
}

// Computes all `count` layers of `ops`, each with the product that `choose` returns for it.
void run(const Linear* ops, int count, const Product& (*choose)(const Linear&));

}  // namespace lowbit

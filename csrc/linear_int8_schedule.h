// What all paths of linear_int8 share: the scratch for quantized activations and the order of work.
//
// Rows are taken in chunks whose codes stay in the L2 cache while all weights pass by. The work is
// a list of tasks, handed out in order to whichever thread asks next: for each chunk first
// "quantize these rows", then "multiply the chunk with this block of columns", which waits until
// the chunk is quantized. What it waits for was handed out earlier, to a thread that is at it, so
// no thread waits for one that has not come; a slow thread just gets fewer tasks.
#pragma once

#include "linear_int8.h"

namespace lowbit {

// Quantized activations, as a path arranges them.
struct Activations {
  int8_t* codes;
  float* scales;  // sx
  int32_t* sums;  // sum_k cx
};

// A path's loops. `rows` counts from op.x, of which `a` holds the first.
struct Product {
  int64_t rows, cols;       // of a register block; chunks of rows start at multiples of `rows`
  int64_t bytes_per_input;  // of an activation in the path's arrangement
  int64_t macs_per_ns;      // roughly, on one core: decides when a second thread pays
  void (*quantize)(const LinearInt8& op, const Activations& a, int64_t first, int64_t last);
  void (*multiply)(const LinearInt8& op, const Activations& a, int64_t first, int64_t last,
                   int64_t first_col);
};

// Inputs are padded to whole steps of every path, and so are rows to whole blocks.
constexpr int64_t padded_inputs(int64_t inputs) { return (inputs + 63) / 64 * 64; }

void run(const LinearInt8& op, const Product& product);

}  // namespace lowbit

// The loop behind quantize_rows.h. The including file names its instruction set in LOWBIT_ISA and
// is compiled for it.
//
// Nothing from the standard library is called here: an inline function compiled for AVX-512 in this
// file could be the copy that the linker keeps for every other one.

#include "parallel.h"
#include "quantize_group.inl"
#include "quantize_rows.h"

namespace lowbit::LOWBIT_ISA {

void quantize_rows(const QuantizeRows& op) {
  const int64_t groups = (op.cols + op.group_size - 1) / op.group_size;
  // Fewer values than this are quantized sooner than a second thread is woken.
  const int64_t values_per_thread = 32768;
  const int64_t grain = op.cols < values_per_thread ? values_per_thread / (op.cols + 1) + 1 : 1;
  parallel_for(0, op.rows, grain, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) {
      for (int64_t group = 0; group < groups; ++group) {
        const int64_t start = group * op.group_size;
        const int64_t left = op.cols - start;
        const int64_t n = left < op.group_size ? left : op.group_size;
        const int64_t at = row * op.cols + start;
        const GroupScale s = group_scale(op.x + at, n);
        encode(op.x + at, op.codes + at, n, s.inv);
        op.scales[row * groups + group] = s.scale;
      }
    }
  });
}

}  // namespace lowbit::LOWBIT_ISA

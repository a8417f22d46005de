#define LOWBIT_ISA scalar
#include "linear_int8.inl"

namespace lowbit::scalar {
namespace {

struct Block {
  static constexpr int64_t rows = 4, cols = 16, bytes_per_input = 1, macs_per_ns = 4;

  static void place(const int8_t* piece, int64_t n, int8_t* codes, int64_t padded, int64_t m,
                    int64_t k) {
    __builtin_memcpy(codes + m * padded + k, piece, n);
  }

  static void sums(const int8_t* codes, int64_t padded, int64_t m, int64_t n, const uint8_t* w,
                   int64_t steps, int64_t, int32_t out[][cols]) {
    for (int64_t r = 0; r < n; ++r) {
      const int8_t* a = codes + (m + r) * padded;
      uint32_t sum[cols] = {};
      for (int64_t step = 0; step < steps; ++step) {
        const uint8_t* q = w + step * 64;
        const int32_t x0 = a[4 * step], x1 = a[4 * step + 1];
        const int32_t x2 = a[4 * step + 2], x3 = a[4 * step + 3];
        for (int64_t c = 0; c < cols; ++c) {
          sum[c] += x0 * q[4 * c] + x1 * q[4 * c + 1] + x2 * q[4 * c + 2] + x3 * q[4 * c + 3];
        }
      }
      for (int64_t c = 0; c < cols; ++c) out[r][c] = static_cast<int32_t>(sum[c]);
    }
  }
};

}  // namespace

void linear_int8(const LinearInt8& op) { run(op, product<Block>); }

}  // namespace lowbit::scalar

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
      for (int64_t c = 0; c < cols; ++c) {
        uint32_t sum = 0;
        for (int64_t k = 0; k < 4 * steps; ++k) sum += a[k] * w[k / 4 * 64 + c * 4 + k % 4];
        out[r][c] = static_cast<int32_t>(sum);
      }
    }
  }
};

}  // namespace

void linear_int8(const LinearInt8& op) { run(op, product<Block>); }

}  // namespace lowbit::scalar

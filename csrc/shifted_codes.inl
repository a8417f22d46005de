// Codes of activations as the unsigned factors of products: 128 is added. The signed factors are
// codes of weights less their zero points, and what 128 adds to a sum is the same for all rows.

#include <cstdint>

namespace lowbit::LOWBIT_ISA {
namespace {

LOWBIT_INLINE void place_shifted(const int8_t* codes, int64_t n, int8_t* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = static_cast<int8_t>(codes[i] ^ -128);
}

}  // namespace
}  // namespace lowbit::LOWBIT_ISA

// Adds 128 to the codes of activations, which makes them the unsigned factors of products. The
// signed factors are codes of weights minus zero points. The 128 adds the same amount to the sums
// of all rows.

#include <cstdint>

namespace lowbit::LOWBIT_ISA {
namespace {

LOWBIT_INLINE void place_shifted(const int8_t* codes, int64_t n, int8_t* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = static_cast<int8_t>(codes[i] ^ -128);
}

}  // namespace
}  // namespace lowbit::LOWBIT_ISA

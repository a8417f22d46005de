// bfloat16 as its bits, the upper half of a float32's, for the files that are compiled once per
// instruction set; the compiler vectorizes both loops.

#include <cstdint>

namespace lowbit::LOWBIT_ISA {
namespace {

// Exact.
[[maybe_unused]] void widen(const uint16_t* from, int64_t n, float* to) {
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t bits = static_cast<uint32_t>(from[i]) << 16;
    __builtin_memcpy(to + i, &bits, sizeof bits);
  }
}

// To the nearest, ties to even; a NaN stays one.
[[maybe_unused]] void narrow(const float* from, int64_t n, uint16_t* to) {
  for (int64_t i = 0; i < n; ++i) {
    uint32_t bits;
    __builtin_memcpy(&bits, from + i, sizeof bits);
    const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    to[i] = static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
  }
}

}  // namespace
}  // namespace lowbit::LOWBIT_ISA

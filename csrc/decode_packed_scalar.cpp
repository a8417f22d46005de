#define LOWBIT_ISA scalar
#include "half.h"

namespace lowbit::scalar {
namespace {

struct Isa {
  using Floats = float __attribute__((vector_size(16)));

  static Floats floats(const uint8_t* codes) {
    Floats v;
    for (int i = 0; i < 4; ++i) v[i] = codes[i];
    return v;
  }

  static float widen(uint16_t half) { return float_of_half(half); }

  struct Levels {
    float all[16];

    explicit Levels(const float (&levels)[16]) { __builtin_memcpy(all, levels, sizeof all); }

    Floats of(const uint8_t* codes) const {
      return Floats{all[codes[0]], all[codes[1]], all[codes[2]], all[codes[3]]};
    }
  };
};

}  // namespace
}  // namespace lowbit::scalar

#include "decode_packed.inl"

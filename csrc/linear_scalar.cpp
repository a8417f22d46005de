// Any processor: vectors of gcc, which the compiler cuts into whatever there is.
#define LOWBIT_ISA scalar
#include "half.h"
#include "linear.h"

namespace lowbit::scalar {
namespace {

struct Isa {
  using Words = uint32_t __attribute__((vector_size(16)));
  using Ints = int32_t __attribute__((vector_size(16)));
  using Floats = float __attribute__((vector_size(16)));
  static constexpr int registers = 16, unroll = 1;
  static constexpr int64_t macs_per_ns = 4;

  struct FourProducts {
    using Codes = Words;
    static constexpr int64_t bytes_per_input = 1;

    static void place(const int8_t* piece, int64_t n, int8_t* row, int64_t k) {
      __builtin_memcpy(row + k, piece, n);
    }

    static Codes prepare(Words codes) { return codes; }

    template <int times>
    static const int8_t* four(const int8_t* at) {
      return at;
    }

    static void add(int, Codes codes, const int8_t* four, Words&, Ints& sum) {
      for (int i = 0; i < 4; ++i) {
        sum += reinterpret_cast<Ints>(codes >> 8 * i & 0xffu) * static_cast<int32_t>(four[i]);
      }
    }
  };

  template <int bits>
  using Dot = FourProducts;

  [[gnu::noinline]] static Floats widen(const uint16_t* half) {
    Floats v;
    for (int i = 0; i < 4; ++i) v[i] = float_of_half(half[i]);
    return v;
  }

  static Floats fma(Floats a, Floats b, Floats c) {
    for (int i = 0; i < 4; ++i) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return c;
  }
};

}  // namespace
}  // namespace lowbit::scalar

#include "linear.inl"

namespace lowbit::scalar {

void linear(const Linear* ops, int count) { run(ops, count, choose<FewRows>); }

void experts(const Experts& op) { run_experts(op, choose<FewRows>); }

}  // namespace lowbit::scalar

#define LOWBIT_ISA scalar
#include "isa_scalar.inl"
#include "linear.h"

namespace lowbit::scalar {
namespace {

struct Isa : Vectors128 {
  static constexpr int64_t macs_per_ns = 4;

  struct FourProducts {
    using Codes = Words;
    static constexpr int64_t bytes_per_input = 1;
    static constexpr bool any_bits = false;

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
};

}  // namespace
}  // namespace lowbit::scalar

#include "linear.inl"

namespace lowbit::scalar {

void linear(const Linear* ops, int count) { run(ops, count, choose<FewRows>); }

void experts(const Experts& op) { run_experts(op, choose<FewRows>); }

}  // namespace lowbit::scalar

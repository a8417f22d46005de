#define LOWBIT_ISA avx512
#include "dot_pairs.inl"
#include "isa_512.inl"
#include "linear.h"

namespace lowbit::avx512 {
namespace {

struct Isa : Vectors512 {
  static constexpr int64_t macs_per_ns = 200;

  template <int bits>
  using Dot = PairsOf<Vectors512, bits>::Dot;
  template <int bits>
  using DecodedDot = PairsOf<Vectors512, bits>::DecodedDot;
};

}  // namespace
}  // namespace lowbit::avx512

#include "linear_tables.inl"

namespace lowbit::avx512 {

void linear(const Linear* ops, int count) {
  constexpr int64_t few = 16;  // rows, measured: with more it pays to decode first
  run(ops, count,
      ops->rows * ops->digits <= few ? choose<FewRows, Tables> : choose<Decoded, Tables>);
}

}  // namespace lowbit::avx512

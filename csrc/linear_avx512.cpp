#define LOWBIT_ISA avx512
#include "dot_pairs.inl"
#include "isa_512.inl"
#include "linear.h"

namespace lowbit::avx512 {
namespace {

struct Isa : Vectors512 {
  static constexpr int64_t macs_per_ns = 200;

  template <int bits>
  using Dot = typename PairsOf<Vectors512, bits>::Dot;
  template <int bits>
  using DecodedDot = typename PairsOf<Vectors512, bits>::DecodedDot;
};

}  // namespace
}  // namespace lowbit::avx512

#include "linear_tables.inl"

namespace lowbit::avx512 {
namespace {

// For all rows of a call.
auto loops(const Linear& op) {
  constexpr int64_t few = 16;  // measured: with more it pays to decode first
  return op.rows * op.digits <= few ? choose<FewRows, Tables> : choose<Decoded, Tables>;
}

const Product& by_itself(const Linear& op) { return loops(op)(op); }

}  // namespace

void linear(const Linear* ops, int count) { run(ops, count, loops(*ops)); }

void experts(const Experts& op) { run_experts(op, by_itself); }

}  // namespace lowbit::avx512

#define LOWBIT_ISA avx2
#include "dot_pairs.inl"
#include "isa_256.inl"
#include "linear.h"

namespace lowbit::avx2 {
namespace {

struct Isa : Vectors256 {
  static constexpr int64_t macs_per_ns = 100;

  template <int bits>
  using Dot = typename PairsOf<Vectors256, bits>::Dot;
  template <int bits>
  using DecodedDot = typename PairsOf<Vectors256, bits>::DecodedDot;
};

}  // namespace
}  // namespace lowbit::avx2

#include "linear_tables.inl"

namespace lowbit::avx2 {
namespace {

// For all rows of a call.
auto loops(const Linear& op) {
  constexpr int64_t few = 8;  // measured: with more it pays to decode first
  return op.rows * op.digits <= few ? choose<FewRows, Tables> : choose<Decoded, Tables>;
}

const Product& by_itself(const Linear& op) { return loops(op)(op); }

}  // namespace

void linear(const Linear* ops, int count) { run(ops, count, loops(*ops)); }

void experts(const Experts& op) { run_experts(op, by_itself); }

}  // namespace lowbit::avx2

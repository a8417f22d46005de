#define LOWBIT_ISA avx512vnni
#include <type_traits>

#include "isa_avx512vnni.inl"
#include "linear_decoded.inl"

namespace lowbit::avx512vnni {
namespace {

constexpr int64_t few_rows = max_rows;  // measured: with more it pays to decode first

// Codes of 8 bits are multiplied as they are stored.
template <class Codes>
using ManyRows = std::conditional_t<Codes::bits == 8, FewRows<Codes>, Decoded<Codes>>;

auto loops(const Linear& op) {
  return op.rows * op.limbs <= few_rows ? choose<FewRows> : choose<ManyRows>;
}

const Product& by_itself(const Linear& op) { return loops(op)(op); }

}  // namespace

void linear(const Linear* ops, int count) { run(ops, count, loops(*ops)); }

void experts(const Experts& op) { run_experts(op, by_itself); }

}  // namespace lowbit::avx512vnni

#define LOWBIT_ISA avx512vnni
#include "isa_avx512vnni.inl"
#include "linear.inl"

namespace lowbit::avx512vnni {

void linear(const Linear* ops, int count) { run(ops, count, choose<FewRows>); }

void experts(const Experts& op) { run_experts(op, choose<FewRows>); }

}  // namespace lowbit::avx512vnni

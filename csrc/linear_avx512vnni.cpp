#define LOWBIT_ISA avx512vnni
#include "isa_avx512vnni.inl"
#include "linear.inl"

namespace lowbit::avx512vnni {

void linear(const Linear& op) { run(op, few_rows(op)); }

}  // namespace lowbit::avx512vnni

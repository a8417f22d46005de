#define LOWBIT_ISA avx512vnni
#include "linear_int8_dpbusd.inl"

namespace lowbit::avx512vnni {

void linear_int8(const LinearInt8& op) { run(op, product<Dpbusd>); }

}  // namespace lowbit::avx512vnni

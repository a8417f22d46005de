#define LOWBIT_ISA avx512
#include "isa_512.inl"
#include "linear.h"

namespace lowbit::avx512 {
namespace {

struct Isa : Vectors512 {
  static constexpr bool combines_three = true;
  static constexpr int64_t macs_per_ns = 80;

  static Floats broadcast(const float* x) { return _mm512_set1_ps(*x); }
};

}  // namespace
}  // namespace lowbit::avx512

#include "linear_float.inl"

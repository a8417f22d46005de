#define LOWBIT_ISA avx2
#include "isa_256.inl"
#include "linear.h"

namespace lowbit::avx2 {
namespace {

struct Isa : Vectors256 {
  static constexpr bool combines_three = false;
  static constexpr int64_t macs_per_ns = 40;

  static Floats broadcast(const float* x) { return _mm256_broadcast_ss(x); }
};

}  // namespace
}  // namespace lowbit::avx2

#include "linear_float.inl"

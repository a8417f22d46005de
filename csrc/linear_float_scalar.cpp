#define LOWBIT_ISA scalar
#include "isa_scalar.inl"
#include "linear.h"

namespace lowbit::scalar {
namespace {

struct Isa : Vectors128 {
  static constexpr bool combines_three = false;
  static constexpr int64_t macs_per_ns = 1;

  static Floats broadcast(const float* x) { return Floats{*x, *x, *x, *x}; }
};

}  // namespace
}  // namespace lowbit::scalar

#include "linear_float.inl"

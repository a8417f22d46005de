// The C++ tests: each op over random shapes on every path that this processor has. Inputs and
// outputs are exact heap allocations, so that AddressSanitizer sees a single element too far.

#include <cstdio>

#include "cpu.h"
#include "tests/check.h"

int main() {
  std::printf("features:");
  for (const auto& feature : lowbit::cpu_features()) std::printf(" %s", feature.c_str());
  std::printf("\n");
  test_quantize_rows();
  test_packed_layout();
  test_linear();
  test_experts();
  test_attention();
  test_elementwise();
  return 0;
}

// The C++ tests: each op over random shapes on every target that this processor has. Inputs and
// outputs are exact heap allocations, so that AddressSanitizer sees a single element too far.
//
//     lowbit_csrc_tests [THREADS]     all of them in so many threads at once, each of which
//                                     spreads its loops over so many, for ThreadSanitizer

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "cpu.h"
#include "tests/check.h"
#include "tests/torch_threads.h"

namespace {

void test_all() {
  test_quantize_rows();
  test_packed_layout();
  test_linear();
  test_experts();
  test_attention();
  test_elementwise();
  test_torch_layer_norm();
  test_program();
}

}  // namespace

int main(int count, char** arguments) {
  std::printf("features:");
  for (const auto& feature : lowbit::cpu_features()) std::printf(" %s", feature.c_str());
  std::printf("\n");
  const int threads = count > 1 ? std::max(1, std::atoi(arguments[1])) : 1;
  set_torch_threads(threads);
  std::vector<std::thread> others(threads - 1);
  for (std::thread& other : others) other = std::thread(test_all);
  test_all();
  for (std::thread& other : others) other.join();
  return 0;
}

// Prints the instruction sets that this processor has, by semicolons, as CMake writes a list.

#include <cstdio>

#include "cpu.h"

int main() {
  const char* before = "";
  for (const auto& feature : lowbit::cpu_features()) {
    std::printf("%s%s", before, feature.c_str());
    before = ";";
  }
  return 0;
}

// A kernel is compiled once per instruction set. A table lists these targets by name, each faster
// than those before it. LOWBIT_HAS_… are the instruction sets that the compiler supports
// (CMakeLists.txt).
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>

#include "cpu.h"

// For functions in headers that code of several instruction sets calls. If such a function is not
// inlined, the linker keeps one copy for all, perhaps one that this processor cannot run
// (scripts/check-symbols).
#define LOWBIT_INLINE [[gnu::always_inline]] inline

namespace lowbit {

template <class Fn>
struct Target {
  std::string_view name;     // "scalar", "avx2", …
  std::string_view feature;  // what the processor must have (cpu.h)
  Fn* run;
};

// The target called `name`; std::invalid_argument if there is none or the processor cannot run it.
template <class Target, size_t N>
auto find_target(const Target (&targets)[N], std::string_view name) {
  for (const Target& target : targets) {
    if (target.name != name) continue;
    if (has_feature(target.feature)) return target.run;
    throw std::invalid_argument("target " + std::string(name) + " needs " +
                                std::string(target.feature) + ", which this processor lacks");
  }
  std::string known;
  for (const Target& target : targets) known.append(known.empty() ? "" : ", ").append(target.name);
  throw std::invalid_argument("no target " + std::string(name) + "; there are " + known);
}

}  // namespace lowbit

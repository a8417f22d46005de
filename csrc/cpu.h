// What this processor and operating system can run.
//
// A feature means all of the instruction sets that its kernels are compiled with
// (LOWBIT_FLAGS_* in CMakeLists.txt), so each includes the ones before it:
//
//   scalar      nothing beyond what every processor of its kind has
//   avx2        AVX2, FMA, F16C
//   avxvnni     avx2 and AVX-VNNI
//   avx512      avx2 and AVX-512 F, BW, VL, DQ
//   avx512vnni  avx512 and AVX-512 VNNI
//   amx         avx512vnni and AVX-512 BF16, AMX-TILE, AMX-INT8, AMX-BF16, with the kernel's leave
//               to use tiles
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace lowbit {

// Names from the list above; only the first on processors other than x86-64. Found once, then kept.
const std::vector<std::string>& cpu_features();

bool has_feature(std::string_view name);

}  // namespace lowbit

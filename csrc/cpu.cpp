#include "cpu.h"

#include <algorithm>

#ifdef LOWBIT_X86
#include <cpuid.h>
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace lowbit {
namespace {

#ifdef LOWBIT_X86

struct Registers {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Registers cpuid(unsigned leaf, unsigned subleaf) {
  Registers r;
  __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx);
  return r;
}

constexpr bool bits(unsigned reg, std::initializer_list<int> wanted) {
  for (int bit : wanted) {
    if (!(reg >> bit & 1u)) return false;
  }
  return true;
}

// XCR0: the register states that the operating system saves on a context switch.
unsigned saved_states() {
  unsigned low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

// Linux hands out the 8 KiB of tile data only to processes that ask.
bool tiles_granted() {
#ifdef __linux__
  constexpr long arch_req_xcomp_perm = 0x1023;
  constexpr long xfeature_tile_data = 18;
  return syscall(SYS_arch_prctl, arch_req_xcomp_perm, xfeature_tile_data) == 0;
#else
  return false;
#endif
}

std::vector<std::string> detect() {
  std::vector<std::string> found{"scalar"};
  const Registers l1 = cpuid(1, 0), l7 = cpuid(7, 0), l71 = cpuid(7, 1);

  constexpr int fma = 12, osxsave = 27, avx = 28, f16c = 29;  // leaf 1, ecx
  if (!bits(l1.ecx, {osxsave})) return found;
  const unsigned saved = saved_states();
  const bool ymm_saved = bits(saved, {1, 2});
  const bool zmm_saved = bits(saved, {5, 6, 7});
  const bool tiles_saved = bits(saved, {17, 18});

  constexpr int avx2 = 5;  // leaf 7, ebx
  if (!(ymm_saved && bits(l1.ecx, {fma, avx, f16c}) && bits(l7.ebx, {avx2}))) return found;
  found.push_back("avx2");

  constexpr int avx_vnni = 4;  // leaf 7.1, eax
  if (bits(l71.eax, {avx_vnni})) found.push_back("avxvnni");

  constexpr int f = 16, dq = 17, bw = 30, vl = 31;  // leaf 7, ebx
  if (!(zmm_saved && bits(l7.ebx, {f, dq, bw, vl}))) return found;
  found.push_back("avx512");

  constexpr int avx512_vnni = 11;  // leaf 7, ecx
  if (!bits(l7.ecx, {avx512_vnni})) return found;
  found.push_back("avx512vnni");

  constexpr int avx512_bf16 = 5;                              // leaf 7.1, eax
  constexpr int amx_bf16 = 22, amx_tile = 24, amx_int8 = 25;  // leaf 7, edx
  if (tiles_saved && bits(l71.eax, {avx512_bf16}) && bits(l7.edx, {amx_bf16, amx_tile, amx_int8}) &&
      tiles_granted()) {
    found.push_back("amx");
  }
  return found;
}

#else

std::vector<std::string> detect() { return {"scalar"}; }

#endif

}  // namespace

const std::vector<std::string>& cpu_features() {
  static const std::vector<std::string> features = detect();
  return features;
}

bool has_feature(std::string_view name) {
  const auto& all = cpu_features();
  return std::find(all.begin(), all.end(), name) != all.end();
}

}  // namespace lowbit

#define LOWBIT_ISA avxvnni
#include "isa_256.inl"
#include "linear.h"

namespace lowbit::avxvnni {
namespace {

struct Isa : Vectors256 {
  static constexpr int64_t bytes_per_input = 1, macs_per_ns = 100;

  static void place(const int8_t* piece, int64_t n, int8_t* row, int64_t k) {
    __builtin_memcpy(row + k, piece, n);
  }

  // dpbusd adds four exact products to 32 bits and does not saturate.
  static Ints dot(Ints acc, Words codes, const int8_t* four) {
    int32_t x;
    __builtin_memcpy(&x, four, sizeof x);
    return reinterpret_cast<Ints>(_mm256_dpbusd_avx_epi32(
        reinterpret_cast<__m256i>(acc), reinterpret_cast<__m256i>(codes), _mm256_set1_epi32(x)));
  }
};

}  // namespace
}  // namespace lowbit::avxvnni

#include "linear.inl"

namespace lowbit::avxvnni {

void linear(const Linear* ops, int count) { run(ops, count, few_rows); }

void experts(const Experts& op) { run_experts(op, few_rows); }

}  // namespace lowbit::avxvnni

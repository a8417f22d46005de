#define LOWBIT_ISA avx512
#include "dot_pairs.inl"
#include "isa_512.inl"
#include "linear.h"

namespace lowbit::avx512 {
namespace {

struct Isa : Pairs<Vectors512> {
  static constexpr int64_t macs_per_ns = 200;
  static constexpr int64_t few_rows = 16;  // measured: with more it pays to decode first
};

}  // namespace
}  // namespace lowbit::avx512

#include "linear_tables.inl"

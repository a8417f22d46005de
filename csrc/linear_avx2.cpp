#define LOWBIT_ISA avx2
#include "dot_pairs.inl"
#include "isa_256.inl"
#include "linear.h"

namespace lowbit::avx2 {
namespace {

struct Isa : Pairs<Vectors256> {
  static constexpr int64_t macs_per_ns = 100;
  static constexpr int64_t few_rows = 8;  // measured: with more it pays to decode first
};

}  // namespace
}  // namespace lowbit::avx2

#include "linear_tables.inl"

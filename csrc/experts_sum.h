// The sum over the experts of a token, in the order of its slots, times their weights (experts.h).
#pragma once

#include "experts.h"

namespace lowbit {

// Outputs `first` … `first + n - 1` of y, of every token. `results` has n numbers for each pair of
// a token and a slot, as wide as y's; those of a pair are at places[pair], or at `pair` if `places`
// is null, times `stride` bytes.
void sum_slots(const Experts& op, const char* results, int64_t stride, const int64_t* places,
               int64_t first, int64_t n);

}  // namespace lowbit

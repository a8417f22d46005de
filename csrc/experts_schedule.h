// The order of work for experts.h, which all paths share.
//
// The chosen (token, slot) pairs are sorted by expert. The pairs of one expert are rows of one
// linear layer: a group, or several where there are so many that their activations would leave the
// L2 cache. All groups' rows are quantized first, by whichever thread asks next; then the products
// are tasks of some panels of one group. Few pairs are few rows of many weights: threads share the
// panels of the chosen experts, each of whose codes is read once.
//
// Rows of a group lie anywhere in y. So a task writes to a strip, [rows of the group, outputs of
// the task], from which each row is copied to its place while it is in the cache; there the gate is
// applied too. One row alone is written to its place at once.
#pragma once

#include "experts.h"
#include "linear_schedule.h"

namespace lowbit {

// Each group by the product that `choose` has for a layer of as many rows.
void run_experts(const Experts& op, const Product& (*choose)(const Linear&));

}  // namespace lowbit

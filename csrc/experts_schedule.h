// The order of work for experts.h, which all targets share.
//
// The chosen (token, slot) pairs are sorted by expert. The pairs of one expert are the rows of one
// linear layer: one group, or several if their activations would not fit in the L2 cache. First
// threads quantize the rows of all groups, each taking the next free task. Then each task
// multiplies some panels of one group. With few pairs there are few rows and many weights: threads
// share the panels of the chosen experts, and each code is read once.
//
// The rows of a group are scattered in y. So a task writes to a strip [rows of the group, outputs
// of the task], applies the gate, and copies each row to y while it is in cache. A single row is
// written to y directly.
#pragma once

#include "experts.h"
#include "linear_schedule.h"

namespace lowbit {

// Computes each group with the product that `choose` returns for its number of rows.
void run_experts(const Experts& op, const Product& (*choose)(const Linear&));

}  // namespace lowbit

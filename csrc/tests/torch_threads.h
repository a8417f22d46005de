// What stands for torch's pool in the C++ tests.
#pragma once

#include <cstdint>

#define LOWBIT_EXPORTED __attribute__((visibility("default")))

extern "C" {

// In how many threads a loop runs from now on; 1 at first.
LOWBIT_EXPORTED void set_torch_threads(int64_t count);

// As in torch/csrc/stable/c/shim.h: fn(first, last, context) over disjoint ranges that cover
// begin..end, none below `grain`.
LOWBIT_EXPORTED int32_t torch_parallel_for(int64_t begin, int64_t end, int64_t grain,
                                           void (*fn)(int64_t, int64_t, void*), void* context);
}

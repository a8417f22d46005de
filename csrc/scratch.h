// Memory that the calling thread keeps and that grows, so that its pages are not faulted in anew
// for each call: at least so many bytes, aligned to cache lines, holding anything. std::bad_alloc
// if there is no memory.
//
// There is one for a call and one for its tasks: the thread that calls takes tasks too.
#pragma once

#include <cstdint>

namespace lowbit {

void* call_scratch(int64_t bytes);
void* task_scratch(int64_t bytes);

}  // namespace lowbit

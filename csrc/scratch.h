// Memory that the calling thread keeps, so that a call does not fault in new pages. It has at least
// the requested size, aligned to cache lines, with undefined contents. Throws std::bad_alloc.
//
// There are separate buffers for a call, for its tasks (the calling thread runs tasks too), for the
// results of a task that calls another function's tasks, and for the results of all tasks.
#pragma once

#include <cstdint>

namespace lowbit {

void* call_scratch(int64_t bytes);
void* task_scratch(int64_t bytes);
void* strip_scratch(int64_t bytes);
void* result_scratch(int64_t bytes);

}  // namespace lowbit

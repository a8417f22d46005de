// Memory that the calling thread keeps and that grows, so that its pages are not faulted in anew
// for each call: at least so many bytes, aligned to cache lines, holding anything. std::bad_alloc
// if there is no memory.
//
// There is one for a call, one for its tasks, as the thread that calls takes tasks too, one for the
// results of a task that calls another's, and one for those of all tasks.
#pragma once

#include <cstdint>

namespace lowbit {

void* call_scratch(int64_t bytes);
void* task_scratch(int64_t bytes);
void* strip_scratch(int64_t bytes);
void* result_scratch(int64_t bytes);

}  // namespace lowbit

// Loops on torch's own threads.
//
// A second thread pool would compete with torch's and ignore torch.set_num_threads. So the loop
// calls `torch_parallel_for` of libtorch's stable C interface, found in the library that the
// process has already loaded. Without it, the loop is serial.
#pragma once

#include <cstdint>

namespace lowbit {

using RangeFn = void (*)(int64_t begin, int64_t end, void* context);

void parallel_for(int64_t begin, int64_t end, int64_t grain, RangeFn fn, void* context);

// fn(first, last) over disjoint ranges that cover begin..end, none split below `grain`.
// fn must not throw.
template <class Fn>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const Fn& fn) {
  parallel_for(
      begin, end, grain,
      [](int64_t first, int64_t last, void* context) {
        (*static_cast<const Fn*>(context))(first, last);
      },
      const_cast<Fn*>(&fn));
}

// Whether torch's pool was found.
bool on_torch_threads();

}  // namespace lowbit

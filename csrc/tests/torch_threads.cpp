// A library of the name of torch's, in which parallel.cpp finds `torch_parallel_for`: plain
// threads, which ThreadSanitizer sees, where torch's own pool is not built under it.

#include "tests/torch_threads.h"

#include <algorithm>
#include <thread>
#include <vector>

namespace {

int64_t threads = 1;

}  // namespace

void set_torch_threads(int64_t count) { threads = count; }

int32_t torch_parallel_for(int64_t begin, int64_t end, int64_t grain,
                           void (*fn)(int64_t, int64_t, void*), void* context) {
  const int64_t items = end - begin, least = std::max<int64_t>(grain, 1);
  const int64_t chunks = std::clamp<int64_t>(items / least, 1, threads);
  const int64_t chunk = (items + chunks - 1) / chunks;
  std::vector<std::thread> others;
  for (int64_t first = begin + chunk; first < end; first += chunk)
    others.emplace_back(fn, first, std::min(first + chunk, end), context);
  fn(begin, std::min(begin + chunk, end), context);
  for (std::thread& other : others) other.join();
  return 0;
}

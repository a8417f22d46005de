// Waits for work of other threads of the same call.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>

namespace lowbit {

// Waits until `done` is `all`. Returns false if `given_up` is set, because then the work may never
// be done.
inline bool wait_for(const std::atomic<int64_t>& done, int64_t all,
                     const std::atomic<bool>& given_up) {
  constexpr int64_t spins_before_yield = 1000;
  for (int64_t spins = 0; done.load(std::memory_order_acquire) < all; ++spins) {
    if (given_up.load(std::memory_order_relaxed)) return false;
    if (spins >= spins_before_yield) {
      std::this_thread::yield();  // The other thread may have been put off its core.
      continue;
    }
#ifdef LOWBIT_X86
    __builtin_ia32_pause();
#endif
  }
  return true;
}

}  // namespace lowbit

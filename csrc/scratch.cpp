#include "scratch.h"

#include <cstdlib>
#include <memory>
#include <new>

namespace lowbit {
namespace {

struct Free {
  void operator()(void* p) const { std::free(p); }
};

class Scratch {
 public:
  void* at_least(int64_t bytes) {
    if (bytes > size_) {
      kept_.reset();
      size_ = 0;
      const int64_t rounded = (bytes + page - 1) / page * page;
      kept_.reset(std::aligned_alloc(64, rounded));
      if (!kept_) throw std::bad_alloc();
      size_ = rounded;
    }
    return kept_.get();
  }

 private:
  static constexpr int64_t page = 4096;
  std::unique_ptr<void, Free> kept_;
  int64_t size_ = 0;
};

thread_local Scratch of_call, of_task, of_strip, of_results;

}  // namespace

void* call_scratch(int64_t bytes) { return of_call.at_least(bytes); }

void* task_scratch(int64_t bytes) { return of_task.at_least(bytes); }

void* strip_scratch(int64_t bytes) { return of_strip.at_least(bytes); }

void* result_scratch(int64_t bytes) { return of_results.at_least(bytes); }

}  // namespace lowbit

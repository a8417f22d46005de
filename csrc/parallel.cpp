#include "parallel.h"

#include <stdexcept>

#if defined(__unix__) || defined(__APPLE__)
#include <dlfcn.h>
#define LOWBIT_HAS_DLFCN
#endif

namespace lowbit {
namespace {

// torch/csrc/stable/c/shim.h; 0 is success.
using TorchParallelFor = int32_t (*)(int64_t, int64_t, int64_t, RangeFn, void*);

TorchParallelFor find_torch() {
#ifdef LOWBIT_HAS_DLFCN
#ifdef __APPLE__
  constexpr const char* library = "@rpath/libtorch_cpu.dylib";
#else
  constexpr const char* library = "libtorch_cpu.so";
#endif
  if (void* handle = dlopen(library, RTLD_NOLOAD | RTLD_NOW)) {
    return reinterpret_cast<TorchParallelFor>(dlsym(handle, "torch_parallel_for"));
  }
#endif
  return nullptr;
}

TorchParallelFor torch_parallel_for() {
  static const TorchParallelFor found = find_torch();
  return found;
}

}  // namespace

bool on_torch_threads() { return torch_parallel_for() != nullptr; }

void parallel_for(int64_t begin, int64_t end, int64_t grain, RangeFn fn, void* context) {
  if (begin >= end) return;
  // A single chunk needs no pool, nor the microsecond that asking it costs.
  if (end - begin <= grain || !on_torch_threads()) {
    fn(begin, end, context);
  } else if (torch_parallel_for()(begin, end, grain, fn, context) != 0) {
    throw std::runtime_error("torch_parallel_for failed");
  }
}

}  // namespace lowbit

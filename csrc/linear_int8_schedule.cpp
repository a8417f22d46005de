#include "linear_int8_schedule.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>
#include <thread>

#include "parallel.h"

namespace lowbit {
namespace {

constexpr int64_t chunk_bytes = 1 << 19;       // of codes, a share of the L2 cache
constexpr int64_t max_chunks = 16;             // at once: bounds the scratch
constexpr int64_t values_per_quantize = 16384;
constexpr int64_t ns_per_thread = 8000;        // less than this is done sooner by one thread alone
constexpr int64_t weight_bytes_per_ns = 20;    // one core, from the outer caches

struct Free {
  void operator()(void* p) const { std::free(p); }
};

// Kept by the thread that calls, so that threads share nothing and pages are not faulted in anew.
// `n` bytes, aligned to cache lines.
int8_t* scratch(int64_t n) {
  thread_local std::unique_ptr<void, Free> kept;
  thread_local int64_t size = 0;
  if (n > size) {
    kept.reset();
    size = 0;
    const int64_t rounded = (n + 4095) / 4096 * 4096;
    kept.reset(std::aligned_alloc(64, rounded));
    if (!kept) throw std::bad_alloc();
    size = rounded;
  }
  return static_cast<int8_t*>(kept.get());
}

void pause() {
#ifdef LOWBIT_X86
  __builtin_ia32_pause();
#endif
}

int64_t divided(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Tasks {
  const LinearInt8& op;
  const Product& product;
  const Activations& a;
  const int64_t chunk_rows, rows_per_quantize;
  const int64_t quantizes = divided(chunk_rows, rows_per_quantize);  // per chunk
  const int64_t multiplies = divided(op.outputs, product.cols);
  const int64_t count = divided(op.rows, chunk_rows) * (quantizes + multiplies);
  std::atomic<int64_t> next = 0;
  std::atomic<int64_t> quantized[max_chunks] = {};

  void take_until_done() {
    for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < count;) {
      const int64_t chunk = task / (quantizes + multiplies), part = task % (quantizes + multiplies);
      const int64_t first = chunk * chunk_rows, last = std::min(op.rows, first + chunk_rows);
      if (part < quantizes) {
        const int64_t from = first + part * rows_per_quantize;
        product.quantize(op, a, from, std::min(last, from + rows_per_quantize));
        quantized[chunk].fetch_add(1, std::memory_order_release);
      } else {
        wait_for(quantized[chunk]);
        product.multiply(op, a, first, last, (part - quantizes) * product.cols);
      }
    }
  }

  void wait_for(const std::atomic<int64_t>& done) const {
    for (int64_t spins = 0; done.load(std::memory_order_acquire) < quantizes; ++spins) {
      // The other thread may have been put off its core.
      spins < 1000 ? pause() : std::this_thread::yield();
    }
  }
};

void run_part(const LinearInt8& op, const Product& product, int64_t chunk_rows) {
  const int64_t row_bytes = padded_inputs(op.inputs) * product.bytes_per_input;
  const int64_t padded_rows = divided(op.rows, product.rows) * product.rows;
  const int64_t code_bytes = padded_rows * row_bytes;
  int8_t* memory = scratch(code_bytes + padded_rows * 8);
  float* scales = reinterpret_cast<float*>(memory + code_bytes);
  const Activations a{memory, scales, reinterpret_cast<int32_t*>(scales + padded_rows)};
  const int64_t rows_per_quantize =
      std::clamp<int64_t>(values_per_quantize / (op.inputs + 1), 1, chunk_rows);
  Tasks tasks{op, product, a, chunk_rows, rows_per_quantize};

  const int64_t weights = op.outputs * op.inputs;
  const int64_t ns =
      weights / weight_bytes_per_ns + op.rows * (weights / product.macs_per_ns + op.inputs / 4);
  parallel_for(0, ns + 1, ns_per_thread, [&](int64_t, int64_t) { tasks.take_until_done(); });
}

}  // namespace

void run(const LinearInt8& op, const Product& product) {
  if (op.outputs == 0) return;
  const int64_t row_bytes = padded_inputs(op.inputs) * product.bytes_per_input;
  const int64_t blocks = std::max<int64_t>(1, chunk_bytes / (row_bytes + 1) / product.rows);
  const int64_t chunk_rows = blocks * product.rows;
  LinearInt8 part = op;
  for (int64_t first = 0; first < op.rows; first += part.rows) {
    part.rows = std::min(op.rows - first, chunk_rows * max_chunks);
    part.x = op.x + first * op.inputs;
    part.y = op.y + first * op.outputs;
    run_part(part, product, chunk_rows);
  }
}

}  // namespace lowbit

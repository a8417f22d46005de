#include "linear_schedule.h"

#include <algorithm>
#include <atomic>
#include <new>
#include <vector>

#include "parallel.h"
#include "scratch.h"
#include "wait_for.h"

namespace lowbit {
namespace {

constexpr int64_t max_chunk_rows = 512;  // of codes
constexpr int64_t max_chunks = 16;       // at once: bounds the scratch
constexpr int64_t values_per_quantize = 16384;
constexpr int64_t bytes_per_task = 1 << 16;  // of weights times rows: a task outlasts its start
constexpr int64_t ns_per_thread = 8000;      // less than this is done sooner by one thread alone
constexpr int64_t most_task_panels = 64;
constexpr int64_t first_bytes = 4096;  // prefetched before all work
constexpr int64_t cache_line = 64;
constexpr int64_t inputs_per_ns = 4;         // quantized by one core
constexpr int64_t weight_bytes_per_ns = 20;  // one core, from the outer caches

// One layer's part in the tasks of a chunk.
struct Layer {
  Linear op;
  const Product* product;
  int64_t panels_per_multiply, multiplies;

  Layer(const Linear& op, const Product& product) : op(op), product(&product) {
    const int64_t rows = std::min(op.rows * op.limbs, max_chunk_rows);
    const int64_t task_panels = divided(bytes_per_task, op.form.panel_bytes() * rows + 1);
    panels_per_multiply =
        padded(std::clamp<int64_t>(task_panels, 1, most_task_panels), product.panels);
    multiplies = divided(op.form.panels(), panels_per_multiply);
  }

  // Roughly, on one core.
  int64_t ns() const {
    const int64_t weights = op.form.outputs * op.form.inputs;
    return weights * op.form.bits / 8 / weight_bytes_per_ns +
           op.rows * op.limbs * (weights * op.planes / product->macs_per_ns);
  }
};

struct Tasks {
  const std::vector<Layer>& layers;
  const Activations& a;
  const int64_t chunk_rows, rows_per_quantize, multiplies;  // the last for all layers together
  const int64_t quantizes = divided(chunk_rows, rows_per_quantize);  // per chunk
  const int64_t chunks = divided(layers[0].op.rows, chunk_rows);
  std::atomic<bool> out_of_memory = false;
  std::atomic<int64_t> next[max_chunks] = {}, quantized[max_chunks] = {};  // of its quantizes
  std::vector<std::atomic<bool>> taken = std::vector<std::atomic<bool>>(chunks * multiplies);

  // `share` is where in all products this thread begins, 0 … 1.
  void take_until_done(double share) {
    const auto start = static_cast<int64_t>(static_cast<double>(multiplies) * share);
    if (multiplies > 0) prefetch_weights(start);
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const Layer& any = layers[0];
      const int64_t first = chunk * chunk_rows, last = std::min(any.op.rows, first + chunk_rows);
      for (int64_t part;
           (part = next[chunk].fetch_add(1, std::memory_order_relaxed)) < quantizes;) {
        const int64_t from = std::min(last, first + part * rows_per_quantize);
        any.product->quantize(any.op, a, from, std::min(last, from + rows_per_quantize));
        quantized[chunk].fetch_add(1, std::memory_order_release);
      }
      if (!wait_for(quantized[chunk], quantizes, out_of_memory)) return;
      for (int64_t i = start; i < start + multiplies; ++i) {
        const int64_t number = i % multiplies;
        std::atomic<bool>& it = taken[chunk * multiplies + number];
        if (it.load(std::memory_order_relaxed) || it.exchange(true, std::memory_order_relaxed)) {
          continue;
        }
        multiply(number, first, last);
      }
    }
  }

  // While another thread quantizes, the first of the weights can come.
  void prefetch_weights(int64_t number) const {
    const Layer& layer = layer_of(number);
    const PackedLayout& form = layer.op.form;
    const int64_t from = number * layer.panels_per_multiply * form.panel_bytes();
    const int64_t bytes = std::min(form.panels() * form.panel_bytes() - from, first_bytes);
    for (int64_t at = 0; at < bytes; at += cache_line)
      __builtin_prefetch(layer.op.codes + from + at);
  }

  void multiply(int64_t number, int64_t first, int64_t last) const {
    const Layer& layer = layer_of(number);
    const int64_t panel = number * layer.panels_per_multiply;
    layer.product->multiply(layer.op, a, first, last, panel,
                            std::min(layer.op.form.panels(), panel + layer.panels_per_multiply));
  }

  // The layer that has this product, whose number within the layer is left.
  const Layer& layer_of(int64_t& number) const {
    const Layer* layer = layers.data();
    for (; number >= layer->multiplies; ++layer) number -= layer->multiplies;
    return *layer;
  }
};

void run_part(const std::vector<Layer>& layers, int64_t chunk_rows) {
  const Linear& op = layers[0].op;
  const Product& product = *layers[0].product;
  const int64_t inputs = padded_inputs(op.form, product);
  const int64_t rows = padded(op.rows * op.limbs, product.rows);
  const int64_t code_bytes = rows * inputs * product.bytes_per_input;
  const int64_t parameters = rows * op.form.groups();
  constexpr int64_t parameter_bytes = sizeof(float) + 2 * sizeof(int32_t);
  auto* memory = static_cast<int8_t*>(call_scratch(code_bytes + parameters * parameter_bytes));
  auto* scales = reinterpret_cast<float*>(memory + code_bytes);
  const Activations a{.codes = memory,
                      .scales = scales,
                      .sums = reinterpret_cast<int32_t*>(scales + parameters),
                      .cross_sums = reinterpret_cast<int32_t*>(scales + 2 * parameters),
                      .padded_inputs = inputs,
                      .rows = rows,
                      .chunk_rows = chunk_rows * op.limbs};

  const int64_t rows_per_quantize =
      std::clamp<int64_t>(values_per_quantize / (op.form.inputs + 1), 1, chunk_rows);
  int64_t multiplies = 0, ns = op.rows * op.limbs * (op.form.inputs / inputs_per_ns);
  for (const Layer& layer : layers) {
    multiplies += layer.multiplies;
    ns += layer.ns();
  }
  Tasks tasks{.layers = layers,
              .a = a,
              .chunk_rows = chunk_rows,
              .rows_per_quantize = rows_per_quantize,
              .multiplies = multiplies};
  parallel_for(0, ns + 1, ns_per_thread, [&](int64_t first, int64_t) {
    try {
      tasks.take_until_done(static_cast<double>(first) / static_cast<double>(ns + 1));
    } catch (const std::bad_alloc&) {  // from task_scratch; no exception may leave this function
      tasks.out_of_memory = true;
    }
  });
  if (tasks.out_of_memory) throw std::bad_alloc();
}

void run_alike(const Linear* ops, int count, const Product& (*choose)(const Linear&)) {
  const Product& product = choose(*ops);
  const int64_t rows = ops->rows, inputs = ops->form.inputs, limbs = ops->limbs;
  const int64_t row_bytes = padded_inputs(ops->form, product) * product.bytes_per_input * limbs;
  const int64_t blocks = std::max<int64_t>(
      1, std::min(product.chunk_bytes / (row_bytes + 1), max_chunk_rows / limbs) / product.rows);
  // Chunks of equal size: each decodes all weights again, so a short last one is expensive.
  const int64_t chunks = std::max<int64_t>(1, divided(rows, blocks * product.rows));
  const int64_t chunk_rows = padded(divided(rows, chunks), product.rows);
  for (int64_t first = 0; first < rows; first += chunk_rows * max_chunks) {
    std::vector<Layer> layers;
    for (int i = 0; i < count; ++i) {
      Linear part = ops[i];
      part.rows = std::min(rows - first, chunk_rows * max_chunks);
      const int64_t bytes = part.bfloat16 ? 2 : 4;
      part.x = static_cast<const char*>(part.x) + first * inputs * bytes;
      part.y = static_cast<char*>(part.y) + first * part.form.outputs * bytes;
      layers.emplace_back(part, choose(part));
    }
    run_part(layers, chunk_rows);
  }
}

}  // namespace

void run(const Linear* ops, int count, const Product& (*choose)(const Linear&)) {
  // Layers one after the other whose products arrange activations alike go together.
  for (int end; count > 0; ops += end, count -= end) {
    const auto alike = [&](const Linear& op) {
      return choose(op).quantize == choose(*ops).quantize;
    };
    end = static_cast<int>(std::find_if_not(ops, ops + count, alike) - ops);
    run_alike(ops, end, choose);
  }
}

}  // namespace lowbit

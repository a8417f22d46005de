#include "experts_schedule.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "experts_sum.h"
#include "parallel.h"
#include "scratch.h"
#include "wait_for.h"

#define LOWBIT_ISA any_processor
#include "bfloat16.inl"

namespace lowbit {
namespace {

constexpr int64_t max_chunk_rows = 512;      // of codes, of one group
constexpr int64_t scratch_bytes = 1 << 24;   // for the activations of all groups at a time
constexpr int64_t rows_per_quantize = 8;     // of one group
constexpr int64_t bytes_per_task = 1 << 16;  // of weights times rows: a task outlasts its start
constexpr int64_t most_task_panels = 64;
constexpr int64_t strip_bytes = 1 << 20;       // of results that a thread sums at a time
constexpr int64_t few_result_bytes = 1 << 18;  // of all results: summed when all are there
constexpr int64_t ns_per_thread = 8000;        // less than this is done sooner by one thread alone
constexpr int64_t inputs_per_ns = 4;           // quantized by one core
constexpr int64_t weight_bytes_per_ns = 20;    // one core, from the outer caches
constexpr int64_t cache_line = 64;

// Bytes of one number of x and y.
int64_t item(const Linear& op) { return op.bfloat16 ? 2 : 4; }

const void* behind(const void* values, int64_t bytes) {
  return values ? static_cast<const char*>(values) + bytes : nullptr;
}

const uint8_t* behind(const uint8_t* values, int64_t bytes) {
  return values ? values + bytes : nullptr;
}

// The panels first … last - 1 of a layer as a layer of its own.
Linear panels_of(const Linear& op, int64_t first, int64_t last) {
  Linear part = op;
  const int64_t numbers = first * op.form.groups() * panel_rows, row = first * panel_rows;
  part.form.outputs = std::min(op.form.outputs, last * panel_rows) - row;
  part.codes = op.codes + first * op.form.panel_bytes();
  const int64_t scale_bytes = numbers / op.sub.groups * (op.half_scale ? 2 : 4);
  part.scale = behind(op.scale, scale_bytes * op.planes);
  part.offset = behind(op.offset, scale_bytes);
  part.zero_point = behind(op.zero_point, numbers);
  part.sub.scale = behind(op.sub.scale, numbers);
  part.sub.offset = behind(op.sub.offset, numbers);
  part.bias = behind(op.bias, row * (op.bfloat16_bias ? 2 : 4));
  return part;
}

// Some rows of one expert.
struct Group {
  Linear op;  // its weights, and as many rows
  const Product* product;
  const int64_t* pairs;  // the place of each row in y
  Activations a;
  int64_t panels_per_task = 0, tasks = 0;

  int64_t activation_bytes() const {
    const int64_t numbers = a.rows * op.form.groups() * (sizeof(float) + 2 * sizeof(int32_t));
    return padded(a.rows * a.padded_inputs * product->bytes_per_input, cache_line) +
           padded(numbers, cache_line);
  }

  // Roughly, on one core.
  int64_t ns() const {
    const int64_t weights = op.form.outputs * op.form.inputs, rows = op.rows * op.limbs;
    return weights * op.form.bits / 8 / weight_bytes_per_ns +
           rows * (weights * op.planes / product->macs_per_ns + op.form.inputs / inputs_per_ns);
  }
};

// Of one group, from row `first` on.
struct Quantize {
  int64_t group, first;
};

// The pairs sorted by expert, those of one in order; ends[e] is where those of expert e end.
struct Sorted {
  std::vector<int64_t> pairs, ends;
};

class Round {
 public:
  // `sum`, if given, is what the pairs of `op` are summed to.
  Round(const Experts& op, const Sorted& sorted, std::vector<Group>& groups, const Experts* sum)
      : op_(op), sorted_(sorted), groups_(groups), sum_(sum) {
    int64_t bytes = 0;
    for (const Group& group : groups_) bytes += group.activation_bytes();
    auto* memory = static_cast<char*>(call_scratch(bytes));
    for (size_t i = 0; i < groups_.size(); ++i) {
      Group& group = groups_[i];
      group.a.codes = reinterpret_cast<int8_t*>(memory);
      const int64_t codes = group.a.rows * group.a.padded_inputs * group.product->bytes_per_input;
      group.a.scales = reinterpret_cast<float*>(memory + padded(codes, cache_line));
      const int64_t parameters = group.a.rows * group.op.form.groups();
      group.a.sums = reinterpret_cast<int32_t*>(group.a.scales + parameters);
      group.a.cross_sums = group.a.sums + parameters;
      memory += group.activation_bytes();
      for (int64_t first = 0; first < group.op.rows; first += rows_per_quantize) {
        quantizes_.push_back({.group = static_cast<int64_t>(i), .first = first});
      }
      tasks_ += group.tasks;
      ns_ += group.ns();
    }
    if (sum_) cut_into_strips();
    taken_ = std::vector<std::atomic<bool>>(tasks_);
  }

  void run() {
    parallel_for(0, ns_ + 1, ns_per_thread, [&](int64_t first, int64_t) {
      try {
        take_until_done(static_cast<double>(first) / static_cast<double>(ns_ + 1));
      } catch (const std::bad_alloc&) {  // from scratch; no exception may leave this function
        out_of_memory_ = true;
      }
    });
    if (out_of_memory_) throw std::bad_alloc();
  }

 private:
  // `share` is where in all products this thread begins, 0 … 1.
  void take_until_done(double share) {
    const auto all = static_cast<int64_t>(quantizes_.size());
    for (int64_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < all;) {
      quantize(quantizes_[i]);
      quantized_.fetch_add(1, std::memory_order_release);
    }
    if (!wait_for(quantized_, all, out_of_memory_)) return;
    const auto start = static_cast<int64_t>(static_cast<double>(tasks_) * share);
    for (int64_t i = start; i < start + tasks_; ++i) {
      const int64_t number = i % tasks_;
      std::atomic<bool>& it = taken_[number];
      if (it.load(std::memory_order_relaxed) || it.exchange(true, std::memory_order_relaxed)) {
        continue;
      }
      multiply(number);
    }
  }

  // A task is some panels of all groups. Their results stay in the cache until they are summed.
  void cut_into_strips() {
    const auto pairs = static_cast<int64_t>(sorted_.pairs.size());
    const int64_t wanted = strip_bytes / (pairs * panel_rows * item(op_.layer));
    const int64_t at_once = groups_.empty() ? 1 : groups_[0].product->panels;
    strip_panels_ = padded(std::clamp<int64_t>(wanted, 1, most_task_panels), at_once);
    tasks_ = divided(op_.layer.form.panels(), strip_panels_);
    places_.resize(pairs);
    for (int64_t i = 0; i < pairs; ++i) places_[sorted_.pairs[i]] = i;
  }

  // Rows of a group are not beside each other in x: each is given as if it were at its place.
  void quantize(const Quantize& task) const {
    const Group& group = groups_[task.group];
    const int64_t last = std::min(group.op.rows, task.first + rows_per_quantize);
    const int64_t bytes = group.op.form.inputs * item(group.op);
    for (int64_t row = task.first; row < last; ++row) {
      Linear one = group.op;
      const int64_t token = group.pairs[row] / op_.slots;
      one.x = static_cast<const char*>(op_.layer.x) + (token - row) * bytes;
      group.product->quantize(one, group.a, row, row + 1);
    }
  }

  void multiply(int64_t number) const {
    if (sum_) return multiply_and_sum(number * strip_panels_);
    const Group* group = groups_.data();
    for (; number >= group->tasks; ++group) number -= group->tasks;
    const int64_t panels = group->op.form.panels() / (op_.gated ? 2 : 1);
    const int64_t first = number * group->panels_per_task;
    const int64_t last = std::min(panels, first + group->panels_per_task);
    if (op_.gated) {
      multiply_gated(*group, first, last, panels);
    } else if (group->op.rows == 1) {
      Linear one = group->op;
      one.y = place(group->pairs[0], one.form.outputs, 0, item(one));
      group->product->multiply(one, group->a, 0, 1, first, last);
    } else {
      multiply_strip(*group, first, last);
    }
  }

  // Where the numbers of a pair are in y, from output `first` on.
  char* place(int64_t pair, int64_t outputs, int64_t first, int64_t bytes) const {
    return static_cast<char*>(op_.layer.y) + (pair * outputs + first) * bytes;
  }

  void multiply_strip(const Group& group, int64_t first, int64_t last) const {
    Linear part = panels_of(group.op, first, last);
    const int64_t bytes = item(part), width = part.form.outputs * bytes;
    auto* strip = static_cast<char*>(strip_scratch(part.rows * width));
    part.y = strip;
    group.product->multiply(part, group.a, 0, part.rows, 0, last - first);
    for (int64_t row = 0; row < part.rows; ++row) {
      std::memcpy(place(group.pairs[row], group.op.form.outputs, first * panel_rows, bytes),
                  strip + row * width, width);
    }
  }

  // `panels` are the gate's.
  void multiply_gated(const Group& group, int64_t first, int64_t last, int64_t panels) const {
    Linear gate = panels_of(group.op, first, last);
    Linear up = panels_of(group.op, panels + first, panels + last);
    up.nonlinearity = Nonlinearity::identity;
    const int64_t numbers = gate.rows * gate.form.outputs, bytes = item(gate);
    auto* strip = static_cast<char*>(strip_scratch(2 * numbers * bytes));
    gate.y = strip;
    up.y = strip + numbers * bytes;
    group.product->multiply(gate, group.a, 0, gate.rows, 0, last - first);
    group.product->multiply(up, group.a, 0, up.rows, 0, last - first);
    const int64_t width = gate.form.outputs, outputs = group.op.form.outputs / 2;
    for (int64_t row = 0; row < gate.rows; ++row) {
      char* to = place(group.pairs[row], outputs, first * panel_rows, bytes);
      const char* a = strip + row * width * bytes;
      const char* b = a + numbers * bytes;
      if (gate.bfloat16) {
        product(reinterpret_cast<const uint16_t*>(a), reinterpret_cast<const uint16_t*>(b), width,
                reinterpret_cast<uint16_t*>(to));
      } else {
        product(reinterpret_cast<const float*>(a), reinterpret_cast<const float*>(b), width,
                reinterpret_cast<float*>(to));
      }
    }
  }

  void multiply_and_sum(int64_t first) const {
    const PackedLayout& form = op_.layer.form;
    const int64_t last = std::min(form.panels(), first + strip_panels_),
                  output = first * panel_rows;
    const int64_t width = std::min(form.outputs, last * panel_rows) - output;
    const int64_t bytes = width * item(op_.layer), pairs = places_.size();
    auto* strip = static_cast<char*>(strip_scratch(pairs * bytes));
    int64_t row = 0;
    for (const Group& group : groups_) {
      Linear part = panels_of(group.op, first, last);
      part.y = strip + row * bytes;
      group.product->multiply(part, group.a, 0, part.rows, 0, last - first);
      row += part.rows;
    }
    std::memset(strip + row * bytes, 0, (pairs - row) * bytes);  // of those that chose none
    sum_slots(*sum_, strip, bytes, places_.data(), output, width);
  }

  static void product(const float* a, const float* b, int64_t n, float* to) {
    for (int64_t i = 0; i < n; ++i) to[i] = a[i] * b[i];
  }

  static void product(const uint16_t* a, const uint16_t* b, int64_t n, uint16_t* to) {
    constexpr int64_t at_once = 64;
    float left[at_once], right[at_once];
    for (int64_t i = 0; i < n; i += at_once) {
      const int64_t count = std::min(at_once, n - i);
      any_processor::widen(a + i, count, left);
      any_processor::widen(b + i, count, right);
      product(left, right, count, left);
      any_processor::narrow(left, count, to + i);
    }
  }

  const Experts& op_;
  const Sorted& sorted_;
  std::vector<Group>& groups_;
  const Experts* const sum_;
  int64_t strip_panels_ = 0;     // if there is a sum
  std::vector<int64_t> places_;  // then that of each pair among the sorted
  std::vector<Quantize> quantizes_;
  std::vector<std::atomic<bool>> taken_;
  int64_t tasks_ = 0, ns_ = 0;
  std::atomic<int64_t> next_ = 0, quantized_ = 0;
  std::atomic<bool> out_of_memory_ = false;
};

Sorted sorted(const Experts& op) {
  const int64_t count = op.layer.rows * op.slots;
  Sorted all{.pairs = std::vector<int64_t>(count), .ends = std::vector<int64_t>(op.experts + 1)};
  for (int64_t i = 0; i < count; ++i) {
    const int64_t expert = op.ids[i];
    if (expert < 0 || expert > op.experts) {
      throw std::out_of_range("expert " + std::to_string(expert) + " was chosen, of " +
                              std::to_string(op.experts));
    }
    ++all.ends[expert];
  }
  int64_t start = 0;
  for (int64_t& end : all.ends) {
    const int64_t own = end;
    end = start;
    start += own;
  }
  for (int64_t i = 0; i < count; ++i) all.pairs[all.ends[op.ids[i]]++] = i;
  return all;
}

Group group_of(const Experts& op, const Linear& layer, const Product& product,
               const int64_t* pairs) {
  Group group{.op = layer, .product = &product, .pairs = pairs, .a = {}};
  group.a.padded_inputs = padded_inputs(layer.form, product);
  group.a.rows = group.a.chunk_rows = padded(layer.rows * layer.limbs, product.rows);
  const int64_t panels = layer.form.panels() / (op.gated ? 2 : 1);
  const int64_t bytes = layer.form.panel_bytes() * (op.gated ? 2 : 1);
  const int64_t wanted = divided(bytes_per_task, bytes * layer.rows * layer.limbs + 1);
  group.panels_per_task = padded(std::clamp<int64_t>(wanted, 1, most_task_panels), product.panels);
  group.tasks = divided(panels, group.panels_per_task);
  return group;
}

// fn(group) for the rows of each expert, chunk after chunk.
template <class Fn>
void for_groups(const Experts& op, const Sorted& all, const Product& (*choose)(const Linear&),
                const Fn& fn) {
  const int64_t outputs = op.layer.form.outputs;
  for (int64_t expert = 0; expert < op.experts; ++expert) {
    const int64_t first = expert ? all.ends[expert - 1] : 0, count = all.ends[expert] - first;
    if (count == 0) continue;
    Linear layer = op.layer;
    const int64_t away = expert * op.stride;
    layer.codes += away;
    layer.scale = behind(layer.scale, away);
    layer.offset = behind(layer.offset, away);
    layer.zero_point = behind(layer.zero_point, away);
    layer.sub.scale = behind(layer.sub.scale, away);
    layer.sub.offset = behind(layer.sub.offset, away);
    layer.bias = behind(layer.bias, expert * outputs * (layer.bfloat16_bias ? 2 : 4));
    layer.rows = count;
    const Product& product = choose(layer);
    const int64_t row_bytes =
        padded_inputs(layer.form, product) * product.bytes_per_input * layer.limbs;
    const int64_t fitting =
        std::min(product.chunk_bytes / (row_bytes + 1), max_chunk_rows / layer.limbs);
    const int64_t chunk = std::max<int64_t>(1, fitting / product.rows) * product.rows;
    for (int64_t row = 0; row < count; row += chunk) {
      layer.rows = std::min(chunk, count - row);
      fn(group_of(op, layer, product, &all.pairs[first + row]));
    }
  }
}

// y of all pairs.
void run_pairs(const Experts& op, const Product& (*choose)(const Linear&)) {
  const Sorted all = sorted(op);
  const int64_t outputs = op.layer.form.outputs;
  const int64_t result_bytes = (op.gated ? outputs / 2 : outputs) * item(op.layer);
  const int64_t none = op.experts ? all.ends[op.experts - 1] : 0;
  for (int64_t i = none; i < all.ends[op.experts]; ++i) {
    std::memset(static_cast<char*>(op.layer.y) + all.pairs[i] * result_bytes, 0, result_bytes);
  }
  std::vector<Group> groups;
  int64_t bytes = 0;
  const auto run_round = [&] {
    if (!groups.empty()) Round(op, all, groups, nullptr).run();
    groups.clear();
    bytes = 0;
  };
  for_groups(op, all, choose, [&](const Group& group) {
    groups.push_back(group);
    bytes += group.activation_bytes();
    if (bytes > scratch_bytes) run_round();
  });
  run_round();
}

// `sum` of all pairs, in one round.
void sum_pairs(const Experts& op, const Product& (*choose)(const Linear&), const Experts& sum) {
  const Sorted all = sorted(op);
  std::vector<Group> groups;
  for_groups(op, all, choose, [&](const Group& group) { groups.push_back(group); });
  Round(op, all, groups, &sum).run();
}

// Tokens whose activations one round holds.
int64_t summed_at_once(const Experts& op, const Product& (*choose)(const Linear&)) {
  Linear layer = op.layer;
  layer.rows *= op.slots;
  const Product& product = choose(layer);
  const int64_t row_bytes = padded_inputs(layer.form, product) * product.bytes_per_input;
  return std::max<int64_t>(1, scratch_bytes / (row_bytes * layer.limbs * op.slots + 1));
}

void run_sum(const Experts& op, const Product& (*choose)(const Linear&)) {
  Experts pairs = op;
  pairs.layer.rows *= op.slots;
  pairs.slots = 1;
  pairs.weights = nullptr;
  const int64_t outputs = op.layer.form.outputs, bytes = outputs * item(op.layer);
  if (pairs.layer.rows * bytes > few_result_bytes) return sum_pairs(pairs, choose, op);
  auto* results = static_cast<char*>(result_scratch(pairs.layer.rows * bytes));
  pairs.layer.y = results;
  run_pairs(pairs, choose);
  sum_slots(op, results, bytes, nullptr, 0, outputs);
}

}  // namespace

void run_experts(const Experts& op, const Product& (*choose)(const Linear&)) {
  if (!op.weights) return run_pairs(op, choose);
  const int64_t at_once = summed_at_once(op, choose), bytes = item(op.layer);
  for (int64_t first = 0; first < op.layer.rows; first += at_once) {
    Experts part = op;
    const int64_t pair = first * op.slots;
    part.layer.rows = std::min(at_once, op.layer.rows - first);
    part.layer.x = behind(op.layer.x, pair * op.layer.form.inputs * bytes);
    part.layer.y = static_cast<char*>(op.layer.y) + first * op.layer.form.outputs * bytes;
    part.ids += pair;
    part.weights = behind(op.weights, pair * (op.bfloat16_weights ? 2 : 4));
    run_sum(part, choose);
  }
}

}  // namespace lowbit

// The Python face of the kernels. Tensors arrive as addresses; the callers in lowbit/kernels vouch
// for shapes, dtypes and contiguity.

#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <iterator>

#include "attention.h"
#include "cpu.h"
#include "elementwise.h"
#include "experts.h"
#include "kv_cache.h"
#include "linear.h"
#include "linear_float.h"
#include "packed_layout.h"
#include "parallel.h"
#include "program.h"
#include "quantize_rows.h"
#include "torch_layer_norm.h"

namespace nb = nanobind;
using namespace nb::literals;
using lowbit::PackedLayout;

namespace {

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

void quantize_rows(uintptr_t x, uintptr_t codes, uintptr_t scales, int64_t rows, int64_t cols,
                   int64_t group_size, std::string_view target) {
  if (group_size < 1) {
    throw std::invalid_argument("group_size " + std::to_string(group_size) + " is less than 1");
  }
  lowbit::find_target(lowbit::quantize_rows_targets, target)({.x = pointer<const float>(x),
                                                              .codes = pointer<int8_t>(codes),
                                                              .scales = pointer<float>(scales),
                                                              .rows = rows,
                                                              .cols = cols,
                                                              .group_size = group_size});
}

// A weight's form and the places of its parts, which do not change from call to call; `scale`,
// `zero_point`, `offset` and `sub_…` are counted from the first of the codes, and 0 if there is
// none.
struct Weight {
  PackedLayout form;
  int64_t scale, zero_point, offset;
  int planes;
  bool half_scale;
  int64_t sub_scale, sub_offset, sub_groups;
  int sub_bits, sub_lowest;

  lowbit::SubScales sub(uintptr_t codes) const {
    return {.scale = sub_scale ? pointer<const uint8_t>(codes + sub_scale) : nullptr,
            .offset = sub_offset ? pointer<const uint8_t>(codes + sub_offset) : nullptr,
            .groups = sub_groups,
            .bits = sub_bits,
            .lowest = sub_lowest};
  }

  lowbit::Linear linear(uintptr_t x, uintptr_t codes, uintptr_t bias, uintptr_t y, int64_t rows,
                        int limbs, lowbit::Nonlinearity nonlinearity) const {
    return {.form = form,
            .x = pointer<const void>(x),
            .codes = pointer<const uint8_t>(codes),
            .scale = pointer<const void>(codes + scale),
            .zero_point = zero_point ? pointer<const uint8_t>(codes + zero_point) : nullptr,
            .offset = offset ? pointer<const void>(codes + offset) : nullptr,
            .bias = pointer<const void>(bias),
            .y = pointer<void>(y),
            .rows = rows,
            .planes = planes,
            .limbs = limbs,
            .half_scale = half_scale,
            .nonlinearity = nonlinearity,
            .sub = sub(codes)};
  }

  void decode(uintptr_t codes, uintptr_t rows, int64_t count, uintptr_t out,
              std::string_view target) const {
    for (int64_t i = 0; i < count; ++i) {
      const int64_t row = pointer<const int64_t>(rows)[i];
      if (row < 0 || row >= form.outputs) {
        throw std::out_of_range("token id " + std::to_string(row) + " leaves a table of " +
                                std::to_string(form.outputs) + " rows");
      }
    }
    lowbit::find_target(lowbit::decode_packed_targets, target)(decoding(codes, rows, count, out));
  }

  lowbit::DecodePacked decoding(uintptr_t codes, uintptr_t rows, int64_t count,
                                uintptr_t out) const {
    return {.form = form,
            .codes = pointer<const uint8_t>(codes),
            .scale = pointer<const void>(codes + scale),
            .zero_point = zero_point ? pointer<const uint8_t>(codes + zero_point) : nullptr,
            .offset = offset ? pointer<const void>(codes + offset) : nullptr,
            .planes = planes,
            .half_scale = half_scale,
            .rows = pointer<const int64_t>(rows),
            .count = count,
            .out = pointer<float>(out),
            .sub = sub(codes)};
  }
};

// One layer of a call: what differs between layers that share their activations.
struct Layer {
  Weight weight;
  lowbit::Nonlinearity nonlinearity;
  lowbit::StaticScale input;
  bool bfloat16, bfloat16_bias;

  lowbit::Linear linear(uintptr_t x, uintptr_t codes, uintptr_t bias, uintptr_t y, int64_t rows,
                        int limbs) const {
    lowbit::Linear op = weight.linear(x, codes, bias, y, rows, limbs, nonlinearity);
    op.input = input;
    op.bfloat16 = bfloat16;
    op.bfloat16_bias = bfloat16_bias;
    return op;
  }
};

// A target of the linear layer, found by name once; with `fma` that of linear_float.h.
struct LinearTarget {
  void (*run)(const lowbit::Linear*, int);

  LinearTarget(std::string_view name, bool fma)
      : run(fma ? lowbit::find_target(lowbit::linear_float_targets, name)
                : lowbit::find_target(lowbit::linear_targets, name)) {}

  void operator()(const Layer& layer, uintptr_t x, uintptr_t codes, uintptr_t bias, uintptr_t y,
                  int64_t rows, int limbs) const {
    const lowbit::Linear op = layer.linear(x, codes, bias, y, rows, limbs);
    run(&op, 1);
  }

  // Layers of as many inputs and as wide groups, over the same x. `places` holds the addresses of
  // codes, bias and y of one after the other.
  void together(const std::vector<const Layer*>& layers, uintptr_t x,
                const std::vector<uintptr_t>& places, int64_t rows, int limbs) const {
    if (places.size() != 3 * layers.size()) {
      throw std::invalid_argument(std::to_string(places.size()) + " places for " +
                                  std::to_string(layers.size()) +
                                  " layers: each has three, of its codes, bias and y");
    }
    std::vector<lowbit::Linear> ops;
    for (size_t i = 0; i < layers.size(); ++i) {
      const uintptr_t* at = &places[3 * i];
      ops.push_back(layers[i]->linear(x, at[0], at[1], at[2], rows, limbs));
    }
    run(ops.data(), static_cast<int>(ops.size()));
  }
};

// A target of the experts of a mixture, found by name once; with `fma` that of linear_float.h.
// `layer` is the form of each.
struct ExpertsTarget {
  void (*run)(const lowbit::Experts&);

  ExpertsTarget(std::string_view name, bool fma)
      : run(fma ? lowbit::find_target(lowbit::experts_float_targets, name)
                : lowbit::find_target(lowbit::experts_targets, name)) {}

  void operator()(const Layer& layer, bool gated, int64_t experts, int64_t stride, uintptr_t x,
                  uintptr_t ids, int64_t rows, int64_t slots, uintptr_t codes, uintptr_t bias,
                  uintptr_t y, int limbs, uintptr_t weights, bool bfloat16_weights) const {
    run({.layer = layer.linear(x, codes, bias, y, rows, limbs),
         .experts = experts,
         .stride = stride,
         .ids = pointer<const int64_t>(ids),
         .slots = slots,
         .gated = gated,
         .weights = pointer<const void>(weights),
         .bfloat16_weights = bfloat16_weights});
  }
};

using Steps = std::array<int64_t, 4>;  // a tensor's strides

lowbit::TokenRows token_rows(uintptr_t address, const Steps& steps) {
  return {.data = pointer<const void>(address),
          .batch_step = steps[0],
          .head_step = steps[1],
          .token_step = steps[2]};
}

lowbit::Mask mask_at(lowbit::MaskKind kind, uintptr_t address, const Steps& steps) {
  const int64_t item = lowbit::mask_bytes(kind);
  return {.kind = kind,
          .data = pointer<const uint8_t>(address),
          .batch_step = steps[0] * item,
          .head_step = steps[1] * item,
          .query_step = steps[2] * item};
}

// Attention by a target, for calls that differ in where tensors are and in how many keys there are.
// `sizes`: batch, heads, key heads, queries, size, value size. A cap or sinks of 0 stand for none.
struct AttentionTarget {
  void (*run)(const lowbit::Attention&);
  lowbit::Attention op{};

  AttentionTarget(std::string_view target, const std::array<int64_t, 6>& sizes, float scale,
                  float cap, bool causal, bool bfloat16)
      : run(lowbit::find_target(lowbit::attention_targets, target)) {
    const auto [batch, heads, key_heads, queries, size, value_size] = sizes;
    if (key_heads < 1 || heads % key_heads) {
      throw std::invalid_argument(std::to_string(heads) + " heads cannot share " +
                                  std::to_string(key_heads) + " key heads");
    }
    op.batch = batch;
    op.heads = heads;
    op.key_heads = key_heads;
    op.queries = queries;
    op.size = size;
    op.value_size = value_size;
    op.scale = scale;
    op.cap = cap;
    op.causal = causal;
    op.bfloat16 = bfloat16;
  }

  void operator()(uintptr_t query, const Steps& query_steps, uintptr_t key, const Steps& key_steps,
                  uintptr_t value, const Steps& value_steps, int64_t keys, lowbit::MaskKind kind,
                  uintptr_t mask, const Steps& mask_steps, uintptr_t sinks, uintptr_t y) const {
    lowbit::Attention call = op;
    call.query = token_rows(query, query_steps);
    call.key = token_rows(key, key_steps);
    call.value = token_rows(value, value_steps);
    call.keys = keys;
    call.mask = mask_at(kind, mask, mask_steps);
    call.sinks = pointer<const float>(sinks);
    call.y = pointer<void>(y);
    run(call);
  }

  // Appends keys and values of `tokens` tokens to a KV cache, of whose `capacity` the first `used`
  // are in use; queries attend to all of them.
  void append(uintptr_t query, const Steps& query_steps, uintptr_t key, const Steps& key_steps,
              uintptr_t value, const Steps& value_steps, int64_t tokens, uintptr_t cached_keys,
              uintptr_t cached_values, int64_t capacity, int64_t used, lowbit::MaskKind kind,
              uintptr_t mask, const Steps& mask_steps, uintptr_t sinks, uintptr_t y) const {
    const int64_t bytes = op.bfloat16 ? 2 : 4;
    const lowbit::KvCache keys{.data = pointer<uint8_t>(cached_keys),
                               .capacity = capacity,
                               .size = op.size,
                               .bytes = bytes};
    const lowbit::KvCache values{.data = pointer<uint8_t>(cached_values),
                                 .capacity = capacity,
                                 .size = op.value_size,
                                 .bytes = bytes};
    keys.append(token_rows(key, key_steps), op.batch, op.key_heads, used, tokens);
    values.append(token_rows(value, value_steps), op.batch, op.key_heads, used, tokens);
    lowbit::Attention call = op;
    call.query = token_rows(query, query_steps);
    call.key = keys.rows(op.key_heads);
    call.value = values.rows(op.key_heads);
    call.keys = used + tokens;
    call.mask = mask_at(kind, mask, mask_steps);
    call.sinks = pointer<const float>(sinks);
    call.y = pointer<void>(y);
    run(call);
  }
};

// A program (program.h) as Python builds it: layers and tables by their addresses, which must stay.
struct Program {
  using Columns = std::array<int64_t, 2>;
  lowbit::Program program;

  static lowbit::Columns columns(const Columns& x) { return {static_cast<int>(x[0]), x[1]}; }

  void linear(const LinearTarget& target, const std::vector<const Layer*>& layers,
              const std::vector<uintptr_t>& places, int x, const std::vector<int>& ys, int limbs) {
    if (places.size() != 2 * layers.size()) {
      throw std::invalid_argument(std::to_string(places.size()) + " places for " +
                                  std::to_string(layers.size()) +
                                  " layers: each has two, of its codes and its bias");
    }
    std::vector<lowbit::Linear> ops;
    for (size_t i = 0; i < layers.size(); ++i) {
      ops.push_back(layers[i]->linear(0, places[2 * i], places[2 * i + 1], 0, 0, limbs));
    }
    program.linear(target.run, std::move(ops), x, ys);
  }

  void lookup(uintptr_t numbers, int64_t rows, int64_t columns, int ids, int y) {
    program.lookup(
        {.numbers = pointer<const float>(numbers), .packed = {}, .rows = rows, .columns = columns},
        ids, y, "scalar");
  }

  void decode(const Weight& weight, uintptr_t codes, int ids, int y, std::string_view target) {
    program.lookup({.numbers = nullptr,
                    .packed = weight.decoding(codes, 0, 0, 0),
                    .rows = weight.form.outputs,
                    .columns = weight.form.inputs},
                   ids, y, target);
  }

  void normalize(std::string_view target, int64_t columns, uintptr_t weight, uintptr_t bias,
                 float epsilon, bool centered, int x, int residual, int sum, int y) {
    lowbit::NormalizeRows op{};
    op.columns = columns;
    op.weight = pointer<const float>(weight);
    op.bias = pointer<const float>(bias);
    op.epsilon = epsilon;
    op.centered = centered;
    program.normalize(op, target, x, residual, sum, y);
  }

  // `sizes`: heads, key heads, size, value size. Operands are a matrix and its first column.
  void attention(std::string_view target, const std::array<int64_t, 4>& sizes, float scale,
                 bool causal, int64_t window, const Columns& query, const Columns& key,
                 const Columns& value, int bias, int y) {
    lowbit::Attention op{};
    op.heads = sizes[0];
    op.key_heads = sizes[1];
    op.size = sizes[2];
    op.value_size = sizes[3];
    op.scale = scale;
    op.causal = causal;
    op.window = window;
    program.attention(op, target, columns(query), columns(key), columns(value), bias, y);
  }

  void rotate(const Columns& x, int64_t heads, int64_t size, int cos, int sin, int y) {
    program.rotate(columns(x), heads, size, cos, sin, y);
  }

  void gate(lowbit::Nonlinearity nonlinearity, std::string_view target, const Columns& a,
            const Columns& b, int y) {
    program.gate(nonlinearity, target, columns(a), columns(b), y);
  }

  uintptr_t place(int matrix, int64_t tokens, uintptr_t arena) const {
    lowbit::ProgramCall call{};
    call.tokens = tokens;
    call.arena = pointer<uint8_t>(arena);
    return reinterpret_cast<uintptr_t>(program.place(matrix, call));
  }

  // Addresses; `biases` are float32 [heads, length, length], of which a call has one `length`.
  void run(int64_t tokens, int64_t sequences, uintptr_t starts, uintptr_t places,
           const std::vector<uintptr_t>& ids, const std::vector<uintptr_t>& inputs,
           const std::vector<uintptr_t>& results, const std::vector<uintptr_t>& biases,
           int64_t length, uintptr_t arena, int64_t first, int64_t last) const {
    lowbit::ProgramCall call{};
    call.tokens = tokens;
    call.sequences = sequences;
    call.starts = pointer<const int64_t>(starts);
    call.places = pointer<const int64_t>(places);
    for (const uintptr_t at : ids) call.ids.push_back(pointer<const int64_t>(at));
    for (const uintptr_t at : inputs) call.inputs.push_back(pointer<const float>(at));
    for (const uintptr_t at : results) call.results.push_back(pointer<float>(at));
    for (const uintptr_t at : biases) {
      call.biases.push_back(
          mask_at(lowbit::MaskKind::additive, at, {0, length * length, length, 1}));
    }
    call.arena = pointer<uint8_t>(arena);
    program.run(call, first, last);
  }
};

// Small operations in the order in which they are given.
struct Sequence {
  std::vector<std::function<void()>> ops;

  void elementwise(lowbit::ElementwiseOp op, const Steps& sizes, uintptr_t y, const Steps& y_steps,
                   uintptr_t a, const Steps& a_steps, uintptr_t b, const Steps& b_steps) {
    lowbit::Elementwise one{};
    one.op = op;
    one.y = pointer<float>(y);
    one.a = pointer<const float>(a);
    one.b = pointer<const float>(b);
    std::copy(sizes.begin(), sizes.end(), one.sizes);
    std::copy(y_steps.begin(), y_steps.end(), one.y_steps);
    std::copy(a_steps.begin(), a_steps.end(), one.a_steps);
    std::copy(b_steps.begin(), b_steps.end(), one.b_steps);
    ops.emplace_back([one] { lowbit::elementwise(one); });
  }

  void torch_layer_norm(std::string_view target, uintptr_t x, uintptr_t weight, uintptr_t bias,
                        uintptr_t y, int64_t rows, int64_t columns, float epsilon) {
    const lowbit::TorchLayerNorm op{.x = pointer<const float>(x),
                                    .weight = pointer<const float>(weight),
                                    .bias = pointer<const float>(bias),
                                    .y = pointer<float>(y),
                                    .rows = rows,
                                    .columns = columns,
                                    .epsilon = epsilon};
    const auto run = lowbit::find_target(lowbit::torch_layer_norm_targets, target);
    ops.emplace_back([run, op] { run(op); });
  }

  void operator()() const {
    for (const auto& op : ops) op();
  }
};

// (name, feature) of an operator's targets that `wanted` accepts, best first.
template <class Targets, class Wanted>
nb::list best_first(const Targets& targets, Wanted wanted) {
  nb::list all;
  for (size_t i = std::size(targets); i-- > 0;) {
    if (wanted(targets[i])) all.append(nb::make_tuple(targets[i].name, targets[i].feature));
  }
  return all;
}

template <class Targets>
nb::list best_first(const Targets& targets) {
  return best_first(targets, [](const auto&) { return true; });
}

}  // namespace

NB_MODULE(_native, m) {
  // A model that is alive when Python ends holds native objects, which is no fault of anybody's.
  nb::set_leak_warnings(false);
  const nb::call_guard<nb::gil_scoped_release> without_gil;
  m.def("features", &lowbit::cpu_features);
  nb::dict targets;
  targets["linear"] = best_first(lowbit::linear_targets);
  targets["experts"] = best_first(lowbit::experts_targets);
  targets["quantize_rows"] = best_first(lowbit::quantize_rows_targets);
  targets["decode_packed"] = best_first(lowbit::decode_packed_targets);
  targets["normalize_rows"] = best_first(lowbit::normalize_rows_targets);
  targets["gate_rows"] = best_first(lowbit::gate_rows_targets);
  targets["torch_layer_norm"] = best_first(lowbit::torch_layer_norm_targets);
  targets["sequence_attention"] = best_first(lowbit::sequence_attention_targets);
  using lowbit::attention_targets;
  targets["attention_float32"] =
      best_first(attention_targets, [](const auto& target) { return !target.tiles; });
  targets["attention_bfloat16"] =
      best_first(attention_targets, [](const auto& target) { return target.tiles; });
  m.attr("targets") = targets;
  nb::list prefer_fma;
  for (const auto& target : lowbit::linear_float_targets) {
    if (target.preferred) prefer_fma.append(target.name);
  }
  m.attr("prefer_fma") = prefer_fma;
  m.def("on_torch_threads", &lowbit::on_torch_threads);
  m.def(
      "same_bytes",
      [](uintptr_t a, uintptr_t b, size_t size) {
        return std::memcmp(pointer<const void>(a), pointer<const void>(b), size) == 0;
      },
      "a"_a, "b"_a, "size"_a, without_gil);
  m.def("quantize_rows", &quantize_rows, "x"_a, "codes"_a, "scales"_a, "rows"_a, "cols"_a,
        "group_size"_a, "target"_a, without_gil);

  nb::enum_<lowbit::MaskKind>(m, "MaskKind")
      .value("none", lowbit::MaskKind::none)
      .value("boolean", lowbit::MaskKind::boolean)
      .value("additive", lowbit::MaskKind::additive)
      .value("additive_bfloat16", lowbit::MaskKind::additive_bfloat16);
  nb::class_<AttentionTarget>(m, "AttentionTarget")
      .def(nb::init<std::string_view, const std::array<int64_t, 6>&, float, float, bool, bool>(),
           "target"_a, "sizes"_a, "scale"_a, "cap"_a, "causal"_a, "bfloat16"_a)
      .def("__call__", &AttentionTarget::operator(), "query"_a, "query_steps"_a, "key"_a,
           "key_steps"_a, "value"_a, "value_steps"_a, "keys"_a, "kind"_a, "mask"_a, "mask_steps"_a,
           "sinks"_a, "y"_a, without_gil)
      .def("append", &AttentionTarget::append, "query"_a, "query_steps"_a, "key"_a, "key_steps"_a,
           "value"_a, "value_steps"_a, "tokens"_a, "cached_keys"_a, "cached_values"_a, "capacity"_a,
           "used"_a, "kind"_a, "mask"_a, "mask_steps"_a, "sinks"_a, "y"_a, without_gil);

  nb::enum_<lowbit::ElementwiseOp>(m, "ElementwiseOp")
      .value("add", lowbit::ElementwiseOp::add)
      .value("multiply", lowbit::ElementwiseOp::multiply)
      .value("negate", lowbit::ElementwiseOp::negate)
      .value("copy", lowbit::ElementwiseOp::copy)
      .value("inverse_root", lowbit::ElementwiseOp::inverse_root);
  nb::class_<Sequence>(m, "Sequence")
      .def(nb::init<>())
      .def("elementwise", &Sequence::elementwise, "op"_a, "sizes"_a, "y"_a, "y_steps"_a, "a"_a,
           "a_steps"_a, "b"_a, "b_steps"_a)
      .def("torch_layer_norm", &Sequence::torch_layer_norm, "target"_a, "x"_a, "weight"_a, "bias"_a,
           "y"_a, "rows"_a, "columns"_a, "epsilon"_a)
      .def("__call__", &Sequence::operator(), without_gil);

  nb::class_<PackedLayout>(m, "PackedLayout")
      .def(
          "__init__",
          [](PackedLayout* form, int64_t outputs, int64_t inputs, int64_t group, int bits,
             bool binary) {
            if (group < 1) {
              throw std::invalid_argument("group " + std::to_string(group) + " is less than 1");
            }
            new (form) PackedLayout{.outputs = outputs,
                                    .inputs = inputs,
                                    .group = group,
                                    .bits = bits,
                                    .binary = binary};
          },
          "outputs"_a, "inputs"_a, "group"_a, "bits"_a, "binary"_a)
      .def("panel_bytes", &PackedLayout::panel_bytes)
      .def(
          "pack",
          [](const PackedLayout& form, uintptr_t stored, int flip, uintptr_t codes) {
            lowbit::pack_codes(form, pointer<const uint8_t>(stored), static_cast<uint8_t>(flip),
                               pointer<uint8_t>(codes));
          },
          "stored"_a, "flip"_a, "codes"_a, without_gil)
      .def(
          "unpack",
          [](const PackedLayout& form, uintptr_t codes, int flip, uintptr_t stored) {
            lowbit::unpack_codes(form, pointer<const uint8_t>(codes), static_cast<uint8_t>(flip),
                                 pointer<uint8_t>(stored));
          },
          "codes"_a, "flip"_a, "stored"_a, without_gil);

  nb::class_<Weight>(m, "Weight")
      .def(
          "__init__",
          [](Weight* weight, const PackedLayout& form, int64_t scale, int64_t zero_point,
             int64_t offset, int planes, bool half_scale, int64_t sub_scale, int64_t sub_offset,
             int64_t sub_groups, int sub_bits, int sub_lowest) {
            if (sub_groups < 1 || form.groups() % sub_groups) {
              throw std::invalid_argument("sub_groups " + std::to_string(sub_groups) +
                                          " do not divide " + std::to_string(form.groups()) +
                                          " groups");
            }
            new (weight) Weight{.form = form,
                                .scale = scale,
                                .zero_point = zero_point,
                                .offset = offset,
                                .planes = planes,
                                .half_scale = half_scale,
                                .sub_scale = sub_scale,
                                .sub_offset = sub_offset,
                                .sub_groups = sub_groups,
                                .sub_bits = sub_bits,
                                .sub_lowest = sub_lowest};
          },
          "form"_a, "scale"_a, "zero_point"_a, "offset"_a, "planes"_a, "half_scale"_a,
          "sub_scale"_a = 0, "sub_offset"_a = 0, "sub_groups"_a = 1, "sub_bits"_a = 0,
          "sub_lowest"_a = 0)
      .def("decode", &Weight::decode, "codes"_a, "rows"_a, "count"_a, "out"_a, "target"_a,
           without_gil);

  nb::enum_<lowbit::Nonlinearity>(m, "Nonlinearity")
      .value("identity", lowbit::Nonlinearity::identity)
      .value("gelu", lowbit::Nonlinearity::gelu)
      .value("gelu_tanh", lowbit::Nonlinearity::gelu_tanh)
      .value("quick_gelu", lowbit::Nonlinearity::quick_gelu)
      .value("relu", lowbit::Nonlinearity::relu)
      .value("silu", lowbit::Nonlinearity::silu);
  nb::class_<Layer>(m, "Layer")
      .def(
          "__init__",
          [](Layer* layer, const Weight& weight, lowbit::Nonlinearity nonlinearity, float scale,
             int zero_point, int lowest, bool bfloat16, bool bfloat16_bias) {
            new (layer) Layer{.weight = weight,
                              .nonlinearity = nonlinearity,
                              .input = {.scale = scale, .zero_point = zero_point, .lowest = lowest},
                              .bfloat16 = bfloat16,
                              .bfloat16_bias = bfloat16_bias};
          },
          "weight"_a, "nonlinearity"_a, "scale"_a = 0.0f, "zero_point"_a = 0, "lowest"_a = -127,
          "bfloat16"_a = false, "bfloat16_bias"_a = false);
  nb::class_<LinearTarget>(m, "LinearTarget")
      .def(nb::init<std::string_view, bool>(), "name"_a, "fma"_a)
      .def("__call__", &LinearTarget::operator(), "layer"_a, "x"_a, "codes"_a, "bias"_a, "y"_a,
           "rows"_a, "limbs"_a, without_gil)
      .def("together", &LinearTarget::together, "layers"_a, "x"_a, "places"_a, "rows"_a, "limbs"_a,
           without_gil);
  nb::class_<ExpertsTarget>(m, "ExpertsTarget")
      .def(nb::init<std::string_view, bool>(), "name"_a, "fma"_a)
      .def("__call__", &ExpertsTarget::operator(), "layer"_a, "gated"_a, "experts"_a, "stride"_a,
           "x"_a, "ids"_a, "rows"_a, "slots"_a, "codes"_a, "bias"_a, "y"_a, "limbs"_a,
           "weights"_a = 0, "bfloat16_weights"_a = false, without_gil);

  nb::class_<Program>(m, "Program")
      .def(nb::init<>())
      .def(
          "in_arena",
          [](Program& p, int64_t columns, int64_t first) {
            return p.program.in_arena(columns, first);
          },
          "columns"_a, "first"_a)
      .def(
          "input", [](Program& p, int64_t columns) { return p.program.input(columns); },
          "columns"_a)
      .def(
          "result", [](Program& p, int64_t columns) { return p.program.result(columns); },
          "columns"_a)
      .def("linear", &Program::linear, "target"_a, "layers"_a, "places"_a, "x"_a, "ys"_a, "limbs"_a)
      .def("lookup", &Program::lookup, "numbers"_a, "rows"_a, "columns"_a, "ids"_a, "y"_a)
      .def("decode", &Program::decode, "weight"_a, "codes"_a, "ids"_a, "y"_a, "target"_a)
      .def(
          "add", [](Program& p, int a, int b, int y) { p.program.add(a, b, y); }, "a"_a, "b"_a,
          "y"_a)
      .def("normalize", &Program::normalize, "target"_a, "columns"_a, "weight"_a, "bias"_a,
           "epsilon"_a, "centered"_a, "x"_a, "residual"_a, "sum"_a, "y"_a)
      .def("attention", &Program::attention, "target"_a, "sizes"_a, "scale"_a, "causal"_a,
           "window"_a, "query"_a, "key"_a, "value"_a, "bias"_a, "y"_a)
      .def("rotate", &Program::rotate, "x"_a, "heads"_a, "size"_a, "cos"_a, "sin"_a, "y"_a)
      .def("gate", &Program::gate, "nonlinearity"_a, "target"_a, "a"_a, "b"_a, "y"_a)
      .def(
          "arena_bytes",
          [](const Program& p, int64_t tokens) { return p.program.arena_bytes(tokens); },
          "tokens"_a)
      .def("place", &Program::place, "matrix"_a, "tokens"_a, "arena"_a)
      .def("run", &Program::run, "tokens"_a, "sequences"_a, "starts"_a, "places"_a, "ids"_a,
           "inputs"_a, "results"_a, "biases"_a, "length"_a, "arena"_a, "first"_a, "last"_a,
           without_gil);
}

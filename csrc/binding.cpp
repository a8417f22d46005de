// The Python face of the kernels. Tensors arrive as addresses; the callers in lowbit/kernels vouch
// for shapes, dtypes and contiguity.

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/vector.h>

#include "cpu.h"
#include "linear_int8.h"
#include "parallel.h"
#include "quantize_rows.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

void quantize_rows(uintptr_t x, uintptr_t codes, uintptr_t scales, int64_t rows, int64_t cols,
                   int64_t group_size, std::string_view path) {
  if (group_size < 1) {
    throw std::invalid_argument("group_size " + std::to_string(group_size) + " is less than 1");
  }
  lowbit::find_path(lowbit::quantize_rows_paths, path)(
      {pointer<const float>(x), pointer<int8_t>(codes), pointer<float>(scales), rows, cols,
       group_size});
}

void linear_int8(uintptr_t x, uintptr_t codes, uintptr_t scale, uintptr_t zero_point,
                 uintptr_t bias, uintptr_t y, int64_t rows, int64_t inputs, int64_t outputs,
                 bool half_scale, bool one_scale, std::string_view path) {
  lowbit::find_path(lowbit::linear_int8_paths, path)(
      {pointer<const float>(x), pointer<const uint8_t>(codes), pointer<const void>(scale),
       pointer<const uint8_t>(zero_point), pointer<const float>(bias), pointer<float>(y), rows,
       inputs, outputs, half_scale, one_scale});
}

}  // namespace

NB_MODULE(_native, m) {
  m.def("features", &lowbit::cpu_features);
  m.def("on_torch_threads", &lowbit::on_torch_threads);
  m.def("quantize_rows", &quantize_rows, "x"_a, "codes"_a, "scales"_a, "rows"_a, "cols"_a,
        "group_size"_a, "path"_a, nb::call_guard<nb::gil_scoped_release>());
  m.def("linear_int8", &linear_int8, "x"_a, "codes"_a, "scale"_a, "zero_point"_a, "bias"_a, "y"_a,
        "rows"_a, "inputs"_a, "outputs"_a, "half_scale"_a, "one_scale"_a, "path"_a,
        nb::call_guard<nb::gil_scoped_release>());
}

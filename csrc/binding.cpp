// The Python face of the kernels. Tensors arrive as addresses; the callers in lowbit/kernels vouch
// for shapes, dtypes and contiguity.

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/vector.h>

#include "cpu.h"
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

}  // namespace

NB_MODULE(_native, m) {
  m.def("features", &lowbit::cpu_features);
  m.def("on_torch_threads", &lowbit::on_torch_threads);
  m.def("quantize_rows", &quantize_rows, "x"_a, "codes"_a, "scales"_a, "rows"_a, "cols"_a,
        "group_size"_a, "path"_a, nb::call_guard<nb::gil_scoped_release>());
}

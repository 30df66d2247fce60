// Registrations only: checks and documentation of each operation live beside it. The signatures
// Python sees are in engine/_native.pyi.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "normal_op.h"

namespace py = pybind11;
using namespace pybind11::literals;

PYBIND11_MODULE(_native, m) {
    m.doc() = "Compiled operations of engine. Private: use the Python functions that call them.";

    m.def("normal", &edm::normal, "seeds_ptr"_a, "draws_ptr"_a, "out_ptr"_a, "samples"_a, "elements"_a,
          "threads"_a = 1, "isa"_a = "auto", "first_quad"_a = 0,
          py::call_guard<py::gil_scoped_release>());
    m.def("normal_isas", &edm::normal_isas);
}

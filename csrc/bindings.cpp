// Registrations only: checks and documentation of each operation live beside it. The signatures
// Python sees are in engine/_native.pyi.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>

#include "advance_op.h"
#include "attention_op.h"
#include "group_norm_op.h"
#include "linear_op.h"
#include "normal_op.h"
#include "winograd_op.h"

#ifdef EDM_CUDA
#include "cuda_ops.h"
#endif

namespace py = pybind11;
using namespace pybind11::literals;

namespace {

void register_advance_call(py::module_& m) {
    py::enum_<edm::Dtype>(m, "Dtype")
        .value("float64", edm::kFloat64)
        .value("float32", edm::kFloat32)
        .value("float16", edm::kFloat16)
        .value("bfloat16", edm::kBFloat16);
    py::class_<edm::Buffer>(m, "Buffer")
        .def(py::init([](std::uintptr_t address, edm::Dtype dtype, std::int64_t batch, std::int64_t channel,
                         std::int64_t pixel) { return edm::Buffer{address, dtype, batch, channel, pixel}; }),
             "address"_a, "dtype"_a, "batch"_a = 0, "channel"_a = 0, "pixel"_a = 1)
        .def_readonly("address", &edm::Buffer::address)
        .def_readonly("dtype", &edm::Buffer::dtype)
        .def_readonly("batch", &edm::Buffer::batch)
        .def_readonly("channel", &edm::Buffer::channel)
        .def_readonly("pixel", &edm::Buffer::pixel);
    py::class_<edm::AdvanceCall> call(m, "AdvanceCall");
    call.def(py::init<>());
#define EDM_PROPERTY(name) call.def_readwrite(#name, &edm::AdvanceCall::name);
    EDM_PROPERTY(samples) EDM_PROPERTY(channels) EDM_PROPERTY(pixels)
    EDM_PROPERTY(table) EDM_PROPERTY(base_row) EDM_PROPERTY(rows) EDM_PROPERTY(k)
    EDM_PROPERTY(state_dtype) EDM_PROPERTY(x) EDM_PROPERTY(slots) EDM_PROPERTY(slot_count)
    EDM_PROPERTY(F) EDM_PROPERTY(G) EDM_PROPERTY(net_in) EDM_PROPERTY(copies) EDM_PROPERTY(c_noise)
    EDM_PROPERTY(bad_row) EDM_PROPERTY(guide_scale) EDM_PROPERTY(known)
    EDM_PROPERTY(seeds) EDM_PROPERTY(latents) EDM_PROPERTY(eps) EDM_PROPERTY(draws)
#undef EDM_PROPERTY
}

void register_group_norm(py::module_& m) {
    py::enum_<edm::Resampling>(m, "Resampling")
        .value("none", edm::kNone)
        .value("up", edm::kUp)
        .value("down", edm::kDown);
    m.def(
        "group_norm_cpu",
        [](std::uintptr_t x, std::uintptr_t beside, std::uintptr_t weight, std::uintptr_t bias, std::uintptr_t out,
           std::uintptr_t keep, edm::Dtype dtype, const std::array<std::int64_t, 5>& shape, std::int64_t groups, float eps,
           bool silu, std::uintptr_t add, std::int64_t add_stride, std::uintptr_t scale, std::uintptr_t shift,
           std::int64_t scale_stride, float keep_scale, edm::Resampling resampling, const std::vector<float>& filter,
           std::int64_t threads, const std::string& isa) {
            edm::GroupNormCall call{shape[0], shape[1], shape[2], shape[3] + shape[4], shape[4], groups, dtype, x, beside,
                                    weight, bias, out, keep, add, scale, shift, add_stride, scale_stride, eps, keep_scale,
                                    silu, resampling, static_cast<int>(filter.size()), {}};
            std::copy_n(filter.begin(), std::min<std::size_t>(filter.size(), edm::kMostTaps), call.filter);
            const py::gil_scoped_release released;
            edm::group_norm_cpu(call, threads, isa);
        },
        "x"_a, "beside"_a, "weight"_a, "bias"_a, "out"_a, "keep"_a, "dtype"_a, "shape"_a, "groups"_a, "eps"_a, "silu"_a,
        "add"_a, "add_stride"_a, "scale"_a, "shift"_a, "scale_stride"_a, "keep_scale"_a, "resampling"_a, "filter"_a,
        "threads"_a = 1, "isa"_a = "auto");
}

}  // namespace

PYBIND11_MODULE(_native, m) {
    m.doc() = "Compiled operations of engine. Private: use the Python functions that call them.";

    m.def("normal", &edm::normal, "seeds_ptr"_a, "draws_ptr"_a, "out_ptr"_a, "samples"_a, "elements"_a,
          "threads"_a = 1, "isa"_a = "auto", "first_quad"_a = 0,
          py::call_guard<py::gil_scoped_release>());
    m.def("normal_isas", &edm::normal_isas);

    register_advance_call(m);
    register_group_norm(m);
    m.def(
        "linear_cpu",
        [](std::uintptr_t x, std::uintptr_t weight, std::uintptr_t bias, std::uintptr_t add, std::uintptr_t out,
           std::int64_t rows, std::int64_t inputs, std::int64_t outputs, bool silu, std::int64_t threads,
           const std::string& isa) {
            edm::linear_cpu({rows, inputs, outputs, x, weight, bias, add, out, silu}, threads, isa);
        },
        "x"_a, "weight"_a, "bias"_a, "add"_a, "out"_a, "rows"_a, "inputs"_a, "outputs"_a, "silu"_a, "threads"_a = 1,
        "isa"_a = "auto", py::call_guard<py::gil_scoped_release>());
    m.def(
        "winograd_cpu",
        [](std::uintptr_t x, std::uintptr_t weight, std::uintptr_t bias, std::uintptr_t add, std::uintptr_t out,
           edm::Dtype dtype, const std::array<std::int64_t, 5>& shape, int m, std::int64_t threads, const std::string& isa) {
            edm::winograd_cpu({shape[0], shape[1], shape[2], shape[3], shape[4], m, dtype, x, weight, bias, add, out},
                              threads, isa);
        },
        "x"_a, "weight"_a, "bias"_a, "add"_a, "out"_a, "dtype"_a, "shape"_a, "m"_a, "threads"_a = 1, "isa"_a = "auto",
        py::call_guard<py::gil_scoped_release>());
    m.def(
        "attention_cpu",
        [](std::uintptr_t q, std::uintptr_t k, std::uintptr_t v, std::uintptr_t out, edm::Dtype dtype,
           const std::array<std::int64_t, 4>& shape, const std::array<std::int64_t, 3>& strides,
           const std::array<std::int64_t, 3>& out_strides, std::int64_t threads, const std::string& isa) {
            edm::attention_cpu({shape[0], shape[1], shape[2], shape[3], dtype, q, k, v, out, strides[0], strides[1],
                                strides[2], out_strides[0], out_strides[1], out_strides[2]},
                               threads, isa);
        },
        "q"_a, "k"_a, "v"_a, "out"_a, "dtype"_a, "shape"_a, "strides"_a, "out_strides"_a, "threads"_a = 1,
        "isa"_a = "auto", py::call_guard<py::gil_scoped_release>());
#ifdef EDM_X86_64
    m.def("is_amd", [] { return __builtin_cpu_is("amd") != 0; });
#else
    m.def("is_amd", [] { return false; });
#endif
    m.attr("sources") = EDM_SOURCES;
    m.def("row_columns", &edm::row_columns);
    m.def("advance_cpu", &edm::advance_cpu, "call"_a, "threads"_a = 1, "isa"_a = "auto",
          py::call_guard<py::gil_scoped_release>());
    m.def("run_of", [](std::int64_t pixels, std::int64_t channel, std::int64_t index, int width) {
        const edm::Run run = edm::run_of(pixels, channel, index, width);
        return py::make_tuple(run.first, run.low, run.high);
    });
    m.def("run_count", &edm::run_count);
    m.def("offset_of", &edm::offset_of);

#ifdef EDM_CUDA
    m.attr("cuda_built") = true;
    m.def("advance_cuda", &edm::advance_cuda, "call"_a, "device"_a, "stream"_a,
          py::call_guard<py::gil_scoped_release>());
    m.def("normal_cuda", &edm::normal_cuda, "seeds_ptr"_a, "draws_ptr"_a, "out_ptr"_a, "samples"_a,
          "elements"_a, "device"_a, "stream"_a, py::call_guard<py::gil_scoped_release>());
#else
    m.attr("cuda_built") = false;
#endif
}

// Registrations only: checks and documentation of each operation live beside it. The signatures
// Python sees are in engine/_native.pyi.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <tuple>

#include "advance_op.h"
#include "normal_op.h"
#include "program.h"

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

// A call of a network's operation with these addresses, in the order of its addresses().
template <class Call, std::size_t n>
Call with_addresses(Call call, const std::array<std::uintptr_t, n>& addresses) {
    const auto to = call.addresses();
    static_assert(std::tuple_size_v<decltype(to)> == n);
    for (std::size_t i = 0; i < n; ++i) *to[i] = addresses[i];
    return call;
}

template <std::size_t n>
using Addresses = std::array<std::uintptr_t, n>;
template <std::size_t n>
using Sizes = std::array<std::int64_t, n>;

edm::GroupNormCall group_norm_call(const Addresses<9>& addresses, edm::Dtype dtype, const Sizes<5>& shape,
                                   std::int64_t groups, float eps, bool silu, std::int64_t add_stride,
                                   std::int64_t scale_stride, float keep_scale, edm::Resampling resampling,
                                   const std::vector<float>& filter) {
    edm::GroupNormCall call;
    call.samples = shape[0], call.height = shape[1], call.width = shape[2], call.channels = shape[3] + shape[4];
    call.beside_channels = shape[4], call.groups = groups, call.dtype = dtype, call.eps = eps, call.silu = silu;
    call.add_stride = add_stride, call.scale_stride = scale_stride, call.keep_scale = keep_scale;
    call.resampling = resampling, call.taps = static_cast<int>(filter.size());
    std::copy_n(filter.begin(), std::min<std::size_t>(filter.size(), edm::kMostTaps), call.filter);
    return with_addresses(call, addresses);
}

edm::LinearCall linear_call(const Addresses<5>& addresses, const Sizes<3>& shape, bool silu) {
    edm::LinearCall call;
    call.rows = shape[0], call.inputs = shape[1], call.outputs = shape[2], call.silu = silu;
    return with_addresses(call, addresses);
}

edm::WinogradCall winograd_call(const Addresses<5>& addresses, edm::Dtype dtype, const Sizes<5>& shape, int m) {
    edm::WinogradCall call;
    call.samples = shape[0], call.height = shape[1], call.width = shape[2], call.inputs = shape[3];
    call.outputs = shape[4], call.m = m, call.dtype = dtype;
    return with_addresses(call, addresses);
}

edm::AttentionCall attention_call(const Addresses<4>& addresses, edm::Dtype dtype, const Sizes<4>& shape,
                                  const Sizes<3>& strides, const Sizes<3>& out_strides) {
    edm::AttentionCall call;
    call.samples = shape[0], call.heads = shape[1], call.length = shape[2], call.channels = shape[3], call.dtype = dtype;
    call.sample_stride = strides[0], call.head_stride = strides[1], call.row_stride = strides[2];
    call.out_sample_stride = out_strides[0], call.out_head_stride = out_strides[1], call.out_row_stride = out_strides[2];
    return with_addresses(call, addresses);
}

void register_network_calls(py::module_& m) {
    py::enum_<edm::Resampling>(m, "Resampling")
        .value("none", edm::kNone)
        .value("up", edm::kUp)
        .value("down", edm::kDown);
    py::class_<edm::GroupNormCall>(m, "GroupNormCall")
        .def(py::init(&group_norm_call), "addresses"_a, "dtype"_a, "shape"_a, "groups"_a, "eps"_a, "silu"_a,
             "add_stride"_a, "scale_stride"_a, "keep_scale"_a, "resampling"_a, "filter"_a);
    py::class_<edm::LinearCall>(m, "LinearCall")
        .def(py::init(&linear_call), "addresses"_a, "shape"_a, "silu"_a);
    py::class_<edm::WinogradCall>(m, "WinogradCall")
        .def(py::init(&winograd_call), "addresses"_a, "dtype"_a, "shape"_a, "m"_a);
    py::class_<edm::AttentionCall>(m, "AttentionCall")
        .def(py::init(&attention_call), "addresses"_a, "dtype"_a, "shape"_a, "strides"_a, "out_strides"_a);
    m.def("run_cpu", &edm::run_cpu, "call"_a, "threads"_a = 1, "isa"_a = "auto",
          py::call_guard<py::gil_scoped_release>());
    py::class_<edm::Program>(m, "Program")
        .def(py::init<>())
        .def("add", &edm::Program::add, "call"_a, "bases"_a)
        .def("run", &edm::Program::run, "bases"_a, "first"_a, "last"_a, "threads"_a = 1, "isa"_a = "auto",
             py::call_guard<py::gil_scoped_release>())
        .def("__len__", &edm::Program::size);
}

}  // namespace

PYBIND11_MODULE(_native, m) {
    m.doc() = "Compiled operations of engine. Private: use the Python functions that call them.";

    m.def("normal", &edm::normal, "seeds_ptr"_a, "draws_ptr"_a, "out_ptr"_a, "samples"_a, "elements"_a,
          "threads"_a = 1, "isa"_a = "auto", "first_quad"_a = 0,
          py::call_guard<py::gil_scoped_release>());
    m.def("normal_isas", &edm::normal_isas);

    register_advance_call(m);
    register_network_calls(m);
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

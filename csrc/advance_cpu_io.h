// Where the elements of a run lie on the CPU, for advance.h: in place where they are contiguous, gathered, converted and
// taken apart where they are not. Included by advance_isa.cpp alone, once for each instruction set; nothing from the
// standard library is instantiated here, for the reason given in hd.h.
#pragma once

#include "advance.h"
#include "advance_op.h"
#include "half.h"
#include "normal_op.h"

#ifdef EDM_X86_64
#include <immintrin.h>
#endif


namespace edm {
namespace {

constexpr int W = kCpuRun;
constexpr int kMostInterleaved = 4;    // channels of an image or a latent

template <class S>
S* pointer(const Buffer& t, std::int64_t offset) {
    return reinterpret_cast<S*>(t.address) + offset;
}

// One channel of n pixels, and back.
template <class S>
void gather(const S* from, std::int64_t stride, int n, S* __restrict__ to) {
    if (stride == 1) {
        memcpy(to, from, static_cast<std::size_t>(n) * sizeof(S));
    } else {
        for (int i = 0; i < n; ++i) to[i] = from[i * stride];
    }
}

template <class S>
void scatter(const S* __restrict__ from, std::int64_t stride, int n, S* to) {
    if (stride == 1) {
        memcpy(to, from, static_cast<std::size_t>(n) * sizeof(S));
    } else {
        for (int i = 0; i < n; ++i) to[i * stride] = from[i];
    }
}

void widen(const std::uint16_t* half, Dtype dtype, int n, float* __restrict__ to) {
    if (dtype == kFloat16) {
        for (int i = 0; i < n; ++i) to[i] = f16_to_float(half[i]);
    } else {
        for (int i = 0; i < n; ++i) to[i] = bf16_to_float(half[i]);
    }
}

void narrow(const float* __restrict__ from, Dtype dtype, int n, std::uint16_t* __restrict__ half) {
    if (dtype == kFloat16) {
        for (int i = 0; i < n; ++i) half[i] = float_to_f16(from[i]);
    } else {
        for (int i = 0; i < n; ++i) half[i] = float_to_bf16(from[i]);
    }
}

// What is only written is written past the caches where there is more of it than they hold: its lines are then not read
// first. PREDICT's slope, which waits for the network, from a few MiB on; network inputs, where x itself is larger than
// the caches.
constexpr std::int64_t kStreamedSlope = 4 << 20, kStreamedInput = 16 << 20;    // bytes of x

void stream(const void* from, int bytes, void* to) {
    const auto* source = static_cast<const char*>(from);
    auto* target = static_cast<char*>(to);
#if defined(__AVX512F__)
    using Piece = __m512i;
    const auto put = [](char* at, Piece piece) { _mm512_stream_si512(reinterpret_cast<Piece*>(at), piece); };
#elif defined(__AVX2__)
    using Piece = __m256i;
    const auto put = [](char* at, Piece piece) { _mm256_stream_si256(reinterpret_cast<Piece*>(at), piece); };
#elif defined(EDM_X86_64)
    using Piece = __m128i;
    const auto put = [](char* at, Piece piece) { _mm_stream_si128(reinterpret_cast<Piece*>(at), piece); };
#else
    struct alignas(16) Piece { char bytes[16]; };
    const auto put = [](char* at, Piece piece) { memcpy(at, &piece, sizeof piece); };
#endif
    constexpr int size = sizeof(Piece);
    const int misaligned = static_cast<int>(reinterpret_cast<std::uintptr_t>(target) % size);
    const int head = misaligned == 0 ? 0 : size - misaligned;
    if (head >= bytes) {
        memcpy(target, source, static_cast<std::size_t>(bytes));
        return;
    }
    memcpy(target, source, static_cast<std::size_t>(head));
    int at = head;
    for (; at + size <= bytes; at += size) {
        Piece piece;
        memcpy(&piece, source + at, size);
        put(target + at, piece);
    }
    memcpy(target + at, source + at, static_cast<std::size_t>(bytes - at));
}

// Streamed stores are seen by others in order with those after.
void finish_streams() {
#ifdef EDM_X86_64
    _mm_sfence();
#endif
}

// The planes of one run of interleaved pixels, as floats.
struct Planes {
    float F[kMostInterleaved][W], G[kMostInterleaved][W], net[kMostInterleaved][W];
};

// Interleaved pixels are converted as they lie and then taken apart, whole pixels at a time: a known stride vectorises,
// and every line is read once.
template <int C>
void take_apart(const Buffer& t, std::int64_t offset, int n, float (&to)[kMostInterleaved][W]) {
    float room[C * W];
    const float* from = room;
    if (t.dtype == kFloat32) {
        from = pointer<const float>(t, offset);
    } else {
        widen(pointer<const std::uint16_t>(t, offset), t.dtype, C * n, room);
    }
    for (int i = 0; i < n; ++i) {
        for (int c = 0; c < C; ++c) to[c][i] = from[i * C + c];
    }
}

template <int C>
void put_together(const float (&from)[kMostInterleaved][W], int n, const Buffer& t, std::int64_t offset, bool streams) {
    float room[C * W];
    float* to = t.dtype == kFloat32 ? pointer<float>(t, offset) : room;
    for (int i = 0; i < n; ++i) {
        for (int c = 0; c < C; ++c) to[i * C + c] = from[c][i];
    }
    if (t.dtype != kFloat32 && streams) {
        std::uint16_t half[C * W];
        narrow(room, t.dtype, C * n, half);
        stream(half, 2 * C * n, pointer<std::uint16_t>(t, offset));
    } else if (t.dtype != kFloat32) {
        narrow(room, t.dtype, C * n, pointer<std::uint16_t>(t, offset));
    }
}

// Where the lanes of one run lie; lane 0 is the run's first that is not idle.
template <class T>
struct CpuIo {
    const AdvanceCall& call;
    std::int64_t b, c, pixel, element;   // element: of the sample, in contiguous order
    int n, skipped;                      // skipped: idle lanes before lane 0, whose noise is drawn in vain
    Planes* planes;                      // F and net_in of interleaved pixels, or null
    bool streams;                        // slots are written past the caches

    std::int64_t size() const { return call.channels * call.pixels; }
    T* x_at() const { return reinterpret_cast<T*>(call.x) + b * size() + element; }
    T* slot_at(int j) const { return reinterpret_cast<T*>(call.slots) + (j * call.samples + b) * size() + element; }

    const T* x(T (&)[W]) const { return x_at(); }
    const T* slot(int j, T (&)[W]) const { return slot_at(j); }
    const double* F(double (&room)[W]) const { return output(call.F, room); }
    const double* G(double (&room)[W]) const { return output(call.G, room); }
    const float* F(float (&room)[W]) const { return planes != nullptr ? planes->F[c] : output(call.F, room); }
    const float* G(float (&room)[W]) const { return planes != nullptr ? planes->G[c] : output(call.G, room); }
    const float* known(float (&)[W]) const {
        return reinterpret_cast<const float*>(call.known) + b * size() + element;
    }
    double guide_scale() const { return reinterpret_cast<const double*>(call.guide_scale)[b]; }

    const double* output(const Buffer& t, double (&room)[W]) const {
        gather(pointer<const double>(t, offset_of(t, b, c, pixel)), t.pixel, n, room);
        return room;
    }
    const float* output(const Buffer& t, float (&room)[W]) const {
        const std::int64_t offset = offset_of(t, b, c, pixel);
        if (t.dtype == kFloat32) {
            gather(pointer<const float>(t, offset), t.pixel, n, room);
        } else {
            std::uint16_t half[W];
            gather(pointer<const std::uint16_t>(t, offset), t.pixel, n, half);
            widen(half, t.dtype, n, room);
        }
        return room;
    }

    T* x_out(T (&)[W]) const { return x_at(); }
    T* slot_out(int j, T (&room)[W]) const { return streams ? room : slot_at(j); }
    double* net_out(double (&room)[W]) const { return room; }
    float* net_out(float (&room)[W]) const { return planes != nullptr ? planes->net[c] : room; }
    void store_x(const T*) const {}
    void store_slot(int j, const T* slot) const {
        if (streams) {
            stream(slot, n * static_cast<int>(sizeof(T)), slot_at(j));
        }
    }
    template <class S>
    void scatter_copies(const S* v) const {
        for (std::int64_t j = 0; j < call.copies; ++j) {
            const std::int64_t offset = offset_of(call.net_in, b + j * call.samples, c, pixel);
            scatter(v, call.net_in.pixel, n, pointer<S>(call.net_in, offset));
        }
    }
    void store_net(const double* v) const { scatter_copies(v); }
    void store_net(const float* v) const {
        if (planes != nullptr) {
            return;
        }
        if (call.net_in.dtype == kFloat32) {
            scatter_copies(v);
        } else {
            std::uint16_t half[W];
            narrow(v, call.net_in.dtype, n, half);
            scatter_copies(half);
        }
    }

    void latents(T (&z)[W]) const { noise(call.latents, b, 0, z); }
    void eps(std::int64_t draw, T (&z)[W]) const {
        noise(call.eps, draw * call.samples + b, static_cast<std::uint64_t>(draw) + 1, z);
    }

    // Sample `index` of a buffer, or a draw of the sample's seed where there is no buffer.
    void noise(const Buffer& t, std::int64_t index, std::uint64_t draw, T (&z)[W]) const {
        const std::int64_t first = index * size() + element;
        if (t.address == 0) {
            float drawn[W];
            const std::uint64_t seed = reinterpret_cast<const std::uint64_t*>(call.seeds)[b];
            EDM_JOIN(normal_fill_, EDM_ISA)(seed, draw, static_cast<std::uint64_t>(element - skipped) / 4,
                                            drawn, skipped + n);
            for (int i = 0; i < n; ++i) z[i] = static_cast<T>(drawn[skipped + i]);
        } else if (t.dtype == kFloat64) {
            const auto* from = pointer<const double>(t, first);
            for (int i = 0; i < n; ++i) z[i] = static_cast<T>(from[i]);
        } else {
            const auto* from = pointer<const float>(t, first);
            for (int i = 0; i < n; ++i) z[i] = static_cast<T>(from[i]);
        }
    }
};

}  // namespace
}  // namespace edm

#include "parallel.h"

#include <dlfcn.h>
#include <unistd.h>

#include <atomic>
#include <cfenv>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

namespace edm {
namespace {

// Ranges a thread: enough that one that wakes late does not hold up the others.
constexpr std::int64_t kRangesPerThread = 4;

// The bits must not depend on what a caller, or a library in its process, did to its thread's floating-point modes:
// flushed subnormals, another rounding. Default modes while this lives.
class DefaultModes {
public:
    DefaultModes() { fegetenv(&before_), fesetenv(FE_DFL_ENV); }
    ~DefaultModes() { fesetenv(&before_); }
    DefaultModes(const DefaultModes&) = delete;
    DefaultModes& operator=(const DefaultModes&) = delete;

private:
    fenv_t before_;
};

class Job {
public:
    Job(std::int64_t total, std::int64_t ranges, const RangeBody& body)
        : base_(total / ranges), extra_(total % ranges), ranges_(ranges), body_(body) {}

    // Does ranges until all are taken.
    void work() {
        for (std::int64_t i = next_.fetch_add(1); i < ranges_; i = next_.fetch_add(1)) {
            body_(edge(i), edge(i + 1));
        }
    }

private:
    std::int64_t edge(std::int64_t i) const { return i * base_ + (i < extra_ ? i : extra_); }

    const std::int64_t base_, extra_, ranges_;
    const RangeBody& body_;
    std::atomic<std::int64_t> next_{0};
};

// Threads that sleep until there is a job. One job at a time: who finds the pool taken works alone.
class Pool {
public:
    void run(Job& job, std::int64_t helpers) {
        const std::unique_lock<std::mutex> turn(turn_, std::try_to_lock);
        if (turn.owns_lock()) {
            hire(helpers);
            {
                const std::lock_guard<std::mutex> lock(mutex_);
                job_ = &job;
                wanted_ = helpers;
            }
            wake_.notify_all();
        }
        job.work();
        if (turn.owns_lock()) {
            std::unique_lock<std::mutex> lock(mutex_);
            job_ = nullptr;    // who wakes only now finds nothing
            done_.wait(lock, [&] { return working_ == 0; });
        }
    }

private:
    void hire(std::int64_t helpers) {
        for (; hired_ < helpers; ++hired_) {
            try {
                std::thread([this] { serve(); }).detach();
            } catch (const std::system_error&) {
                return;
            }
        }
    }

    void serve() {
        fesetenv(FE_DFL_ENV);    // a new thread inherits its maker's
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            wake_.wait(lock, [&] { return job_ != nullptr && wanted_ > 0; });
            Job& job = *job_;
            ++working_, --wanted_;
            lock.unlock();
            job.work();
            lock.lock();
            if (--working_ == 0) {
                done_.notify_one();
            }
        }
    }

    std::mutex turn_, mutex_;
    std::condition_variable wake_, done_;
    Job* job_ = nullptr;
    std::int64_t wanted_ = 0, working_ = 0, hired_ = 0;
};

// Never destroyed, because its threads sleep in it until the process ends; made anew in a forked child, which has none.
Pool& pool() {
    struct Owned {
        Pool pool;
        pid_t owner = getpid();
    };
    static std::atomic<Owned*> current{nullptr};
    Owned* found = current.load();
    if (found == nullptr || found->owner != getpid()) {
        auto* made = new Owned;
        if (current.compare_exchange_strong(found, made)) {
            return made->pool;
        }
        delete made;
    }
    return found->pool;
}

// The OpenMP runtime that torch has loaded, if any: its threads spin for a while after each of torch's own operations, and
// threads of ours beside them would wait for a core (18 to 24% of an evaluation of the CIFAR-10 network on two cores).
// Not in a forked child, where its threads are gone and a region would never end.
const pid_t loaded_by = getpid();
using OmpParallel = void (*)(void (*body)(void*), void* argument, unsigned threads, unsigned flags);
OmpParallel omp_parallel() {
    static const auto found = reinterpret_cast<OmpParallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
    return loaded_by == getpid() ? found : nullptr;
}

void work_in_default_modes(void* job) {
    const DefaultModes modes;
    static_cast<Job*>(job)->work();
}

}  // namespace

void parallel_ranges(std::int64_t total, std::int64_t threads, const RangeBody& body) {
    const DefaultModes modes;
    if (threads > total) threads = total;
    if (threads <= 1) {
        body(0, total);
        return;
    }
    const std::int64_t most = threads * kRangesPerThread;
    Job job(total, total < most ? total : most, body);
    if (const OmpParallel omp = omp_parallel()) {
        omp(work_in_default_modes, &job, static_cast<unsigned>(threads), 0);
    } else {
        pool().run(job, threads - 1);
    }
}

void share_out(std::int64_t total, std::int64_t workers, const RangeBody& body) {
    std::atomic<std::int64_t> next{0};
    parallel_ranges(workers, workers, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t worker = begin; worker < end; ++worker) {
            for (std::int64_t unit = next.fetch_add(1); unit < total; unit = next.fetch_add(1)) body(unit, worker);
        }
    });
}

}  // namespace edm

"""`engine.sample` in a process that lives long: no leak over 1,000 calls, nothing global changed, any thread."""

import gc
import os
import random
import resource
import sys
import threading
import tracemalloc
import warnings

import numpy as np
import pytest
import torch

import engine
from engine.guidance import ClassifierFree
from engine.preconditioning import EDM
from tests.helpers import small_unet, tensors_alive, wavy

SHAPE = (3, 32, 32)
CALLS = 1000
EULER = engine.samplers.edm(steps=2, solver="euler", S_churn=1.0)


@pytest.fixture(scope="module")
def denoisers():
    return {"labelled": wavy(EDM(), SHAPE, label_dim=3), "plain": wavy(EDM(), SHAPE), "unet": small_unet()}


def call(denoisers, i):
    """One of several different calls: by seeds, with guidance, from latents, half precision, a UNet."""
    kind, seeds = i % 20, [i % 7, 100 + i % 5]
    if kind == 0:
        return engine.sample(denoisers["unet"], seeds=seeds, sampler=EULER)
    if kind == 1:
        return engine.sample(denoisers["unet"], seeds=seeds, sampler=EULER, dtype=torch.bfloat16)
    if kind == 2:
        guided = ClassifierFree(1.0 + i % 3)
        return engine.sample(denoisers["labelled"], seeds=seeds, class_labels=1, guidance=guided, sampler=EULER)
    if kind == 3:
        latents = torch.full([2, *SHAPE], 0.5)
        return engine.sample(denoisers["plain"], latents=latents, sampler=engine.samplers.dpmpp_2m(steps=3))
    if kind == 4:
        return engine.sample(denoisers["plain"], seeds=seeds, noise="torch", sampler=engine.samplers.ddpm(steps=2))
    return engine.sample(denoisers["plain" if kind % 2 else "labelled"], seeds=seeds, sampler=EULER)


def globals_of_the_process():
    """What a call could leave changed, in torch, NumPy, Python and in our own modules."""
    ours = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "engine"}
    return {
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "grad": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "torch rng": torch.get_rng_state().tolist(),
        "numpy rng": str(np.random.get_state()),  # noqa: NPY002 (the legacy one is the global one)
        "random": random.getstate(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads(), threading.active_count()),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul": torch.get_float32_matmul_precision(),
        "cudnn": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32),
        "mkldnn": torch.backends.mkldnn.enabled,
        "autocast": torch.is_autocast_enabled("cpu"),
        "numpy errors": np.geterr(),
        "warnings": list(warnings.filters),
        "environment": dict(os.environ),
        "names": {name: {key: id(value) for key, value in vars(module).items()} for name, module in ours.items()},
        "containers": {
            (name, key): repr(value)
            for name, module in ours.items()
            for key, value in vars(module).items()
            if isinstance(value, dict | list | set) and not key.startswith("__")
        },
    }


def resident_bytes():
    """Now, not at most; and where there is no /proc, the highest so far, which a leak raises too."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_a_thousand_calls(denoisers):
    """In the end the bits of the beginning, the tensors and memory of after 150 calls, and nothing global changed."""
    for i in range(150):  # caches of the allocator and of torch fill
        call(denoisers, i)
    before = globals_of_the_process()
    first = [call(denoisers, i) for i in range(20)]
    tensors, resident = tensors_alive(), resident_bytes()
    for i in range(150, CALLS - 100):
        call(denoisers, i)
    tracemalloc.start()
    call(denoisers, 0)
    traced = tracemalloc.get_traced_memory()[0]
    for i in range(CALLS - 100, CALLS):
        call(denoisers, i)
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - traced
    tracemalloc.stop()
    last = [call(denoisers, i) for i in range(20)]
    assert tensors_alive() == tensors + len(last)
    assert all(torch.equal(a, b) for a, b in zip(first, last, strict=True))
    # One state of these calls is 49 kB: a buffer kept by each would be 40 MB.
    assert resident_bytes() - resident < 16e6
    assert grown < 100e3  # of Python objects, in 100 calls
    after = globals_of_the_process()
    assert {name for name in before if before[name] != after[name]} == set()


def in_threads(jobs):
    """Runs all jobs at once, each in its thread; what each returned."""
    barrier, results = threading.Barrier(len(jobs)), [None] * len(jobs)

    def work(index):
        barrier.wait()
        try:
            results[index] = jobs[index]()
        except Exception as error:
            results[index] = error

    workers = [threading.Thread(target=work, args=(index,)) for index in range(len(jobs))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    failed = [result for result in results if isinstance(result, Exception)]
    assert not failed, failed
    return results


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_one_engine_called_from_several_threads(denoisers, dtype):
    """No lock: a call has buffers of its own. First calls too, which pack the weights."""
    asked = [
        {"seeds": [1, 2], "sampler": EULER},
        {"seeds": [3, 4], "sampler": engine.samplers.dpmpp_2m(steps=3)},
        {"seeds": [5, 6], "sampler": engine.samplers.edm(steps=2)},
        {"seeds": [2, 1], "sampler": EULER},
    ]
    alone = engine.Engine(denoisers["unet"], dtype=dtype)
    expected = [alone.sample(**each) for each in asked]
    shared = engine.Engine(denoisers["unet"], dtype=dtype)
    jobs = [lambda each=each: [shared.sample(**each) for _ in range(5)] for each in asked]
    for images, wanted in zip(in_threads(jobs), expected, strict=True):
        assert all(torch.equal(each, wanted) for each in images)


def test_several_engines_alive(denoisers):
    """Different networks, dtypes, samplers and guidance, called in turn and at once: each as if it were alone."""
    made = {
        "half": (engine.Engine(denoisers["unet"], dtype=torch.bfloat16, sampler=EULER), {"seeds": [1]}),
        "full": (engine.Engine(denoisers["unet"], sampler=EULER, state_dtype=torch.float32), {"seeds": [1]}),
        "guided": (
            engine.Engine(denoisers["labelled"], sampler=EULER, guidance=ClassifierFree(2.0)),
            {"seeds": [1, 9], "class_labels": [0, 2]},
        ),
        "adaptive": (
            engine.Engine(denoisers["plain"], sampler=engine.samplers.rk45(rtol=0.1, atol=0.1)),
            {"seeds": [4]},
        ),
    }
    alone = {name: each.sample(**asked) for name, (each, asked) in made.items()}
    for _ in range(3):
        for name, (each, asked) in made.items():
            assert torch.equal(each.sample(**asked), alone[name])
    jobs = [lambda each=each, asked=asked: each.sample(**asked) for each, asked in made.values()]
    for name, images in zip(made, in_threads(jobs), strict=True):
        assert torch.equal(images, alone[name])


def test_a_stream_half_read_leaves_grad_mode_alone(denoisers):
    stream = engine.Engine(denoisers["plain"], batch_size=1, sampler=EULER).stream(seeds=[1, 2])
    next(stream)
    assert torch.is_grad_enabled()
    with torch.inference_mode():
        next(stream)
    assert torch.is_grad_enabled()

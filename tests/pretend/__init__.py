"""A CUDA device that is none, for machines without one: the code that queues, captures and copies runs as it is.

Its tensors say they are on ``cuda:0`` and compute on the CPU (`tensors`). Streams, events and graphs are those of
`torch_cuda`, in torch.cuda's place; work is done at once, and vector clocks find what a device could do in another
order (`clocks`). Triton's kernels run in its interpreter, the CUDA ones as the C++ backend (`launches`).

    python -m pytest -p tests.pretend.plugin tests/gpu

What it shows: mixed devices, waits where there must be none, work that nothing orders, memory that is let go while a
stream may use it. What it cannot: CUDA's own limits and errors, nvcc's code, time; gradients, torch.compile, other
processes; memory that graphs of one pool share, or that is let go between a capture and its replay; a host thread that
relies on another one's waiting.
"""

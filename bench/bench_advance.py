"""The fused step: bytes moved, GB/s and share of the copy bandwidth, per opcode and backend.

    python -m bench.bench_advance [--device cuda] [--size 64x3x32x32 ...]

Beside every backend stands the same step as a user writes it in torch ("eager") and, by default, that function through
``torch.compile``. State float64, network bfloat16, channels_last: the defaults of production use.
"""

import argparse
from collections.abc import Callable
from dataclasses import astuple
from functools import partial

import torch
from torch import Tensor

from bench.harness import parser, shown_in_the_end, write
from bench.timing import GPU_NOTE, Call, copy_call, launches, measure, on_gpu
from engine.backends import BACKENDS
from engine.noise import seed_bits
from engine.plan import Op, Row
from engine.state import Noise, State

COMMON = {"c_skip": 0.5, "c_out": 0.25, "slope_t": 2.0, "h": -0.125, "evaluate": 1.0, "c_in": 0.75, "c_noise": 0.1}
CHURN = {"std": 0.5, "draw": 1}
ROWS = {
    "BEGIN": Row(Op.BEGIN, begin_scale=80.0, evaluate=1.0, c_in=0.75),
    "EULER": Row(Op.EULER, **COMMON),
    "EULER+noise": Row(Op.EULER, **COMMON, **CHURN),
    "PREDICT": Row(Op.PREDICT, **COMMON),
    "CORRECT": Row(Op.CORRECT, **COMMON, h_predict=-0.125, w_0=0.5, w_1=0.5),
    "CORRECT+noise": Row(Op.CORRECT, **COMMON, **CHURN, h_predict=-0.125, w_0=0.5, w_1=0.5),
    "LINEAR": Row(Op.LINEAR, **COMMON, x_from_x=0.5, x_from_D=0.25, x_from_0=0.125, store_slot=0, store_from_D=1.0),
}
# Bytes an element must move: x, slots 8 each way, F 2 read, net_in 2 written.
BYTES = {"BEGIN": 10, "EULER": 20, "PREDICT": 20, "CORRECT": 28, "LINEAR": 36}


def eager(row: Row) -> Callable[[Tensor, State], None]:
    """The step of one row in plain torch, without the table: what a careful user would write."""

    def noisy(x: Tensor) -> Tensor:
        return x + row.std * torch.randn_like(x) if row.std else x

    def step(F: Tensor, state: State) -> None:
        x = state.x
        if row.op is Op.BEGIN:
            x = torch.randn(x.shape, device=x.device).to(torch.float64) * row.begin_scale
        else:
            x_eval = x + row.h_predict * state.slots[0] if row.op is Op.CORRECT else x
            D = (row.c_skip * x_eval.to(torch.float32) + row.c_out * F.to(torch.float32)).to(torch.float64)
            if row.op is Op.LINEAR:
                x = noisy(row.x_from_x * x + row.x_from_D * D + row.x_from_0 * state.slots[0])
                state.slots[0].copy_(D)
            else:
                d = (x_eval - D) / row.slope_t
                if row.op is Op.PREDICT:
                    state.slots[0].copy_(d)
                    state.net_in.copy_(row.c_in * (x + row.h * d).to(torch.float32))
                    return
                x = noisy(x + row.h * (row.w_0 * state.slots[0] + row.w_1 * d if row.op is Op.CORRECT else d))
        state.x.copy_(x)
        state.net_in.copy_(row.c_in * x.to(torch.float32))

    return step


def situation(row: Row, size: tuple[int, ...], device: torch.device) -> tuple[Tensor, State]:
    batch, *shape = size
    table = torch.tensor([astuple(row)], dtype=torch.float64, device=device)
    noise = Noise(tuple(shape), seeds=seed_bits(range(batch), device))
    rows = torch.zeros(batch, dtype=torch.int64, device=device)
    state = State.allocate(table, 1, noise, rows, state_dtype=torch.float64, net_dtype=torch.bfloat16)
    state.x.normal_()
    F = torch.randn(size, device=device).to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
    return F, state


def compare(
    size: tuple[int, ...], name: str, device: torch.device, compiled: bool, seconds: float
) -> list[dict[str, object]]:
    """One row of the plan at one size: every backend, eager torch and torch.compile, timed in the same rounds."""
    F, state = situation(ROWS[name], size, device)
    moved = BYTES[ROWS[name].op.name] * state.x.numel()
    copies = {"copy": copy_call(moved // 2, device)}
    if device.type == "cpu":
        copies["one-thread copy"] = copy_call(moved // 2, device, threads=1)
    plain = eager(ROWS[name])
    backends = [b for b in BACKENDS if b.name != "reference" and not b.not_supported_reasons(device, torch.float64)]
    calls: dict[str, Call] = {b.name: partial(b.advance, F, state, 0) for b in backends}
    calls["eager"] = partial(plain, F, state)
    if compiled:
        torch.compiler.reset()  # one code object serves every row: without this the recompile limit is met half-way
        calls["compile"] = partial(torch.compile(plain, dynamic=False, fullgraph=True), F, state)
    times = measure(calls | {name: copy for name, (copy, _) in copies.items()}, device, seconds)
    bandwidth = {name: copied / times.pop(name).p50 for name, (_, copied) in copies.items()}
    return [
        {
            "size": "x".join(map(str, size)),
            "row": name,
            "variant": variant,
            "us": timing.p50 * 1e6,
            "us p20": timing.p20 * 1e6,
            "us p80": timing.p80 * 1e6,
            "MB": moved / 1e6,
            "GB/s": moved / timing.p50 / 1e9,
            **{f"of {name}": moved / timing.p50 / speed for name, speed in bandwidth.items()},
            "times eager": times["eager"].p50 / timing.p50,
            **on_gpu(timing, 1e6, "us"),
            **({"launches": launches(calls[variant], device)} if device.type == "cuda" else {}),
        }
        for variant, timing in times.items()
    ]


def main() -> None:
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--size", nargs="+", default=["1x3x32x32", "64x3x32x32", "1024x3x64x64"])
    arguments.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True, help="also torch.compile")
    arguments.add_argument("--seconds", type=float, default=0.6, help="for each variant")
    options = arguments.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    notes = (
        "`GB/s` counts the bytes the row must move, whatever a variant really moves; `of copy` is its share of a plain "
        "copy of as many bytes (a CPU's: on all threads and on one), timed in the same rounds. Medians of 15 "
        f"interleaved rounds. {GPU_NOTE if device.type == 'cuda' else ''}"
    ).strip()
    rows: list[dict[str, object]] = []
    save = partial(write, "advance", device, rows, notes, options.results)
    with shown_in_the_end(save):
        for size in options.size:
            for name in ROWS:
                rows += compare(tuple(map(int, size.split("x"))), name, device, options.compile, options.seconds)
                save(show=False)


if __name__ == "__main__":
    main()

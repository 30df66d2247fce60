"""torchrun on CUDA devices: what the ranks draw is what one process draws.

The ranks share a key-value store and no process group, so there is nothing of NCCL in it; here the program that calls
the engine has one all the same, as a training script does.
"""

import subprocess
import sys

import torch

from tests.helpers import tree

_WITH_NCCL = """
import os, sys
import torch
import engine
from engine import dealing
torch.cuda.set_device(dealing.local_rank())
torch.distributed.init_process_group("nccl")
prepared = engine.Engine(
    engine.load("fashion-mnist"), sampler=engine.samplers.edm(3), dtype=torch.bfloat16,
    device=f"cuda:{dealing.local_rank()}", batch_size=16,
)
drawn = engine.draw_to(prepared, sys.argv[1], seeds=range(200), team=dealing.Ranks.of_torchrun())
counted = torch.tensor(drawn.drawn, device="cuda")
torch.distributed.all_reduce(counted)
assert counted == 200
torch.distributed.destroy_process_group()
"""


def run(*arguments: object) -> None:
    done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def torchrun(*arguments: object) -> None:
    ranks = min(2, torch.cuda.device_count())
    alone = ["--standalone", "--local-addr", "127.0.0.1"]  # or the host's name, which need not be known to any server
    run("-m", "torch.distributed.run", *alone, "--nproc-per-node", ranks, *arguments)


def test_the_command(tmp_path):
    job = ["-m", "engine", "sample", "--model", "fashion-mnist", "--seeds", "0-199", "--batch", 16, "--steps", 3]
    job += ["--device", "cuda", "--dtype", "bfloat16", "--out"]
    run(*job, tmp_path / "one")
    torchrun(*job, tmp_path / "ranks")
    assert tree(tmp_path / "ranks") == tree(tmp_path / "one")


def test_beside_a_process_group(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(_WITH_NCCL)
    torchrun(program, tmp_path / "first")
    torchrun(program, tmp_path / "second")
    assert len(tree(tmp_path / "first")) == 202
    assert tree(tmp_path / "first") == tree(tmp_path / "second")

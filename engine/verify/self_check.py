"""The short form of verification: does this engine, on this machine and with these weights, still compute right?"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..backends import Backend
from ..denoiser import Denoiser
from ..modes import own_modes
from ..networks.precision import cast_network
from ..plan import Op
from ..prepare import is_ours
from ..probe import network_inputs
from .cases import Case, outcomes
from .compare import Comparison, compare

# What the network may be further from float32 on the CPU than the plain module in the same dtype is, plus, of the
# output's size, what rounding in another order may do: the network that ships comes to 7e-7 in float32.
_YARDSTICK, _LEAST = 1.5, 1e-5


class SelfCheckError(RuntimeError):
    """An engine does not compute what it should; the message names the part."""


@dataclass(frozen=True)
class Subject:
    """The engine's parts: its denoiser, the caller's, and the sum of its weights' bits when it was built."""

    denoiser: Denoiser
    source: Denoiser
    device: torch.device
    backend: Backend
    state_dtype: torch.dtype
    checksum: Tensor


def self_check(subject: Subject) -> None:
    """Raises `SelfCheckError` naming the first part that is wrong: the weights, the fused step, or the network."""
    if int(checksum(subject.denoiser)) != int(subject.checksum):
        raise SelfCheckError("weights: the bits in memory are not those this engine was built with")
    steps = advance_comparison(subject)
    if not steps.equal:
        raise SelfCheckError(f"advance: backend {subject.backend.name!r} against the reference {steps}")
    with own_modes(subject.device):
        _check_network(subject)


def checksum(module: nn.Module) -> Tensor:
    """The sum of the bit patterns of all parameters and buffers, int64 [] where they are; any one change changes it."""
    total = torch.zeros([], dtype=torch.int64, device="cpu")
    for tensor in (*module.parameters(), *module.buffers()):
        bits = _bits(tensor.detach())
        total = total.to(bits.device) + bits.sum(dtype=torch.int64)
    return total


def _bits(tensor: Tensor) -> Tensor:
    """A tensor's memory as words of eight bytes, a third of the time of four, or else as bytes."""
    pixels_last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    flat = (tensor.permute(0, 2, 3, 1) if pixels_last else tensor).reshape(-1)
    whole = flat.nbytes % 8 == 0 and flat.storage_offset() * flat.element_size() % 8 == 0
    return flat.view(torch.int64 if whole else torch.uint8)


def advance_comparison(subject: Subject) -> Comparison:
    """All opcodes with and without guidance in the engine's dtypes, over images of its channels and up to 8 pixels."""
    channels, *spatial = subject.denoiser.img_shape
    case = Case(
        tuple(Op),
        (channels, *(min(size, 8) for size in spatial)),
        subject.state_dtype,
        subject.denoiser.dtype,
        padded_channels=subject.denoiser.net_channels - channels,
    )
    guided = Case(**vars(case) | {"guided": True, "copies": 2, "known": True, "seed": 1})
    found = [compare(*pair) for each in (case, guided) for _, *pair in outcomes(each, subject.backend, subject.device)]
    return sum(found, start=Comparison())


def _check_network(subject: Subject) -> None:
    """One evaluation of one random sample at sigma = 0.5. Only our own layers run other operations in an engine than in
    the caller's module; of any other network no more is asked than that its output is finite."""
    denoiser, dtype = subject.denoiser, subject.denoiser.dtype
    inputs = network_inputs(denoiser, torch.tensor([0.5]))
    F = denoiser.call_network(*inputs)
    if not bool(torch.isfinite(F).all()):
        raise SelfCheckError(f"network: its output in {dtype} on {subject.device} is not finite")
    if not is_ours(denoiser):
        return
    exact = copy.deepcopy(subject.source).to("cpu", torch.promote_types(dtype, torch.float32)).eval()
    net_in, c_noise, labels = inputs
    on_cpu = (net_in.to("cpu", exact.dtype), c_noise.cpu(), None if labels is None else labels.cpu())
    truth = exact.call_network(*on_cpu).double()
    error, size = F.cpu().double() - truth, truth.square().mean().sqrt()
    allowed = _LEAST * size
    if dtype in (torch.float16, torch.bfloat16):  # on a GPU, torch's own float32 may be TF32
        plain_network = copy.deepcopy(subject.source).to(subject.device).eval()
        cast_network(plain_network.model, dtype)
        plain = plain_network.call_network(*inputs).cpu().double() - truth
        allowed += _YARDSTICK * plain.square().mean().sqrt()
    if not error.square().mean().sqrt() <= allowed:
        raise SelfCheckError(
            f"network: in {dtype} on {subject.device} it is {(error.square().mean().sqrt() / size).item():.2g} of its "
            f"output's size from float32 on the CPU; allowed: {(allowed / size).item():.2g}"
        )

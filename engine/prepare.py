"""A denoiser made ready for an engine: its device checked, its network moved and cast, the caller's own left alone."""

import copy

import torch
from torch import Tensor, nn

from .denoiser import Denoiser, require_original
from .networks import DhariwalUNet, SongUNet, native_ops, triton_ops
from .networks.block import UNetBlock, gather_affines
from .networks.layers import Conv2d, GroupNorm, Linear, PositionalEmbedding
from .networks.ops import TORCH, Ops
from .networks.precision import cast_network, is_cast
from .networks.remembered import Remembered
from .warn import warn_caller


def prepare(denoiser: Denoiser, dtype: torch.dtype, device: torch.device) -> Denoiser:
    """A copy of the denoiser in eval mode, its layers with the fastest operations.

    Our own networks are copied whole: some weights are folded and packed, and would be of another time than those
    beside them if the caller's changed. Tensors of other modules are copied only if they must change.
    Raises ValueError for a module that cannot be copied.
    """
    if device.type == "cuda" and dtype == torch.float32 and not is_ours(denoiser.model):
        _warn_of_tf32(denoiser.model)
    require_original(denoiser)
    if is_cast(denoiser.model, dtype) and device == device_of(denoiser):
        own = is_ours(denoiser.model)
        shared = {} if own else {id(t): t for t in (*denoiser.parameters(), *denoiser.buffers())}
        prepared = _copy(denoiser, shared).eval()
        _specialise(prepared.model, device)
    else:
        prepared = _copy(denoiser, {}).to(device).eval()
        _specialise(prepared.model, device)  # before the cast: weights are scaled in float32
        cast_network(prepared.model, dtype)
    if device.type == "cpu" and type(prepared.model) in (SongUNet, DhariwalUNet) and _is_whole(prepared.model):
        prepared.remembered = Remembered(prepared.model)
    return prepared


def _copy(denoiser: Denoiser, memo: dict[int, Tensor]) -> Denoiser:
    try:
        return copy.deepcopy(denoiser, memo)
    except Exception as error:  # of any kind: it is the module's own code
        reason = f"{type(error).__name__}: {str(error).partition('. ')[0]}"
        raise ValueError(f"denoiser cannot be copied ({reason}); allowed: modules that copy.deepcopy copies") from error


def compile_network(prepared: Denoiser) -> None:
    """Replace a prepared denoiser's network by its torch.compile. Raises ValueError for networks of this package."""
    if is_ours(prepared.model):
        name = type(prepared.model).__name__
        raise ValueError(f"compile is True; allowed: False for {name}, whose operations are fused already")
    prepared.model = torch.compile(prepared.model)  # type: ignore[assignment]


def is_ours(network: nn.Module) -> bool:
    """Whether a network is made of this package's layers."""
    return any(isinstance(module, Conv2d | GroupNorm) for module in network.modules())


def _is_whole(network: nn.Module) -> bool:
    """Whether it has no module but ours and torch's: others may decide by values, or count their calls."""
    return all(
        type(module).__module__.partition(".")[0] in (__name__.partition(".")[0], "torch")
        for module in network.modules()
    )


def _warn_of_tf32(network: nn.Module) -> None:
    """Our own convolutions ask cuDNN for float32 by name; another module's do what torch's global option says."""
    convolutions = any(isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) for module in network.modules())
    if convolutions and torch.backends.cudnn.allow_tf32:
        warn_caller(
            "dtype is torch.float32, but convolutions of this network will run in TF32, as "
            "torch.backends.cudnn.allow_tf32 is True; set it to False for float32",
            UserWarning,
        )


def _specialise(network: nn.Module, device: torch.device) -> None:
    """The fastest operations for the device, and weights in the form in which least is left to do."""
    for module in list(network.modules()):
        if isinstance(module, SongUNet | DhariwalUNet):
            module.affines = gather_affines(module)
    chosen = _ops_for(device)
    for module in network.modules():
        if isinstance(module, GroupNorm | Conv2d | Linear):
            module.ops = chosen
        if isinstance(module, Conv2d):
            module.packed = {}
        if isinstance(module, PositionalEmbedding):
            module.held = module.frequencies(device)
        if isinstance(module, UNetBlock) and module.num_heads:
            module.sort_qkv()
        # Not weights in half precision: to scale them would round them again.
        if isinstance(module, UNetBlock):
            exact = module.norm1.weight.dtype in (torch.float32, torch.float64)
            if module.skip_scale == 1 or exact:
                module.fold(biases=exact and device.type == "cuda")
        if isinstance(module, Conv2d) and device.type == "cuda":  # cuDNN copies others, for every call
            module.replace_weights(lambda t: t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t)


def _ops_for(device: torch.device) -> Ops:
    if device.type == "cpu" and native_ops.available():
        return native_ops.NATIVE
    return triton_ops.TRITON if triton_ops.available(device) else TORCH


def find_device(device: torch.device | str) -> torch.device:
    """A device that is there, with its index: CUDA's current one where none is named."""
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        found = None
    if found is None or found.type not in ("cpu", "cuda"):
        raise ValueError(f"device is {device!r}; allowed: 'cpu', 'cuda', 'cuda:0' and so on")
    if found.type == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if (found.index or 0) >= count:
        raise ValueError(f"device is {device!r}; allowed: 'cpu', or one of {count} CUDA devices")
    return torch.device("cuda", torch.cuda.current_device() if found.index is None else found.index)


def device_of(denoiser: Denoiser) -> torch.device:
    """Where its first parameter or buffer lies; the CPU if it has none."""
    return next((t.device for t in (*denoiser.parameters(), *denoiser.buffers())), torch.device("cpu"))

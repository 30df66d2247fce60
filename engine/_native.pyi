"""Signatures of the compiled extension (csrc/bindings.cpp). Private to `engine`."""

from collections.abc import Sequence

def normal(
    seeds_ptr: int,
    draws_ptr: int,
    out_ptr: int,
    samples: int,
    elements: int,
    threads: int = 1,
    isa: str = "auto",
    first_quad: int = 0,
) -> None:
    """Write float32 normals `[samples, elements]` at address `out_ptr`, from element 4 * first_quad.

    `seeds_ptr` and `draws_ptr` are addresses of `samples` uint64 each. The bits depend on neither
    `threads` nor `isa` (`"auto"` or one of `normal_isas()`). The GIL is released.

    Raises:
        ValueError: a size, `first_quad`, `threads`, an address or `isa` is not usable.
    """

def normal_isas() -> list[str]:
    """Instruction sets that this build has and this processor runs, fastest first."""

class Dtype:
    float64: Dtype
    float32: Dtype
    float16: Dtype
    bfloat16: Dtype

class Buffer:
    """A tensor `[batch, channel, pixel]`: its address and its strides in elements."""

    address: int
    dtype: Dtype
    batch: int
    channel: int
    pixel: int
    def __init__(self, address: int, dtype: Dtype, batch: int = 0, channel: int = 0, pixel: int = 1) -> None: ...

class AdvanceCall:
    """One call of `advance` as plain numbers (csrc/advance_call.h). Addresses are 0 where there is no tensor."""

    samples: int
    channels: int
    pixels: int
    table: int
    base_row: int
    rows: int
    k: int
    state_dtype: Dtype
    x: int
    slots: int
    slot_count: int
    F: Buffer
    G: Buffer
    net_in: Buffer
    copies: int
    c_noise: int
    bad_row: int
    guide_scale: int
    known: int
    seeds: int
    latents: Buffer
    eps: Buffer
    draws: int

def row_columns() -> list[str]:
    """Names of a table's columns in the order this build reads them; to be compared with `plan.COLUMNS`."""

def advance_cpu(call: AdvanceCall, threads: int = 1, isa: str = "auto") -> None:
    """Carry out a call on host memory. The bits depend on neither `threads` nor `isa`. The GIL is released.

    Raises:
        ValueError: an address, a size, `threads` or `isa` is not usable, or a row needs what the call lacks.
        IndexError: a row is outside the table. In either case nothing has been written.
    """

class Resampling:
    none: Resampling
    up: Resampling
    down: Resampling

class GroupNormCall:
    """resample(silu((1 + scale) * GroupNorm(cat(x, beside) + add) + shift)) to `out`, and if there is a `keep`
    resample(keep_scale * cat(x, beside)) to it; csrc/group_norm_op.h. addresses: of x, beside, weight, bias, out, keep,
    add, scale, shift; 0 for what there is not. shape: samples, height, width, channels of x, and of beside. add, scale,
    shift: float32 [samples, channels] with those strides between samples."""

    def __init__(
        self,
        addresses: Sequence[int],
        dtype: Dtype,
        shape: Sequence[int],
        groups: int,
        eps: float,
        silu: bool,
        add_stride: int,
        scale_stride: int,
        keep_scale: float,
        resampling: Resampling,
        filter: Sequence[float],
    ) -> None: ...

class LinearCall:
    """out = x W^T + bias + add, or silu of it, in float32; csrc/linear_op.h. addresses: of x, weight, bias (or 0), add
    (or 0), out. shape: rows, inputs, outputs."""

    def __init__(self, addresses: Sequence[int], shape: Sequence[int], silu: bool) -> None: ...

class WinogradCall:
    """out = conv(x) + bias + add, by tiles of m by m outputs: m = 2 or 4 for a 3x3 kernel, padding 1, m = 1 for a 1x1
    one; csrc/winograd_op.h. weight: as `networks.winograd.pack` lays it out, whatever m. addresses: of x, weight, bias
    (or 0), add (or 0), out. shape: samples, height, width, inputs (a multiple of 16), outputs."""

    def __init__(self, addresses: Sequence[int], dtype: Dtype, shape: Sequence[int], m: int) -> None: ...

class AttentionCall:
    """out = softmax(q k^T / sqrt(channels)) v, with float32 within; csrc/attention_op.h. addresses: of q, k, v, out.
    shape: samples, heads, length, channels. strides, of all but the channels, in elements: those of q, k and v, and
    those of out."""

    def __init__(
        self,
        addresses: Sequence[int],
        dtype: Dtype,
        shape: Sequence[int],
        strides: Sequence[int],
        out_strides: Sequence[int],
    ) -> None: ...

NetworkCall = GroupNormCall | LinearCall | WinogradCall | AttentionCall

def run_cpu(call: NetworkCall, threads: int = 1, isa: str = "auto") -> None:
    """Carry out a call. A sample's bits depend neither on `threads` nor on the other samples. The GIL is released.

    Raises:
        ValueError: a size, `threads`, an address or `isa` is not usable; then nothing has been written.
    """

class Program:
    """Calls that are run one after the other; csrc/program.h. Their addresses are counted from bases, which are said
    when they are run."""

    def __init__(self) -> None: ...
    def add(self, call: NetworkCall, bases: Sequence[int]) -> None:
        """Another call; bases: for each of its addresses, the number of its base. ValueError if not as many."""

    def run(self, bases: Sequence[int], first: int, last: int, threads: int = 1, isa: str = "auto") -> None:
        """Calls [first, last). The GIL is released. ValueError where there are not so many, or too few bases."""

    def __len__(self) -> int: ...

def is_amd() -> bool:
    """Whether the processor is AMD's."""

def run_of(pixels: int, channel: int, index: int, width: int) -> tuple[int, int, int]:
    """First pixel (lane 0) and lanes [low, high) of run `index` of a plane; how both backends cut planes up."""

def run_count(channels: int, pixels: int, width: int) -> int:
    """How many runs of `width` lanes cover every plane."""

def offset_of(buffer: Buffer, sample: int, channel: int, pixel: int) -> int:
    """Where an element of a buffer lies, in elements from its address."""

sources: str  # sha256 of what was compiled
cuda_built: bool  # the two functions below exist only where this is True

def advance_cuda(call: AdvanceCall, device: int, stream: int) -> None:
    """Launch a call on device memory: one kernel on the cudaStream_t `stream` of CUDA device number `device`.

    Raises:
        ValueError: an address or a size is not usable.
        RuntimeError: the launch failed; with CUDA's message.
    """

def normal_cuda(
    seeds_ptr: int, draws_ptr: int, out_ptr: int, samples: int, elements: int, device: int, stream: int
) -> None:
    """`normal` on device memory; raises like `advance_cuda`."""

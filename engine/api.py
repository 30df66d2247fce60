"""``sample``, ``stream`` and ``invert``: the engine in one call."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypedDict, Unpack

import torch
from torch import Tensor

from .denoiser import Denoiser
from .engine import Engine
from .graphs import Mode
from .guidance import Guidance
from .job import Asked, Labels, Seeds, require_images, require_known
from .options import OnNonFinite, Options
from .plan import Sampler
from .preview import Callback
from .samplers import AdaptiveSampler, InversionSampler, edm


class Watched(TypedDict, total=False):
    """Who looks on; see `sample`."""

    progress: bool
    callback: Callback | None
    callback_every: int


class Sampling(Options, Asked, Watched, total=False):
    """All that `sample` and `stream` take beside the denoiser."""


def sample(
    denoiser: Denoiser,
    *,
    seeds: Seeds | None = None,
    latents: Tensor | None = None,
    noise: str | Tensor = "philox",
    class_labels: Labels = None,
    sampler: Sampler | AdaptiveSampler | None = None,
    guidance: Guidance | None = None,
    image: Tensor | None = None,
    mask: Tensor | None = None,
    offset_noise: float = 0.0,
    batch_size: int | Literal["auto"] | None = None,
    batch_invariant: bool = False,
    buckets: Sequence[int] | None = None,
    graph: Mode = "auto",
    graph_memory: int | None = None,
    compile: bool = False,
    dtype: torch.dtype | None = None,
    state_dtype: torch.dtype = torch.float64,
    output_dtype: torch.dtype = torch.float32,
    backend: str = "auto",
    device: torch.device | str | None = None,
    progress: bool = False,
    callback: Callback | None = None,
    callback_every: int = 1,
    on_nonfinite: OnNonFinite = "raise",
) -> Tensor:
    """Draw images from a denoiser, one a seed: [N, C, *spatial], in ``output_dtype``, on ``device``.

    seeds: N distinct integers in [0, 2**64). latents: instead of the seeds' own, unit variance [N, C, *spatial]
    (scaled by sigma_0 s_0 inside). noise: "philox" (each seed's own stream), "torch" or "edm2" (the streams of the
    published EDM and EDM2 code, seed for seed on the same kind of device; they know seeds modulo 2**32, so these must
    be distinct), or a tensor [draws, N, C, *spatial]; draw i is used by step i, whether or not that step churns.
    class_labels: an int, N ints, or one-hot/soft [N, label_dim]; None lets each seed draw its class (conditional
    networks). guidance: one of `engine.guidance`. image: start from [N, C, *spatial] with noise added instead of from
    noise alone; the sampler's sigma_max says how much. mask: bool, broadcast to the image's shape: inpaint where it is
    false, keep the image where it is true (every evaluation's D is then known there, as float32). offset_noise:
    standard deviation of noise added to whole channels of the latents. progress: a bar over evaluations on stderr.
    callback: called with an `engine.Progress` after every callback_every evaluations of a batch and after its last; to
    stop early, raise an exception of your own. While a callback runs its engine is busy: it must not draw with that
    engine, and must not wait for another thread that does. The other arguments are those of `Engine`, which is the
    better choice for repeated calls. May be called from several threads at once, as `Engine` says.

    Raises ValueError for a bad argument before any work, `NonFiniteError` if a sample did not stay finite.
    """
    batches = stream(
        denoiser,
        seeds=seeds,
        latents=latents,
        noise=noise,
        class_labels=class_labels,
        sampler=sampler,
        guidance=guidance,
        image=image,
        mask=mask,
        offset_noise=offset_noise,
        batch_size=batch_size,
        batch_invariant=batch_invariant,
        buckets=buckets,
        graph=graph,
        graph_memory=graph_memory,
        compile=compile,
        dtype=dtype,
        state_dtype=state_dtype,
        output_dtype=output_dtype,
        backend=backend,
        device=device,
        progress=progress,
        callback=callback,
        callback_every=callback_every,
        on_nonfinite=on_nonfinite,
    )
    return torch.cat([images for _, images in batches])


def stream(denoiser: Denoiser, **options: Unpack[Sampling]) -> Iterator[tuple[tuple[int, ...], Tensor]]:
    """Like `sample`, batch by batch as they finish: yields (where the images stand in what was asked for, images).

    options: those of `sample`. All is checked by this call; the work is done as the iterator is read.
    """
    require_known("stream", options, Sampling)
    of_engine: Any = {name: value for name, value in options.items() if name in Options.__annotations__}
    of_call: Any = {name: value for name, value in options.items() if name not in of_engine}
    return Engine(denoiser, **of_engine).stream(**of_call)


def invert(
    denoiser: Denoiser,
    images: Tensor,
    *,
    class_labels: Labels = None,
    sampler: Sampler | AdaptiveSampler | None = None,
    progress: bool = False,
    **options: Any,
) -> Tensor:
    """The latents [N, C, *spatial], unit variance, from which a deterministic sampler draws these images again.

    It solves the probability-flow ODE backwards over the sampler's own noise levels, up to the sampler's error. images:
    floating [N, C, *spatial], in the range the network was trained on; class_labels: their classes, needed for a
    conditional network. options: those of `Engine`. Raises ValueError for a bad argument before any work.
    """
    require_known("invert", options, Options)
    inverse = InversionSampler.of(sampler or edm())
    engine = Engine(denoiser, sampler=inverse, **options)
    require_images("images", images, denoiser.img_shape)
    x = engine.sample(latents=images, class_labels=class_labels, progress=progress)
    return x / inverse.levels.sigmas(denoiser.preconditioning)[0].item()

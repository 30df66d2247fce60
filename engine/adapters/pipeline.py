"""``EnginePipeline``: a pipeline of diffusers whose denoising loop is the engine's fused one."""

from typing import Any, Literal

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from torch import Tensor

from ..allowed import integer
from ..engine import Engine
from ..guidance import Guidance
from ..job import Labels, Seeds
from ..plan import Sampler
from ..samplers import AdaptiveSampler
from .schedule import config_of
from .scheduler import EngineScheduler
from .unet import from_diffusers

_OUTPUTS = ("pil", "np", "pt")


class EnginePipeline(DiffusionPipeline):
    """Images of a UNet that works on pixels, unconditional or conditional, by `Engine`.

    ``EnginePipeline.from_pretrained(folder)`` reads the folder of any such pipeline (``unet`` and ``scheduler``).

    unet: see `from_diffusers`. scheduler: an `EngineScheduler`, or a scheduler of diffusers, whose config makes one.
    Raises ValueError naming what is not supported.
    """

    model_cpu_offload_seq = "unet"

    def __init__(self, unet: Any, scheduler: Any) -> None:
        super().__init__()
        if not isinstance(scheduler, EngineScheduler):
            scheduler = EngineScheduler.from_config(config_of(scheduler))
        from_diffusers(unet, scheduler)  # refuses now what it would refuse when called
        self.register_modules(unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int | None = None,
        generator: torch.Generator | None = None,
        num_inference_steps: int | None = None,
        *,
        seeds: Seeds | None = None,
        class_labels: Labels = None,
        sampler: Sampler | AdaptiveSampler | None = None,
        guidance: Guidance | None = None,
        output_type: Literal["pil", "np", "pt"] = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draw images; they are those of `engine.sample` for the same seeds, mapped from [-1, 1] to [0, 1].

        batch_size: how many (1 if None), with seeds drawn by ``generator`` (None: torch's default one); or seeds: one
        an image. num_inference_steps: of the scheduler's sampler (50 if None), or sampler: another one, with its own
        steps. class_labels, guidance: those of `engine.sample`. output_type: "pil" a list of images, "np" an array
        [N, H, W, C], "pt" a tensor [N, C, H, W]. Raises ValueError for a bad argument before any work.

        Every call prepares the UNet anew, as its modules may have been changed; an `engine.Engine` of
        `engine.from_diffusers(unet, scheduler)` is prepared once, and on a GPU captured.
        """
        if output_type not in _OUTPUTS:
            raise ValueError(f"output_type is {output_type!r}; allowed: {', '.join(map(repr, _OUTPUTS))}")
        if sampler is not None and num_inference_steps is not None:
            raise ValueError(f"num_inference_steps is {num_inference_steps} and sampler is given; allowed: one of them")
        if seeds is not None and (batch_size, generator) != (None, None):
            raise ValueError("seeds are given with batch_size or generator; allowed: seeds alone, or the others")
        if sampler is None:
            sampler = self.scheduler.sampler_of(50 if num_inference_steps is None else num_inference_steps)
        engine = Engine(from_diffusers(self.unet, self.scheduler), sampler=sampler, guidance=guidance)
        images = engine.sample(
            seeds=_draw_seeds(1 if batch_size is None else batch_size, generator) if seeds is None else seeds,
            class_labels=class_labels,
            progress=not getattr(self, "_progress_bar_config", {}).get("disable", False),
        )
        shown = self._show((images / 2 + 0.5).clamp(0, 1), output_type)
        return ImagePipelineOutput(images=shown) if return_dict else (shown,)

    def _show(self, images: Tensor, output_type: str) -> Any:
        if output_type == "pt":
            return images
        array = images.cpu().permute(0, 2, 3, 1).numpy()
        return self.numpy_to_pil(array) if output_type == "pil" else array


def _draw_seeds(count: int, generator: torch.Generator | None) -> Tensor:
    count = integer("batch_size", count, 1)
    device = "cpu" if generator is None else generator.device
    return torch.randint(0, 2**63 - 1, [count], generator=generator, device=device)

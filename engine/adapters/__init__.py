"""Networks, schedulers and pipelines of other packages, and ours in theirs.

`from_diffusers` and `from_k_diffusion` make a `Denoiser` of what those packages call a model. The other way round:
`engine.adapters.scheduler.EngineScheduler` and `engine.adapters.pipeline.EnginePipeline` are classes of diffusers,
imported on demand because diffusers takes seconds to import; k-diffusion's samplers take a `Denoiser` as it is.
"""

from .k_diffusion import from_k_diffusion
from .unet import from_diffusers

__all__ = ["from_diffusers", "from_k_diffusion"]

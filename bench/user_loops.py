"""Sampling as others write it, from noise to bytes on the host: a user's own loop, k-diffusion's, diffusers'.

Each is Algorithm 2 of Karras et al. 2022 without churn, or has as many evaluations of the network, and takes the
network as a plain module with its preconditioning (`engine.Denoiser`): no part of an `engine.Engine`.
"""

import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor

from bench.k_diffusion_modules import k_diffusion_module
from engine import Denoiser
from engine.preconditioning import EDM

# latents [B, C, *spatial] of unit variance, labels [B, label_dim] or None, steps of Heun -> uint8 on the host.
UserLoop = Callable[[Denoiser, Tensor, Tensor | None, int], Tensor]
SIGMA_MIN, SIGMA_MAX, RHO = 0.002, 80.0, 7.0


class CannotRun(Exception):
    """Why a variant cannot run here."""


def to_bytes(x: Tensor) -> Tensor:
    """[-1, 1] -> uint8 on the host."""
    return (x * 127.5 + 128).clip(0, 255).to(torch.uint8).cpu()


def levels(steps: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Equation 5 and the 0 after it, [steps + 1]."""
    ramp = torch.arange(steps, dtype=torch.float64) / max(steps - 1, 1)
    t = (SIGMA_MAX ** (1 / RHO) + ramp * (SIGMA_MIN ** (1 / RHO) - SIGMA_MAX ** (1 / RHO))) ** RHO
    return torch.cat([t, torch.zeros_like(t[:1])]).to(device, dtype)


@torch.no_grad()
def heun(net: Denoiser, latents: Tensor, labels: Tensor | None, steps: int) -> Tensor:
    """The final x, float64, by the published loop: state and levels in float64 on the device, Python at every step.

    Nobody waits for the device inside: without churn there is no level to compare.
    """
    t_steps = net.round_sigma(levels(steps, latents.device, torch.float64))
    x_next = latents.to(torch.float64) * t_steps[0]
    for i in range(steps):
        x_cur, t_cur, t_next = x_next, t_steps[i], t_steps[i + 1]
        denoised = net(x_cur, t_cur, labels).to(torch.float64)
        d_cur = (x_cur - denoised) / t_cur
        x_next = x_cur + (t_next - t_cur) * d_cur
        if i < steps - 1:
            denoised = net(x_next, t_next, labels).to(torch.float64)
            d_prime = (x_next - denoised) / t_next
            x_next = x_cur + (t_next - t_cur) * (0.5 * d_cur + 0.5 * d_prime)
    return x_next


def plain(net: Denoiser, latents: Tensor, labels: Tensor | None, steps: int) -> Tensor:
    """`heun` to bytes on the host."""
    return to_bytes(heun(net, latents, labels, steps))


def k_diffusion_loop() -> UserLoop:
    """k-diffusion's sample_heun, which takes our denoiser as it is; state float32. Raises `CannotRun`."""
    if importlib.util.find_spec("k_diffusion") is None:
        raise CannotRun("k-diffusion is not installed")
    try:
        # Its sampling alone: the package imports much that samplers do not need.
        sampling = k_diffusion_module("sampling")
    except ImportError as error:
        raise CannotRun(f"k-diffusion cannot be imported: {error}") from None

    @torch.no_grad()
    def draw(net: Denoiser, latents: Tensor, labels: Tensor | None, steps: int) -> Tensor:
        sigmas = levels(steps, latents.device, torch.float32)
        extra = {} if labels is None else {"class_labels": labels}
        return to_bytes(sampling.sample_heun(net, latents * sigmas[0], sigmas, extra_args=extra, disable=True))

    return draw


def diffusers_loop() -> UserLoop:
    """diffusers' EDMEulerScheduler around the network itself: 2 steps - 1 Euler steps, so as many evaluations.

    The scheduler's own preconditioning is EDM's, and it rounds the state to the network's dtype at every step.
    Raises `CannotRun`.
    """
    if importlib.util.find_spec("diffusers") is None:
        raise CannotRun("diffusers is not installed")
    try:
        from diffusers import EDMEulerScheduler
    except (ImportError, RuntimeError) as error:
        raise CannotRun(f"diffusers cannot be imported: {error}") from None

    @torch.no_grad()
    def draw(net: Denoiser, latents: Tensor, labels: Tensor | None, steps: int) -> Tensor:
        if not isinstance(net.preconditioning, EDM):
            raise CannotRun(f"the scheduler's preconditioning is EDM's, the network's {net.preconditioning}")
        scheduler = EDMEulerScheduler(sigma_data=net.preconditioning.sigma_data)
        scheduler.set_timesteps(2 * steps - 1, device=latents.device)
        x, given = latents * scheduler.init_noise_sigma, () if labels is None else (labels,)
        for t in scheduler.timesteps:
            net_in = scheduler.scale_model_input(x, t).to(net.dtype)
            x = scheduler.step(net.model(net_in, t.expand(len(x)), *given), t, x).prev_sample
        return to_bytes(x.float())

    return draw

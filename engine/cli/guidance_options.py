"""``--guidance`` and what goes with it."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from .. import checkpoints
from ..denoiser import Denoiser
from ..guidance import AutoGuidance, ClassifierFree, ClassifierGuidance, Guidance, UntrainedClassifier, gradient_of
from ..metrics import load_classifier
from ..prepare import find_device
from .types import FloatList

Command = TypeVar("Command", bound=Callable[..., Any])
_OPTIONS = [
    click.option(
        "--guidance",
        type=FloatList(),
        help="Weight, or weights dealt to the seeds in turn, e.g. 1,2,4. Alone it is classifier-free guidance, for "
        "networks trained with label dropout (the shipped one was not).",
    ),
    click.option("--guidance-interval", type=FloatList(2), help="Lowest and highest sigma to guide at, e.g. 0.2,5."),
    click.option("--guidance-rescale", type=float, help="phi: towards the unguided standard deviation, 0 to 1."),
    click.option("--negative", type=int, help="The class to move away from, instead of from no class."),
    click.option("--guide", help="A worse network, shipped name or file: autoguidance instead of classifier-free."),
    click.option(
        "--classifier",
        help="Classifier guidance: fashion-mnist (trained on clean images: use with a low interval), or untrained:SEED "
        "(misguided).",
    ),
]


def guidance_options(command: Command) -> Command:
    """The options of guidance; see `take_guidance`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def take_guidance(options: dict[str, Any], denoiser: Denoiser, count: int, device: str = "cpu") -> Guidance | None:
    """The guidance that the options name, which are taken out of ``options``; None without ``--guidance``."""
    weights, negative, guide, classifier = (options.pop(n) for n in ("guidance", "negative", "guide", "classifier"))
    given = {name: options.pop(f"guidance_{name}") for name in ("interval", "rescale")}
    shared: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    others = {"--negative": negative, "--guide": guide, "--classifier": classifier}
    named = [name for name, value in others.items() if value is not None]
    if weights is None:
        alone = [*named, *(f"--guidance-{name}" for name in shared)]
        if alone:
            raise click.UsageError(f"{alone[0]} needs --guidance")
        return None
    if len(named) > 1:
        raise click.UsageError(f"{' and '.join(named)} exclude each other")
    shared["weight"] = weights[0] if len(weights) == 1 else [weights[i % len(weights)] for i in range(count)]
    if guide is not None:
        return AutoGuidance(guide=checkpoints.load(guide), **shared)
    if classifier is not None:
        return ClassifierGuidance(gradient=gradient_of(_classifier(classifier, denoiser, device)), **shared)
    if negative is None and denoiser.label_dim and getattr(denoiser.model, "label_dropout", None) == 0:
        click.echo(
            "--guidance: the network was trained without label dropout; it never saw images of no class", err=True
        )
    return ClassifierFree(negative=negative, **shared)


def _is_seed(text: str) -> bool:
    return text.isascii() and text.isdigit() and int(text) < 2**63


def _classifier(name: str, denoiser: Denoiser, device: str) -> Any:
    """A module called with (x, sigma)."""
    kind, _, seed = name.partition(":")
    if name == "fashion-mnist" and denoiser.img_shape == (1, 32, 32) and denoiser.label_dim == 10:
        classifier = load_classifier().to(find_device(device))
        return lambda x, sigma: classifier(x)
    if kind == "untrained" and _is_seed(seed or "0") and denoiser.label_dim:
        untrained = UntrainedClassifier(denoiser.img_shape[0], denoiser.label_dim, int(seed or 0))
        return untrained.to(find_device(device))
    allowed = "fashion-mnist for a network of its images, untrained:SEED for any network with classes"
    raise click.UsageError(f"--classifier is {name!r}; allowed: {allowed}")

"""``--sampler`` and its options, from the list of samplers: what is listed there is reachable from here."""

import inspect
import types
from collections.abc import Callable
from typing import Any, Literal, TypeVar, get_args, get_origin

import click

from ..plan import Sampler
from ..samplers import REGISTRY, AdaptiveSampler

Command = TypeVar("Command", bound=Callable[..., Any])
# The option names of the published generate.py, where they differ from the parameters'.
_ALIASES = {"S_tmin": ["--S_min"], "S_tmax": ["--S_max"], "discretization": ["--disc", "--timesteps"]}


def sampler_options(command: Command) -> Command:
    """``--sampler NAME`` and one option for every parameter of any sampler; see `take_sampler`."""
    users: dict[str, list[str]] = {}
    parameters: dict[str, inspect.Parameter] = {}
    for name, entry in REGISTRY.items():
        for parameter in inspect.signature(entry.make).parameters.values():
            users.setdefault(parameter.name, []).append(name)
            parameters.setdefault(parameter.name, parameter)
    for name, parameter in reversed(parameters.items()):
        spellings = dict.fromkeys([_flag(name), f"--{name}", *_ALIASES.get(name, [])])
        others = [sampler for sampler in REGISTRY if sampler not in users[name]]
        but = f" but {', '.join(others)}" if others else ""
        text = f"All samplers{but}." if len(others) < len(users[name]) else f"Of {', '.join(users[name])}."
        option = click.option(*spellings, name, type=_click_type(parameter.annotation), default=None, help=text)
        command = option(command)
    choice = click.option("--sampler", type=click.Choice(list(REGISTRY)), default="edm", show_default=True)
    return choice(command)


def take_sampler(options: dict[str, Any]) -> Sampler | AdaptiveSampler:
    """The sampler that the options of `sampler_options` name; an option that it does not take is refused."""
    entry = REGISTRY[options["sampler"]]
    own = inspect.signature(entry.make).parameters
    given = {name: value for name, value in options.items() if name != "sampler" and value is not None}
    for name in sorted(set(given) - set(own)):
        takes = ", ".join(map(_flag, own))
        raise click.UsageError(f"{_flag(name)} is not an option of the sampler {entry.name}; it takes {takes}")
    made: Sampler | AdaptiveSampler = entry.make(**given)
    return made


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _click_type(annotation: Any) -> Any:
    """int, float, a Literal of strings, or one of these or None."""
    if get_origin(annotation) is types.UnionType:
        return _click_type(next(kind for kind in get_args(annotation) if kind is not type(None)))
    if get_origin(annotation) is Literal:
        return click.Choice(list(get_args(annotation)))
    return annotation

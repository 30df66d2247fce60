"""What has been measured: one JSON file a section, saved after every point, so that measuring can go on later."""

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..files import write_bytes
from ..provenance import provenance
from .section import Budget, Point

Json = dict[str, Any]


@dataclass
class Measurements:
    """Of one section. budget: what all its points were measured with. runs: where points come from, `provenance` and
    the command; points: their settings, what was found, and ``run``, an index into runs."""

    section: str
    budget: Json
    runs: list[Json] = field(default_factory=list)
    points: list[Json] = field(default_factory=list)
    path: Path | None = None

    @classmethod
    def load(cls, path: Path) -> "Measurements":
        """Raises ValueError for a file that is no measurements."""
        try:
            read = json.loads(path.read_text())
            return cls(read["section"], read["budget"], read["runs"], read["points"], path)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} holds no measurements ({type(error).__name__}: {error})") from None

    @classmethod
    def of(cls, folder: Path, section: str, budget: Budget) -> "Measurements":
        """Those in a folder, to go on with, or none yet. Raises ValueError where they have another budget: points of
        different budgets do not compare."""
        path, asked = folder / f"{section}.json", budget.record()
        if not path.exists():
            return cls(section, asked, path=path)
        found = cls.load(path)
        for name, value in asked.items():
            if found.budget.get(name) != value:
                given, has = f"{name} is {value!r}", repr(found.budget.get(name))
                raise ValueError(f"{given}; allowed: {has}, as {path} has it, or another folder as --measurements")
        return found

    def save(self) -> None:
        assert self.path is not None
        write_bytes(self.path, self._text().encode())

    def _text(self) -> str:
        """Strict JSON, a run and a point a line: what was measured later is seen as added lines."""

        def listed(entries: list[Json]) -> str:
            return ",\n".join(json.dumps(entry, allow_nan=False) for entry in entries)

        first = f'{{"section": {json.dumps(self.section)}, "budget": {json.dumps(self.budget)}'
        return f'{first},\n"runs": [\n{listed(self.runs)}\n],\n"points": [\n{listed(self.points)}\n]}}\n'

    def where(self, **settings: Any) -> list[Json]:
        """The points of these settings, in the order of measuring."""
        return [point for point in self.points if all(point.get(name) == value for name, value in settings.items())]


def take(
    measurements: Measurements,
    points: Iterable[Point],
    budget: Budget,
    command: str,
    until: float = float("inf"),
    tell: Callable[[str], object] = lambda line: None,
) -> int:
    """Measure the points that are not there yet, saving after each; how many there still are when `time.monotonic`
    passes ``until``."""
    missing = [point for point in points if not measurements.where(**point.settings)]
    run, runs = provenance(budget.torch_device) | {"command": command}, measurements.runs
    for done, point in enumerate(missing):
        if time.monotonic() > until:
            return len(missing) - done
        started = time.monotonic()
        found = point.measure()
        if run not in runs:
            runs.append(run)
        measurements.points.append(point.settings | found | {"run": runs.index(run)})
        measurements.save()
        tell(f"{measurements.section} {done + 1}/{len(missing)} {point.settings} {time.monotonic() - started:.0f} s")
    return 0

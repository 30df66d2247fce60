"""``draw_to``: jobs of any size to files, in parts that several processes draw and that an interruption keeps."""

import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor

from . import record
from .dealing import Alone, Team
from .engine import Engine
from .files import locked, write_bytes
from .job import Asked, require_known
from .networks.layers import GroupNorm
from .outputs import SHARD, Images, Output, open_output
from .outputs.base import Label
from .plan import Sampler
from .provenance import code
from .writing import Writing

# Batches drawn by a GPU that may wait to be written. A CPU gains nothing by drawing one while another is written, and a
# process that holds one batch only leaves more to those that are quicker.
_WAITING = 2


@dataclass(frozen=True)
class Drawn:
    """What one process did. output: the files of the whole job. drawn: images drawn by this process. torn: files that
    `resume` found to be other than they should be, and that are drawn anew. last: whether this process ended the job.
    seconds: of verifying, drawing and writing. removed: files of an earlier job that this one began with removing.
    """

    output: Output
    drawn: int
    seconds: float
    torn: tuple[str, ...]
    last: bool
    removed: int = 0


class Drawing:
    """A job on its way to files, checked. Its unit is a batch: whoever draws it, whenever, its images are the same.

    output: the files; for the other arguments see `draw_to`. Raises ValueError for a bad argument.
    """

    def __init__(
        self,
        engine: Engine,
        folder: Path | str,
        *,
        format: str = "png",
        subdirs: bool = False,
        shard: int | None = None,
        settings: Mapping[str, Any] | None = None,
        **asked: Unpack[Asked],
    ) -> None:
        if not isinstance(engine, Engine):
            raise ValueError(f"engine is a {type(engine).__name__}; allowed: an engine.Engine")
        require_known("draw_to", asked, Asked)
        seeds: Any = asked.get("seeds")
        if isinstance(seeds, Iterator):
            asked["seeds"] = list(seeds)  # they are read more than once
        self.engine, self.asked = engine, asked
        labels = engine.labels(**asked)
        if labels is not None:
            self.asked["class_labels"] = labels  # not drawn from the seeds a second time
        shape = engine.denoiser.img_shape
        numbers = _numbers(asked)
        images = Images(numbers, _named(labels), shape)
        self.output = open_output(format, Path(folder), images, engine.batch_size, subdirs=subdirs, shard=shard)
        files = {"format": format, "subdirs": subdirs, "shard": SHARD if shard is None else shard}
        own = {
            "seeds": numbers,
            "classes": _classes(images.labels),
            "batch_size": engine.batch_size,
            **files,
            **_numerics(engine),
        }
        own["asked"] = {name: value for name, value in self.asked.items() if name != "seeds"}
        self.settings = {**(settings or {}), **own}

    def begin(self, resume: bool) -> None:
        """By one process, first: settings.json is written, or compared with if a job is there to be resumed."""
        folder = self.output.folder
        if resume and (folder / record.SETTINGS).exists():
            record.require_same(folder, self.settings)
            self.output.begin(resume=True)
        else:
            record.require_job(folder, self.output.lists())
            settings = record.encode(self.settings)  # before anything of an earlier job is removed
            self.output.begin(resume=False)  # first: no settings may stand beside what other ones left
            write_bytes(folder / record.SETTINGS, settings)

    def join(self) -> None:
        """By every process, once the job has begun. Raises ValueError if this one would draw other images."""
        record.require_same(self.output.folder, self.settings)

    def draw(self, batches: Iterable[int], progress: bool = False) -> Generator[tuple[int, int], None, None]:
        """Draw and write batches, by number; yields (number, images) when one is safe, while others are being drawn."""
        drawn = closing(self.engine.stream_uint8(batches=batches, progress=progress, **self.asked))
        waiting = _WAITING if self.engine.device.type == "cuda" else 0
        with Writing(self.output, waiting) as writing, drawn as stream:
            for positions, images in stream:
                yield from writing.add(positions[0] // self.engine.batch_size, images)
            yield from writing.rest()

    def run(self, *, resume: bool = False, team: Team | None = None, progress: bool = False) -> Drawn:
        """The whole job, or this process's share of it; see `draw_to`."""
        output, team, drawn = self.output, team or Alone(), 0
        team.start(output.batches)
        with ExitStack() as held:

            def begin() -> None:
                held.enter_context(locked(output.folder))
                self.begin(resume)

            team.once(begin)
            self.join()
            started = time.perf_counter()
            batches = self.draw(_missing(output, team) if resume else team.deal(), progress)
            with closing(batches):  # the bar ends before anybody says why: a traceback would keep it alive
                for _, count in batches:
                    drawn += count
                    team.done()
            if team.last:
                output.finish()
            seconds = time.perf_counter() - started
            team.leave()
        return Drawn(output, drawn, seconds, tuple(output.torn), team.last, output.removed)


def draw_to(
    engine: Engine,
    folder: Path | str,
    *,
    resume: bool = False,
    team: Team | None = None,
    progress: bool = False,
    **job: Any,
) -> Drawn:
    """Draw a job of any size to files in ``folder``, in constant memory.

    job: what `Engine.sample` is asked for (seeds, class_labels, ...; noise "torch" and "edm2" take seeds that are
    distinct modulo 2**32), and
    format: "png", a file a seed (subdirs: in a sub-folder for every thousand); "zip", uncompressed, with the
    dataset.json of the published EDM code; "tar", WebDataset shards of ``shard`` images, by default 1,000; "npz", with
    arrays images uint8 [N, H, W, C], seeds and labels. Files are whole or absent; archives appear when the job ends.
    settings: what settings.json is to say beside what it takes to draw the same again.

    resume: go on with the job in ``folder``, if there is one: what is there is verified and kept, what is missing or
    torn is drawn. Without it the job starts anew: the files of an earlier job, as its lists of checksums name them, are
    removed first. team: None for this process alone, `dealing.Ranks.of_torchrun()` for a rank of torchrun, all of which
    write to one folder. The images are the same bits however the job was divided (docs/large-jobs.md).

    Raises ValueError for a bad argument, for settings other than those of the job to be resumed, for a folder with a
    settings.json that no job has written, and while another process draws a job of its own into the folder, before any
    work;
    OSError naming the file that could not be written: what was written stays, and can be resumed.
    """
    return Drawing(engine, folder, **job).run(resume=resume, team=team, progress=progress)


def _missing(output: Output, team: Team) -> Iterator[int]:
    for number in team.deal():
        if output.complete(number):
            team.done()
        else:
            yield number


def _numbers(asked: Asked) -> list[int]:
    """What names each image: its seed, or its place among the latents."""
    seeds, latents = asked.get("seeds"), asked.get("latents")
    if seeds is not None:
        return list(map(int, seeds))
    return list(range(0 if latents is None else len(latents)))


def _named(labels: Tensor | None) -> list[Label] | None:
    """Each label as its class, or if one of them is soft, all as numbers."""
    if labels is None:
        return None
    top = labels.argmax(1)
    hard = torch.equal(torch.nn.functional.one_hot(top, labels.shape[1]).to(labels.dtype), labels)
    return list(top.tolist() if hard else labels.tolist())


def _classes(labels: Sequence[Label] | None) -> list[int] | None:
    """The class of each image, for those who look into settings.json; None where there are none, or labels are soft."""
    hard = [label for label in labels or () if isinstance(label, int)]
    return hard or None


def _numerics(engine: Engine) -> dict[str, Any]:
    """What an image's bits depend on beside what was asked for."""
    on_cpu = engine.device.type == "cpu"
    return {
        "code": code(),
        # Torch's operations on a CPU may choose their summation order by both.
        "threads": torch.get_num_threads() if on_cpu else None,
        "instructions": torch.backends.cpu.get_cpu_capability() if on_cpu else None,
        "preconditioning": engine.denoiser.preconditioning,
        "network": record.weights(engine.denoiser),
        # Of the caller's own: in an engine's copy lies also what its layers prepare, and what its batches left.
        "network_modules": record.modules(engine.source),
        "operations": sorted({m.ops.name for m in engine.denoiser.modules() if isinstance(m, GroupNorm)}),
        "compile": engine.compile,
        "output_dtype": str(engine.output_dtype),
        "batch_invariant": engine.batch_invariant,
        "buckets": engine.buckets,
        "network_dtype": str(engine.denoiser.dtype),
        "state_dtype": str(engine.state_dtype),
        "network_device": "cpu" if on_cpu else torch.cuda.get_device_name(engine.device),
        "plan": engine.sampler if is_dataclass(engine.sampler) else type(engine.sampler).__qualname__,
        "table": _table(engine),
        "guided": engine.guidance,
    }


def _table(engine: Engine) -> str | None:
    """Of the sampler as bound to the network: what tells a user's own from another of its name, and a later version's
    rows from these. An adaptive one has none."""
    if not isinstance(engine.sampler, Sampler):
        return None
    return f"sha256:{engine.plans(engine.sampler).digest}"

"""A job drawn by the actors of a Ray cluster; needs the extra ``ray``."""

import pickle
import time
from collections.abc import Callable
from functools import cached_property
from typing import Any

from .drawing import Drawing, Drawn
from .files import locked


def draw_on_ray(make: Callable[[], Drawing], *, resume: bool = False, workers: int | None = None) -> Drawn:
    """Draw a job by Ray Data: its batches are a dataset, mapped by actors that each hold an engine.

    make: builds the same `Drawing` here and in every actor, from what all machines can reach; the folder it writes to
    must be one file system for all. resume: as in `draw_to`. workers: how many actors; None lets Ray choose, up to all
    of the cluster. Each has one CPU, or one GPU where the engine is on CUDA. A cluster that `ray.init` has joined is
    used, else a local one is started.

    Raises ImportError without Ray, what `draw_to` raises (an actor's errors too), and Ray's own errors.
    """
    try:
        import ray
    except ImportError:
        raise ImportError("ray is not installed; pip install 'edm-engine[ray]'") from None
    drawing = make()
    with locked(drawing.output.folder):
        return _draw(ray, drawing, make, resume, workers)


def _draw(ray: Any, drawing: Drawing, make: Callable[[], Drawing], resume: bool, workers: int | None) -> Drawn:
    drawing.begin(resume)
    output, gpu = drawing.output, drawing.engine.device.type == "cuda"
    batches = ray.data.from_items([{"batch": b} for b in range(output.batches)], override_num_blocks=output.batches)
    pool = ray.data.ActorPoolStrategy(size=workers) if workers else ray.data.ActorPoolStrategy(min_size=1)
    mapped = batches.map_batches(
        _Worker,
        fn_constructor_args=(make, resume),
        batch_size=1,
        compute=pool,
        num_cpus=0 if gpu else 1,
        num_gpus=1 if gpu else 0,
    )
    drawn, torn, started = 0, dict[str, None](), time.perf_counter()
    for row in mapped.iter_rows():  # one a batch, as they are done
        if row["error"]:
            raise pickle.loads(row["error"])
        drawn += row["drawn"]
        torn |= dict.fromkeys(row["torn"].split())
    output.finish()
    return Drawn(output, drawn, time.perf_counter() - started, tuple(torn), last=True, removed=output.removed)


class _Worker:
    """One actor. Its errors are returned: raised here they would come as pages of Ray's traceback."""

    def __init__(self, make: Callable[[], Drawing], resume: bool) -> None:
        self.make, self.resume = make, resume

    @cached_property
    def drawing(self) -> Drawing:
        drawing = self.make()
        drawing.join()
        return drawing

    def __call__(self, rows: dict[str, Any]) -> dict[str, Any]:
        try:
            drawn, torn = self.draw(int(rows["batch"][0]))
            return {"drawn": [drawn], "torn": [torn], "error": [b""]}
        except (ValueError, OSError, ArithmeticError) as error:
            return {"drawn": [0], "torn": [""], "error": [pickle.dumps(error)]}

    def draw(self, batch: int) -> tuple[int, str]:
        """The number of images drawn, and names of torn files with spaces between."""
        output = self.drawing.output
        output.torn = []
        if self.resume and output.complete(batch):
            return 0, ""
        return sum(count for _, count in self.drawing.draw([batch])), " ".join(output.torn)

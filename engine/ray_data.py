"""A job drawn by the actors of a Ray cluster; needs the extra ``ray``."""

from collections.abc import Callable
from typing import Any

from .drawing import Drawing, Drawn


def draw_on_ray(make: Callable[[], Drawing], *, resume: bool = False, workers: int | None = None) -> Drawn:
    """Draw a job by Ray Data: its batches are a dataset, mapped by actors that each hold an engine.

    make: builds the same `Drawing` here and in every actor, from what all machines can reach; the folder it writes to
    must be one file system for all. resume: as in `draw_to`. workers: how many actors; None lets Ray choose, up to all
    of the cluster. Each has one CPU, or one GPU where the engine is on CUDA. A cluster that `ray.init` has joined is
    used, else a local one is started.

    Raises ImportError without Ray, what `draw_to` raises, and Ray's own errors.
    """
    try:
        import ray
    except ImportError:
        raise ImportError("ray is not installed; pip install 'edm-engine[ray]'") from None
    drawing = make()
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
    rows = list(mapped.iter_rows())  # one a batch
    output.finish()
    torn = {name: None for row in rows for name in row["torn"].split()}
    return Drawn(output, sum(row["drawn"] for row in rows), tuple(torn), last=True)


class _Worker:
    """One actor."""

    def __init__(self, make: Callable[[], Drawing], resume: bool) -> None:
        self.drawing, self.resume = make(), resume
        self.drawing.join()

    def __call__(self, rows: dict[str, Any]) -> dict[str, Any]:
        output, drawn = self.drawing.output, 0
        for batch in map(int, rows["batch"]):
            if not (self.resume and output.complete(batch)):
                drawn += sum(count for _, count in self.drawing.draw([batch]))
        torn, output.torn = " ".join(output.torn), []
        return {"drawn": [drawn], "torn": [torn]}

"""Samples that stop being finite: never an image, always an error that says where, or drawn again in float32."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .job import Job
from .launch import Finish, Launched, Launcher
from .modes import own_modes
from .options import OnNonFinite
from .overflow import first_nonfinite
from .run import Run, Watch
from .warn import warn_caller

Twin = Callable[[Run, torch.dtype], tuple[Launcher, Run]]


class NonFiniteError(ArithmeticError):
    """A sample became infinite or NaN; the message names its seed, the row and the network's dtype."""


@dataclass(frozen=True)
class Mending:
    """What an engine does about them. twin: what draws samples one by one, with a network of its own in a dtype."""

    on_nonfinite: OnNonFinite
    twin: Twin

    def images(self, launched: Launched, finish: Finish) -> Tensor:
        """A batch's images when they are there; those that did not stay finite drawn again, if that was asked for."""
        bad_row, images = launched.bad_row.wait(), launched.images.wait()
        broken = [sample for sample, row in enumerate(bad_row.tolist()) if row >= 0]
        if broken:
            with own_modes(launched.run.device):
                images[broken] = self._again(launched, broken, bad_row, finish).to(images.device)
        return images

    def _again(self, launched: Launched, broken: list[int], bad_row: Tensor, finish: Finish) -> Tensor:
        """The samples that did not stay finite, each alone in float32. Raises `NonFiniteError` if that was not asked
        for, or has been done."""
        run, job, first = launched.run, launched.job, broken[0]
        where = f"at row {int(bad_row[first]) % len(run.plan.rows)} of the plan"
        dtype = run.denoiser.dtype
        what = (
            f"{job.name(first)}{f' (and {len(broken) - 1} more)' if len(broken) > 1 else ''} became non-finite "
            f"{'in rk45' if run.adaptive else where}; network dtype {dtype}, state dtype {run.state_dtype}; "
            f"{self._culprit(run, job, first)}"
        )
        if self.on_nonfinite == "raise" or dtype not in (torch.float16, torch.bfloat16):
            raise NonFiniteError(what)
        warn_caller(f"{what}; run again in float32")
        launcher, again = self.twin(run, torch.float32)
        alone = (launcher.launch(again, job.take([sample]), Watch(), finish) for sample in broken)
        return torch.cat([self.images(each, finish) for each in alone])

    def _culprit(self, run: Run, job: Job, sample: int) -> str:
        """Where a batch first was not finite, found by drawing it once more; the sample alone where it does not fit."""
        try:
            _, again = self.twin(run, run.denoiser.dtype)
            with first_nonfinite(again.networks) as found:
                try:
                    again.eagerly(job, Watch())
                except torch.OutOfMemoryError:
                    again.eagerly(job.take([sample]), Watch())
        except Exception as error:  # of any kind: what is to be told is that samples are not finite
            return f"its layer is not known, as drawing it again raised {type(error).__name__}"
        return f"first in {found[0]}" if found else "not in a layer of the network"

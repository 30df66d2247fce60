"""Plans of one denoiser, made once for each of the samplers used last: that takes as long as an evaluation or two."""

import threading
from collections import OrderedDict

from .plan import Plan, Sampler
from .preconditioning import Preconditioning

_KEPT = 16


class PlanCache:
    """May be asked from several threads. A sampler is what its hash and equality say: a frozen record."""

    def __init__(self, preconditioning: Preconditioning) -> None:
        self._preconditioning, self._lock = preconditioning, threading.Lock()
        self._plans: OrderedDict[Sampler, Plan] = OrderedDict()

    def __call__(self, sampler: Sampler) -> Plan:
        """The sampler's plan. Raises ValueError as `Plan` does."""
        try:
            with self._lock:
                if sampler in self._plans:
                    self._plans.move_to_end(sampler)
                    return self._plans[sampler]
        except TypeError:  # a user's own, that is not hashable
            return Plan(sampler, self._preconditioning)
        plan = Plan(sampler, self._preconditioning)
        with self._lock:
            self._plans[sampler] = plan
            while len(self._plans) > _KEPT:
                self._plans.popitem(last=False)
        return plan

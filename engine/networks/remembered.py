"""Evaluations of a network on a CPU, remembered: what they call, without the Python that decides on it.

To call one of our operations from Python takes as long as the operation itself where network and batch are small;
modules, layouts, shapes and checks come to the same for inputs of the same shapes, as they do for a CUDA graph. So the
second evaluation of a shape is recorded (`recording`), and those that follow are replayed (`tape`), in memory that was
planned once (`arena`). The same operations in the same order give the same bits.
"""

from collections import OrderedDict
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules import module
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from .recording import record
from .tape import Tape

_KEPT = 2  # shapes of a network's inputs: a job's batches, and its last; oneDNN's weights are packed for each


class Remembered:
    """A network's evaluations, replayed from the third of a shape on. The network must be in eval mode, decide nothing
    by values, keep its modules, and its weights where they are, and compute with torch alone: what passes through
    another library's arrays is taken for constant.

    With gradients, under autocast, and while somebody listens to its modules (forward hooks) or to torch's operations
    (a dispatch mode), it is called as it is; always, where what it does cannot be followed (`recording.record`).
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        hooks = [hooks for m in network.modules() for hooks in (m._forward_hooks, m._forward_pre_hooks)]
        self._hooks = [module._global_forward_hooks, module._global_forward_pre_hooks, *hooks]
        self._tapes: OrderedDict[Hashable, Tape | nn.Module | None] = OrderedDict()

    def tape_for(self, *inputs: Tensor | None) -> Tape | None:
        """What replays inputs of these shapes, if anything does yet."""
        found = self._tapes.get(_shapes(inputs))
        return found if isinstance(found, Tape) else None

    def __call__(self, *inputs: Tensor | None) -> Tensor:
        watched = any(self._hooks) or is_in_torch_dispatch_mode()
        if watched or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
            out: Tensor = self._network(*inputs)
            return out
        key = _shapes(inputs)
        tape = self._tapes.get(key)
        if tape is not None:
            out = tape(*inputs)
            return out
        if key in self._tapes:
            return self._record(key, inputs)
        self._tapes[key] = None
        for oldest in list(self._tapes)[:-_KEPT]:  # a copy: other threads may be at it too
            self._tapes.pop(oldest, None)
        out = self._network(*inputs)
        return out

    def _record(self, key: Hashable, inputs: Sequence[Tensor | None]) -> Tensor:
        out, tape = record(self._network, inputs)
        self._tapes[key] = tape or self._network
        made: Tensor = out
        return made


def _shapes(inputs: Sequence[Tensor | None]) -> Hashable:
    return tuple(None if t is None else (t.shape, t.stride(), t.dtype) for t in inputs)

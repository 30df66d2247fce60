"""The names a checkpoint's pickle may hold: containers, numbers, tensors and dtypes, and what each becomes."""

from collections.abc import Callable, Collection, Mapping

import numpy as np
import torch

from .restricted import Instance, Known, hashable
from .storage import STORAGE_CLASSES, Budget, StoredTensor, rebuild_tensor

_MODULES = tuple(f"torch.nn.modules.container.{kind}" for kind in ("ModuleDict", "ModuleList", "Sequential"))
_EASY_DICTS = ("dnnlib.util.EasyDict", "dnnlib.EasyDict")
_DTYPES = {str(value) for value in vars(torch).values() if isinstance(value, torch.dtype)}
_LEAVES = {name: Known(name) for name in (*STORAGE_CLASSES, *_DTYPES)}
_NUMBERS = frozenset(["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"])


def tensor_names(size: int) -> dict[str, Known]:
    """What a file of torch.save may name: enough for state dicts, optimizers and EMA lists. size: of the file."""
    containers, tensors = _Containers(Budget(size)), _Tensors(Budget(size))
    makers: dict[str, Callable[..., object]] = {
        "collections.OrderedDict": containers.mapping,
        "builtins.set": containers.set,
        "builtins.frozenset": containers.set,
        "_codecs.encode": containers.encode,
        "torch.Size": containers.tuple,
        "torch.device": _device,
        "torch._utils._rebuild_tensor_v2": tensors.rebuild,
        "torch._utils._rebuild_parameter": tensors.parameter,
        "numpy.dtype": _NumpyDtype,
        "numpy.core.multiarray.scalar": _numpy_scalar,
        "numpy._core.multiarray.scalar": _numpy_scalar,
    }
    return _LEAVES | _with_python_2({name: Known(name, make) for name, make in makers.items()})


def module_names(size: int) -> dict[str, Known]:
    """What a pickle of whole modules names besides: the modules that hold others, and EasyDict."""
    containers = _Containers(Budget(size))
    makers = {name: Known(name, containers.mapping) for name in _EASY_DICTS}
    modules = {name: Known(name, lambda name=name: Instance(name)) for name in _MODULES}
    return makers | modules


def _with_python_2(names: Mapping[str, Known]) -> dict[str, Known]:
    """Also under the module name that protocols up to 2 use for builtins."""
    built_in = {name: known for name, known in names.items() if name.startswith("builtins.")}
    return dict(names) | {name.replace("builtins", "__builtin__"): known for name, known in built_in.items()}


class _Containers:
    """Copies of containers; a file cannot have more items copied than it has bytes."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget

    def _spend(self, items: object, kinds: tuple[type, ...]) -> None:
        if not isinstance(items, Collection) or not isinstance(items, kinds):
            raise ValueError(f"it makes a container or bytes of a {type(items).__name__}")
        self.budget.spend(len(items), "its containers")

    def mapping(self, items: object = ()) -> dict[object, object]:
        """A dict, an OrderedDict or an EasyDict, from another or from pairs."""
        self._spend(items, (dict, list, tuple))
        pairs = items.items() if isinstance(items, dict) else items
        return {hashable(key): value for key, value in pairs}  # type: ignore[attr-defined]

    def set(self, items: object = ()) -> set[object]:
        self._spend(items, (list, tuple, set))
        return set(map(hashable, items))  # type: ignore[call-overload]

    def tuple(self, items: object = ()) -> tuple[object, ...]:
        self._spend(items, (list, tuple))
        return tuple(items)  # type: ignore[arg-type]

    def encode(self, text: object, encoding: object = "latin1") -> bytes:
        """Bytes, as protocol 2 has them."""
        self._spend(text, (str,))
        if encoding != "latin1":
            raise ValueError("it encodes text in another way than as latin1")
        return str(text).encode("latin-1")


class _Tensors:
    """Views of storages; all tensors together cannot have more bytes than the file."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget

    def rebuild(
        self,
        storage: object,
        offset: object,
        size: object,
        stride: object,
        grad: object = None,
        hooks: object = None,
    ) -> StoredTensor:
        return rebuild_tensor(storage, offset, size, stride, self.budget)

    def parameter(self, data: object, grad: object = None, hooks: object = None) -> StoredTensor:
        if not isinstance(data, StoredTensor):
            raise ValueError(f"a parameter is a {type(data).__name__}, not a tensor")
        return data


class _NumpyDtype:
    """numpy.dtype of one number."""

    def __init__(self, code: object, align: object = False, copy: object = True) -> None:
        if not isinstance(code, str) or code.lstrip("<=|>") not in _NUMBERS:
            raise ValueError("it holds a NumPy dtype that is not a plain number's")
        self.dtype = np.dtype(code)

    def set_state(self, state: object) -> None:
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
        if order not in ("<", "|", "="):
            raise ValueError("it holds a NumPy number that is not little-endian")


def _device(kind: object, index: object = None) -> tuple[object, object]:
    """Where something lay: two arguments at most, so that no long tuple is copied again with every call."""
    return kind, index


def _numpy_scalar(dtype: object, data: object) -> int | float | bool:
    if not isinstance(dtype, _NumpyDtype) or not isinstance(data, bytes) or len(data) != dtype.dtype.itemsize:
        raise ValueError("it holds a NumPy scalar that is not a plain number")
    number: int | float | bool = np.frombuffer(data, dtype.dtype)[0].item()
    return number

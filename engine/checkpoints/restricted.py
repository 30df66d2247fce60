"""A pickle machine that can do nothing: no name in a file is ever imported or called.

`read_pickle` goes through the opcodes and puts together plain containers and numbers. A global is looked up by name in
the caller's table of `Known` records, most of which only stand for themselves; a name that is not there is refused.
Time and memory are linear in the file: what could allocate or copy more (DUP, out-of-band buffers, hashing nested
tuples, memo slots by number) is refused, or is a dict here.
"""

import io
import pickletools
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, eq=False)
class Known:
    """A name a pickle may hold. ``make`` builds its stand-in from the arguments in the file; None: a mere name."""

    name: str
    make: Callable[..., object] | None = None


@dataclass(eq=False)
class Instance:
    """An object of a class by that name, as its state; the class itself is never there."""

    class_name: str
    state: dict[Any, Any] = field(default_factory=dict)

    def set_state(self, state: object) -> None:
        if not isinstance(state, dict):
            raise ValueError(f"the state of a {shown(self.class_name)} is a {type(state).__name__}, not a dict")
        self.state = state


Persistent = Callable[[object], object]
_MARK = object()
_KEYS = (str, int, float, bytes, type(None))  # not tuples: to hash what is nested deeply overflows the C stack


def read_pickle(stream: io.BytesIO, known: Mapping[str, Known], persistent: Persistent | None = None) -> Any:
    """The object of the pickle at the stream's position, which is left behind it; nothing in it is executed.

    ``persistent`` makes an object of a persistent id; without it such ids are refused. Raises ValueError for a name
    that is not in ``known``, an opcode that no checkpoint needs, and a pickle that is broken.
    """
    machine = _Machine(known, persistent)
    try:
        for name, argument in _opcodes(stream):
            if name not in _ACTIONS:
                raise ValueError(f"it uses the opcode {name}, which no checkpoint needs")
            _ACTIONS[name](machine, argument)
        return machine.pop()
    except (LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"its pickle is broken: {type(error).__name__}: {error}") from None


def _opcodes(stream: io.BytesIO) -> Iterator[tuple[str, Any]]:
    try:
        yield from ((opcode.name, argument) for opcode, argument, _ in pickletools.genops(stream))
    except ValueError as error:
        raise ValueError(f"its pickle is broken: {error}") from None


def shown(name: object) -> str:
    """A name out of a file, fit for one line of an error."""
    text = ascii(name[:100])[1:-1] if isinstance(name, str) else type(name).__name__
    return text if len(text) <= 80 else f"{text[:77]}..."


class _Machine:
    def __init__(self, known: Mapping[str, Known], persistent: Persistent | None) -> None:
        self.known, self.persistent = known, persistent
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def push(self, value: object) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise ValueError("its pickle is broken: a mark where a value belongs")
        return value

    def pop_mark(self) -> list[Any]:
        """What was pushed since the last mark."""
        items = []
        while (value := self.stack.pop()) is not _MARK:
            items.append(value)
        return items[::-1]

    def take(self, count: int) -> list[Any]:
        return [self.pop() for _ in range(count)][::-1]

    def memoize(self, index: int) -> None:
        value = self.pop()
        self.memo[index] = value
        self.push(value)

    def top(self, kind: type) -> Any:
        if not isinstance(self.stack[-1], kind):
            raise ValueError(f"its pickle is broken: it puts items into a {type(self.stack[-1]).__name__}")
        return self.stack[-1]

    def extend(self, items: list[Any]) -> None:
        self.top(list).extend(items)

    def add(self, items: list[Any]) -> None:
        self.top(set).update(map(hashable, items))

    def set_items(self, items: list[Any]) -> None:
        if len(items) % 2:
            raise ValueError("its pickle is broken: a key without a value")
        target = self.top(dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[hashable(key)] = value

    def make_dict(self, items: list[Any]) -> None:
        self.push({})
        self.set_items(items)

    def find(self, module: object, name: object) -> None:
        full = f"{module}.{name}" if isinstance(module, str) and isinstance(name, str) else ""
        if full not in self.known:
            raise ValueError(f"it names '{shown(full)}', which is not among what a checkpoint may hold; not executed")
        self.push(self.known[full])

    def make(self) -> None:
        """REDUCE and NEWOBJ: the stand-in of a known name, from the arguments above it."""
        arguments, target = self.pop(), self.pop()
        if not isinstance(target, Known) or target.make is None or not isinstance(arguments, tuple):
            named = target.name if isinstance(target, Known) else type(target).__name__
            raise ValueError(f"it calls '{shown(named)}', which is not among what a checkpoint may call; not executed")
        self.push(target.make(*arguments))

    def build(self) -> None:
        """Give an object its state; attributes of a mapping (a state dict's _metadata) are dropped."""
        state, target = self.pop(), self.stack[-1]
        if hasattr(target, "set_state"):
            target.set_state(state)
        elif not isinstance(target, dict):
            raise ValueError(f"its pickle is broken: it gives a state to a {type(target).__name__}")

    def load_persistent(self, identifier: object) -> None:
        if self.persistent is None:
            raise ValueError("it holds a persistent id, which belongs into a file of torch.save")
        self.push(self.persistent(identifier))


def hashable(key: object) -> Hashable:
    """The key itself, if it is a string, None or a number; not a huge one, which would be hashed again each time."""
    if not isinstance(key, _KEYS) or (isinstance(key, int) and key.bit_length() > 64):
        raise ValueError(f"its pickle is broken: a key is a {type(key).__name__}")
    return key


_Action = Callable[[_Machine, Any], None]


def _for_each(names: str, action: _Action) -> dict[str, _Action]:
    return dict.fromkeys(names.split(), action)


_INTEGERS = "INT BININT BININT1 BININT2 LONG LONG1 LONG4"
_STRINGS = "STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8"
_BYTES = "BINBYTES SHORT_BINBYTES BINBYTES8"
_ACTIONS: dict[str, _Action] = {
    **_for_each("PROTO FRAME STOP", lambda m, _: None),
    **_for_each(f"{_INTEGERS} FLOAT BINFLOAT {_STRINGS} {_BYTES}", lambda m, value: m.push(value)),
    **_for_each("PUT BINPUT LONG_BINPUT", lambda m, index: m.memoize(index)),
    **_for_each("GET BINGET LONG_BINGET", lambda m, index: m.push(m.memo[index])),
    **_for_each("REDUCE NEWOBJ", lambda m, _: m.make()),
    "MEMOIZE": lambda m, _: m.memoize(len(m.memo)),
    "MARK": lambda m, _: m.push(_MARK),
    "NONE": lambda m, _: m.push(None),
    "NEWTRUE": lambda m, _: m.push(True),
    "NEWFALSE": lambda m, _: m.push(False),
    "EMPTY_LIST": lambda m, _: m.push([]),
    "LIST": lambda m, _: m.push(m.pop_mark()),
    "APPEND": lambda m, _: m.extend(m.take(1)),
    "APPENDS": lambda m, _: m.extend(m.pop_mark()),
    "EMPTY_TUPLE": lambda m, _: m.push(()),
    "TUPLE": lambda m, _: m.push(tuple(m.pop_mark())),
    "TUPLE1": lambda m, _: m.push(tuple(m.take(1))),
    "TUPLE2": lambda m, _: m.push(tuple(m.take(2))),
    "TUPLE3": lambda m, _: m.push(tuple(m.take(3))),
    "EMPTY_DICT": lambda m, _: m.push({}),
    "DICT": lambda m, _: m.make_dict(m.pop_mark()),
    "SETITEM": lambda m, _: m.set_items(m.take(2)),
    "SETITEMS": lambda m, _: m.set_items(m.pop_mark()),
    "EMPTY_SET": lambda m, _: m.push(set()),
    "ADDITEMS": lambda m, _: m.add(m.pop_mark()),
    "FROZENSET": lambda m, _: m.push(set(map(hashable, m.pop_mark()))),
    "GLOBAL": lambda m, pair: m.find(*pair.split(" ", 1)),
    "STACK_GLOBAL": lambda m, _: m.find(*m.take(2)),
    "BUILD": lambda m, _: m.build(),
    "PERSID": lambda m, identifier: m.load_persistent(identifier),
    "BINPERSID": lambda m, _: m.load_persistent(m.pop()),
}

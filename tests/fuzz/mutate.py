"""Damage that goes deep: whole opcodes of a pickle moved about, also inside a zip file, whose checksums stay right."""

import io
import itertools
import pickletools
import random
import zipfile


def pieces(data: bytes) -> list[bytes]:
    """The opcodes of all pickles at the beginning of ``data``, and what follows them as a last piece."""
    starts, stream = [], io.BytesIO(data)
    try:
        while stream.tell() < len(data):
            starts += [at for _, _, at in pickletools.genops(stream) if at is not None]
    except Exception:
        starts.append(stream.tell())
    starts = sorted({0, *starts, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(starts)]


def splice(data: bytes, other: bytes, draw: random.Random) -> bytes:
    """Opcodes deleted, repeated, exchanged, or replaced by those of another file, once to four times."""
    if data.startswith(b"PK"):
        return _inside_zip(data, other, draw)
    parts, donors = pieces(data), pieces(other) or [b""]
    for _ in range(draw.randint(1, 4)):
        if not parts:
            break
        at, kind = draw.randrange(len(parts)), draw.choice(["delete", "repeat", "exchange", "replace", "insert"])
        begin = draw.randrange(len(donors))
        taken = donors[begin : begin + draw.randint(1, 8)]
        if kind == "delete":
            del parts[at : at + draw.randint(1, 3)]
        elif kind == "repeat":
            parts[at:at] = [parts[at]] * draw.choice([1, 2, 100])
        elif kind == "exchange":
            to = draw.randrange(len(parts))
            parts[at], parts[to] = parts[to], parts[at]
        else:
            parts[at : at + (kind == "replace")] = taken
    return b"".join(parts)


def _inside_zip(data: bytes, other: bytes, draw: random.Random) -> bytes:
    changed = io.BytesIO()
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(changed, "w") as new:
            for name in old.namelist():
                content = old.read(name)
                new.writestr(name, splice(content, other, draw) if name.endswith(".pkl") else content)
    except Exception:
        return data
    return changed.getvalue()

"""Named ranges in a profiler's timeline (NVTX; ARCHITECTURE.md lists the names)."""

import importlib.util
from contextlib import AbstractContextManager, nullcontext

_DOMAIN = "edm-engine"
_NOTHING = nullcontext()
# Looked for once: the package may be absent where a machine's own Python is used (make test-gpu).
_HAS_NVTX = importlib.util.find_spec("nvtx") is not None


def marked(name: str) -> AbstractContextManager[object]:
    """A range around what is inside; 0.7 us where no profiler listens."""
    if not _HAS_NVTX:
        return _NOTHING
    import nvtx

    return nvtx.annotate(name, domain=_DOMAIN)

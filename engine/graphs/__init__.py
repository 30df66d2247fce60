"""The sampling loop in CUDA graphs: one launch a batch (``loop``), or one a network evaluation (``step``)."""

from .blame import CaptureError
from .capture import Graph
from .captured import MODES, Captured, CapturedLoop, Mode, open_captured

__all__ = ["MODES", "CaptureError", "Captured", "CapturedLoop", "Graph", "Mode", "open_captured"]

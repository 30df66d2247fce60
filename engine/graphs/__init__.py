"""The sampling loop in CUDA graphs: one launch a batch (``loop``), or one a network evaluation (``step``)."""

from .blame import CaptureError
from .capture import Capture, CudaCapture, Graph
from .captured import Captured, CapturedLoop, Mode, open_captured

__all__ = ["Capture", "CaptureError", "Captured", "CapturedLoop", "CudaCapture", "Graph", "Mode", "open_captured"]

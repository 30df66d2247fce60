"""Figures of the papers, measured on the shipped network: sections that measure and draw, and the page of all."""

from . import (
    churn,
    ideal_denoiser,
    quality_vs_nfe,
    sampler_table,
    trajectories,
    truncation_error,
    zero_snr,
)
from .measurements import Measurements, take
from .section import Budget, Drawn, Finding, Point, Section, Table

# In the order of the page. A figure more is a module more.
SECTIONS: tuple[Section, ...] = (
    quality_vs_nfe.SECTION,
    truncation_error.SECTION,
    churn.SECTION,
    trajectories.SECTION,
    ideal_denoiser.SECTION,
    zero_snr.SECTION,
    sampler_table.SECTION,
)

__all__ = ["SECTIONS", "Budget", "Drawn", "Finding", "Measurements", "Point", "Section", "Table", "take"]

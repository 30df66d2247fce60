"""The Frechet distance between two sets of images (Heusel et al. 2017); with Inception's features it is FID."""

import torch
from torch import Tensor

from .statistics import Statistics


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), of means m and covariances S (Dowson and Landau 1982).

    The trace of the root is that of sqrt(S_a) S_b sqrt(S_a), a symmetric matrix with the eigenvalues of S_a S_b: so
    singular covariances, which fewer images than features have, need no care, and nothing is ever complex. The distance
    is biased: fewer images give a larger one. Raises ValueError for statistics of different networks' features.
    """
    a.check_same(b)
    root = _root(a.covariance)
    inner = root @ b.covariance @ root
    eigenvalues = torch.linalg.eigvalsh((inner + inner.T) / 2).clamp(min=0)
    traces = a.covariance.trace() + b.covariance.trace() - 2 * eigenvalues.sqrt().sum()
    return float((a.mean - b.mean).square().sum() + traces)


def _root(covariance: Tensor) -> Tensor:
    """The symmetric root of a symmetric matrix that is positive up to rounding."""
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T

"""Inception score (Salimans et al. 2016), of any classifier's probabilities."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ClassSums:
    """Of ``count`` images: the sum of their class probabilities [K] and of sum_k p_k log p_k, float64.

    That is all the score needs, so a set is measured batch by batch at constant memory.
    """

    count: int
    probabilities: Tensor
    negentropy: float

    @classmethod
    def of(cls, probabilities: Tensor) -> "ClassSums":
        """Of probabilities [B, K]."""
        p = probabilities.double()
        return cls(len(p), p.sum(0), torch.xlogy(p, p).sum().item())

    def __add__(self, other: "ClassSums") -> "ClassSums":
        return ClassSums(
            self.count + other.count, self.probabilities + other.probabilities, self.negentropy + other.negentropy
        )

    @property
    def score(self) -> float:
        """exp of the mean of KL(p(y | x) || p(y)), from 1 to K; p(y) is the mean of p(y | x) over these images."""
        marginal = self.probabilities / self.count
        return math.exp(self.negentropy / self.count - torch.xlogy(marginal, marginal).sum().item())

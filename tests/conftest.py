"""Hypothesis draws the same examples in every run: a red test is red for everybody."""

from hypothesis import settings

from tests.replay import replay

__all__ = ["replay"]  # a fixture

settings.register_profile("same", derandomize=True)
settings.load_profile("same")

"""Hypothesis draws the same examples in every run: a red test is red for everybody."""

from hypothesis import settings

settings.register_profile("same", derandomize=True)
settings.load_profile("same")

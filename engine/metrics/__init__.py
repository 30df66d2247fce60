"""Measures of sample quality."""

from .classifier import Classifier, load_classifier

__all__ = ["Classifier", "load_classifier"]

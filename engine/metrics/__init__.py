"""Measures of sample quality, on the features of any network."""

from .classifier import Classifier, load_classifier
from .features import FeatureExtractor, classifier_features, inception_features
from .frechet import frechet_distance
from .inception_score import ClassSums
from .manifolds import PrecisionRecall, precision_recall
from .quality import Measure, Quality
from .reference import first_features, measure, real_images, reference_statistics
from .scoring import Score, Scorer, draw_measured
from .statistics import Statistics

__all__ = [
    "ClassSums",
    "Classifier",
    "FeatureExtractor",
    "Measure",
    "PrecisionRecall",
    "Quality",
    "Score",
    "Scorer",
    "Statistics",
    "classifier_features",
    "draw_measured",
    "first_features",
    "frechet_distance",
    "inception_features",
    "load_classifier",
    "measure",
    "precision_recall",
    "real_images",
    "reference_statistics",
]

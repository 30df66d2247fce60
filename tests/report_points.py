"""Measurements made up, for what the report draws and says of them."""

import random

from engine.metrics import Score
from engine.metrics.intervals import BLOCKS
from engine.report import Budget, Measurements


def score(distance, nfe=9.0, spread=0.0):
    """Blocks alike in all scores: paired, every difference is beyond doubt; or with a spread of its own, not."""
    own = random.Random(distance)
    without = [distance + 0.01 * block + own.gauss(0, spread) for block in range(BLOCKS)]
    return Score(distance, distance * 0.9, distance * 1.1, tuple(without), 0.8, nfe, 0.01).as_json()


def measured(section, points, images=20):
    run = {"device": "a test", "commit": "none", "command": "none"}
    return Measurements(section, Budget(images=images).record(), [run], [point | {"run": 0} for point in points])


def verdicts(section, points):
    return [finding.verdict for finding in section.draw(measured(section.name, points)).findings]

"""Stimulus of operators that reduce a row of scores: every row comes several times, once for each pass."""

from collections.abc import Callable

import numpy as np

from . import Streams

SHORTEST, LONGEST = 16, 64


def normal_rows(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Scores of a normal distribution, a row a line: standard deviation 3, but 30 in one row of eight."""
    return np.where(rng.random((shape[0], 1)) < 1 / 8, 30, 3) * rng.standard_normal(shape)


class Rows:
    """Rows of 16 to 64 scores, `passes` times each; idle cycles between passes, one at least where `gap` is 1.

    Streams are in different places of their rows. `scores(rng, shape)` gives patterns.
    """

    def __init__(self, streams: int, passes: int, gap: int, scores: Callable[..., np.ndarray]):
        self.passes, self.gap, self.scores = passes, gap, scores
        self.row = np.zeros((streams, LONGEST), dtype=np.int64)
        self.length = np.zeros(streams, dtype=np.int64)
        self.position, self.phase, self.idle = self.length.copy(), self.length + passes, self.length.copy()

    def next(self, rng: np.random.Generator) -> Streams:
        """valid, phase (number of the pass), start (first score of a pass) and score of one cycle."""
        new = np.flatnonzero((self.phase == self.passes) & (self.idle == 0))
        self.row[new] = self.scores(rng, (len(new), LONGEST))
        self.length[new] = rng.integers(SHORTEST, LONGEST + 1, len(new))
        self.position[new] = self.phase[new] = 0
        valid = self.idle == 0
        score = self.row[np.arange(len(valid)), self.position]
        x = {"valid": valid, "phase": np.minimum(self.phase, self.passes - 1), "start": valid & (self.position == 0)}
        last = valid & (self.position == self.length - 1)
        self.idle = np.where(last, self.gap + rng.integers(0, 2, len(valid)), np.maximum(self.idle - 1, 0))
        self.phase = self.phase + last
        self.position = np.where(last, 0, self.position + valid)
        return {name: value.astype(np.int64) for name, value in x.items()} | {"score": score}

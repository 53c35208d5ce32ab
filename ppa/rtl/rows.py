"""Stimulus of operators that reduce a row of scores: every row comes several times, once for each pass."""

from collections.abc import Callable, Sequence
from itertools import cycle

import numpy as np

from . import Streams

SHORTEST, LONGEST = 16, 64
# Patterns (count, longest) of so many new rows, and their lengths.
Draw = Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]


def normal_rows(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Scores of a normal distribution, a row a line: standard deviation 3, but 30 in one row of eight."""
    return np.where(rng.random((shape[0], 1)) < 1 / 8, 30, 3) * rng.standard_normal(shape)


def random_rows(scores: Callable[..., np.ndarray], longest: int = LONGEST, spare: int = 0) -> Draw:
    """Rows of 16 to `longest` scores, which `scores(rng, shape)` gives. With `spare`, lengths are drawn up to so much
    beyond and cut: that many more rows are of full length."""

    def draw(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
        rows = scores(rng, (count, longest))
        return rows, np.minimum(rng.integers(SHORTEST, longest + spare + 1, count), longest)

    return draw


def given_rows(rows: Sequence[np.ndarray]) -> Draw:
    """These rows of patterns, one after another and from the first one again."""
    longest, order = max(map(len, rows)), cycle(rows)

    def draw(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
        taken = [next(order) for _ in range(count)]
        padded = np.array([np.pad(row, (0, longest - len(row))) for row in taken], dtype=np.int64)
        return padded.reshape(count, longest), np.array([len(row) for row in taken], dtype=np.int64)

    return draw


class Rows:
    """Rows `passes` times each; idle cycles between passes, one at least where `gap` is 1.

    Streams are in different places of their rows.
    """

    def __init__(self, streams: int, passes: int, gap: int, draw: Draw):
        self.passes, self.gap, self.draw = passes, gap, draw
        self.row = np.zeros((streams, 1), dtype=np.int64)
        self.length = np.zeros(streams, dtype=np.int64)
        self.position, self.phase, self.idle = self.length.copy(), self.length + passes, self.length.copy()

    def next(self, rng: np.random.Generator) -> Streams:
        """valid, phase (number of the pass), start (first score of a pass) and score of one cycle."""
        new = np.flatnonzero((self.phase == self.passes) & (self.idle == 0))
        rows, lengths = self.draw(rng, len(new))
        if rows.shape[1] != self.row.shape[1]:  # at first
            self.row = np.zeros((len(self.length), rows.shape[1]), dtype=np.int64)
        self.row[new], self.length[new] = rows, lengths
        self.position[new] = self.phase[new] = 0
        valid = self.idle == 0
        score = self.row[np.arange(len(valid)), self.position]
        x = {"valid": valid, "phase": np.minimum(self.phase, self.passes - 1), "start": valid & (self.position == 0)}
        last = valid & (self.position == self.length - 1)
        self.idle = np.where(last, self.gap + rng.integers(0, 2, len(valid)), np.maximum(self.idle - 1, 0))
        self.phase = self.phase + last
        self.position = np.where(last, 0, self.position + valid)
        return {name: value.astype(np.int64) for name, value in x.items()} | {"score": score}

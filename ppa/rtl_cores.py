"""Area and power of a synthesised core from its counts: parallel MACs, words of weight memory, words of cache.

value = fixed + MACs (lane + small macros * per_small + large macros * per_large)

Every MAC has its own slice of both memories. A memory below 512 words is made of macros of 128 words, one of 512 words
or more of macros of 512 words, of which it gets depth // 512 (768 words get the one that 512 words get). This was read
off the areas of the 900 cores of klei22/nanoGPT (nsga_search, MIT); their macros, PDK and RTL are not published. Depths
between those of that table (128, 256, then multiples of 256) are rounded down to a whole macro.

The constants are fitted in relative error: with absolute least squares the large cores decide, and small cores may be
off by 80 %. Not covered: timing, clock, other word widths.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gptcore.errors import UserError

SMALL_WORDS, LARGE_WORDS = 128, 512  # of a macro


@dataclass(frozen=True, slots=True)
class Core:
    macs: int
    weight_words: int
    cache_words: int

    def __post_init__(self) -> None:
        if self.macs < 1 or min(self.weight_words, self.cache_words) < SMALL_WORDS:
            raise UserError(f"a core has at least 1 MAC and {SMALL_WORDS} words in each memory, not {self}")

    @property
    def small_macros(self) -> int:
        """Per MAC, in both memories."""
        return sum(words // SMALL_WORDS for words in (self.weight_words, self.cache_words) if words < LARGE_WORDS)

    @property
    def large_macros(self) -> int:
        """Per MAC, in both memories."""
        return self.weight_words // LARGE_WORDS + self.cache_words // LARGE_WORDS

    @property
    def netlist(self) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
        """What the core is built of: cores with equal netlists are one design, whatever depth they state."""
        memories = [divmod(words, LARGE_WORDS) for words in (self.weight_words, self.cache_words)]
        weight, cache = [(large, 0 if large else rest // SMALL_WORDS) for large, rest in memories]
        return self.macs, weight, cache


@dataclass(frozen=True, slots=True)
class Model:
    """The four constants, in the unit of the values that they were fitted to (m2 or W)."""

    fixed: float
    lane: float
    small: float
    large: float

    def __call__(self, core: Core) -> float:
        return self.fixed + core.macs * (self.lane + core.small_macros * self.small + core.large_macros * self.large)


def fit(cores: Sequence[Core], values: Sequence[float]) -> Model:
    """Least squares of the relative error. UserError where the cores do not determine the four constants."""
    terms = np.array([(1, c.macs, c.macs * c.small_macros, c.macs * c.large_macros) for c in cores], float)
    constants, _, rank, _ = np.linalg.lstsq(terms / np.asarray(values)[:, None], np.ones(len(cores)), rcond=None)
    if rank < terms.shape[1]:
        raise UserError("these cores are too alike: vary the MACs and the depths, below and above 512 words")
    return Model(*map(float, constants))

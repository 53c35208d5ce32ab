"""What to do with the width of the stream. Which of them keeps the function depends on the norms: all are tried."""

from dataclasses import dataclass

from .axes import MEAN, ZERO


@dataclass(frozen=True)
class Strategy:
    """What new coordinates of the stream carry, and whether it is scaled to keep the statistics of norms."""

    words: str
    start: int
    scaled: bool
    copies: bool = False

    def fits(self, old: int, new: int) -> bool:
        if old == new:
            return self is STRATEGIES[0]
        return not self.copies or (new > old and new % old == 0)


STRATEGIES = (
    Strategy("zeros in the new coordinates", ZERO, True),
    Strategy("the mean in the new coordinates", MEAN, True),
    Strategy("copies of the old coordinates", ZERO, False, copies=True),
    Strategy("zeros in the new coordinates, the stream not scaled", ZERO, False),
    Strategy("the mean in the new coordinates, the stream not scaled", MEAN, False),
)

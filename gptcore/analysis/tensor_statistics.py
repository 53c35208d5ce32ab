"""Statistics of a stream of tensors, as one needs them to choose bit widths. Only sums and counts are kept.

The stream is read twice: `Spread` takes what needs one pass, `Errors` what needs the range and the moments first.

    range            smallest and largest value, exact
    kurtosis         E(x - mean)^4 / variance^2: 3 for a normal distribution, more for heavier tails
    outlier share    of the values more than 6 standard deviations from the mean of their tensor (Bondarenko et al.,
                     arXiv 2306.12929, section 3; LLM.int8, arXiv 2208.07339, takes the magnitude 6 instead)
    percentiles      of |x|, the upper edge of their bin: up to 9 % (2^(1/8)) above the true ones
    SQNR             signal to quantisation noise, 10 log10(sum x^2 / sum (x - Q(x))^2) dB, of every value rounded
    bits needed      the fewest of 2 to 16 bits of a uniform quantiser whose SQNR reaches a target. A bit is worth
                     6.02 dB, and a peak p times the root mean square costs 20 log10(p) dB (Bennett 1948; Widrow and
                     Kollar, Quantization Noise, 2008: noise step^2 / 12)
                       tensor   one range for everything, that of the whole stream
                       group    a range for each slice along a dimension: a token, or a channel of a matrix
    saturation       share of the values outside of the range of a format
    underflow        share of the values that are not zero and become zero in a format
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import RunError
from ..precision import wide
from ..quantize import Method
from .formats import NumberFormat

SIGMAS = 6.0
WIDTHS = range(2, 17)  # those of `rounding` in a configuration
PER_OCTAVE, LOWEST, HIGHEST = 8, -32, 32  # bins of |x|: 2^-32 to 2^32, what is beyond in the first and the last
CHUNK = 2**22  # values that are widened to fp64 at once


@dataclass(frozen=True)
class FormatLoss:
    """What a format with a range of its own does to a tensor."""

    name: str
    saturated: float
    underflow: float
    sqnr_db: float


@dataclass(frozen=True)
class TensorStatistics:
    """Statistics of one tensor. `sqnr_tensor_db` and `sqnr_group_db` by bits; `counts` by bin of log2 |x|."""

    count: int
    low: float
    high: float
    mean: float
    std: float
    kurtosis: float
    zero_share: float
    abs_p50: float
    abs_p999: float
    outlier_share: float
    sqnr_tensor_db: dict[int, float]
    sqnr_group_db: dict[int, float]
    formats: tuple[FormatLoss, ...] = ()
    counts: tuple[int, ...] = field(default=(), repr=False)

    @property
    def absmax(self) -> float:
        return max(abs(self.low), abs(self.high))

    def bits_tensor(self, target_db: float) -> int | None:
        """Bits needed with one range for the tensor; None when 16 are not enough."""
        return _fewest(self.sqnr_tensor_db, target_db)

    def bits_group(self, target_db: float) -> int | None:
        """Bits needed with a range for each group; None when 16 are not enough."""
        return _fewest(self.sqnr_group_db, target_db)


def _fewest(sqnr_db: dict[int, float], target_db: float) -> int | None:
    return next((bits for bits, found in sqnr_db.items() if found >= target_db), None)


class Spread:
    """Extremes, central moments (merged after Pebay, SAND2008-6212) and a histogram of magnitudes of a stream."""

    def __init__(self, name: str):
        self.name = name
        self.count, self.low, self.high = 0, math.inf, -math.inf
        self.mean = self.m2 = self.m3 = self.m4 = 0.0
        self.zeros = 0
        self.counts = torch.zeros((HIGHEST - LOWEST) * PER_OCTAVE, dtype=torch.int64)

    def update(self, x: Tensor) -> None:
        """Takes in every value of `x`. RunError for one that is not finite."""
        for piece in x.detach().flatten().split(CHUNK):
            if piece.numel():
                self._update(piece.double())

    def _update(self, x: Tensor) -> None:
        low, high = (end.item() for end in x.aminmax())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise RunError(f"{self.name} holds values that are not finite: a diverged run, or an overflow in its dtype")
        self.low, self.high = min(self.low, low), max(self.high, high)
        mean = x.mean().item()
        centred = x - mean
        square = centred * centred
        self._merge(x.numel(), mean, square.sum().item(), (square * centred).sum().item(), square.square().sum().item())
        x = x[x != 0].abs()
        self.zeros += centred.numel() - x.numel()
        bins = torch.floor(torch.log2(x) * PER_OCTAVE).long() - LOWEST * PER_OCTAVE
        self.counts += torch.bincount(bins.clamp(0, len(self.counts) - 1), minlength=len(self.counts)).cpu()

    def _merge(self, n: int, mean: float, m2: float, m3: float, m4: float) -> None:
        a, total = self.count, self.count + n
        d = mean - self.mean
        self.m4 += m4 + d**4 * a * n * (a * a - a * n + n * n) / total**3
        self.m4 += 6 * d * d * (a * a * m2 + n * n * self.m2) / total**2 + 4 * d * (a * m3 - n * self.m3) / total
        self.m3 += m3 + d**3 * a * n * (a - n) / total**2 + 3 * d * (a * m2 - n * self.m2) / total
        self.m2 += m2 + d * d * a * n / total
        self.mean += d * n / total
        self.count = total

    @property
    def std(self) -> float:
        """Of the values themselves: divided by their number."""
        return math.sqrt(self.m2 / self.count)

    @property
    def kurtosis(self) -> float:
        return self.m4 * self.count / self.m2**2 if self.m2 else math.nan

    @property
    def power(self) -> float:
        """Sum of squares."""
        return self.m2 + self.count * self.mean**2

    def percentile(self, share: float) -> float:
        """The magnitude that `share` of the values do not exceed: the upper edge of its bin, at most the largest."""
        rank, largest = math.ceil(share * self.count), max(abs(self.low), abs(self.high))
        if rank <= self.zeros:
            return 0.0
        at = int(torch.searchsorted(self.counts.cumsum(0), rank - self.zeros))
        return min(2.0 ** (LOWEST + (at + 1) / PER_OCTAVE), largest)


class Errors:
    """What rounding costs, by bits and in each of the formats, and outliers; of the stream that `spread` has seen.

    `dim` is the dimension along which a group lies; None: there are no groups.
    """

    def __init__(self, spread: Spread, method: Method, formats: Sequence[NumberFormat], dim: int | None):
        self.spread, self.method, self.formats, self.dim = spread, method, formats, dim
        self.outliers = 0
        self.tensor, self.group = ({bits: 0.0 for bits in WIDTHS} for _ in range(2))
        self.lost = [[0, 0, 0.0] for _ in formats]  # saturated, underflow, squared error

    def update(self, x: Tensor, live: Tensor | None = None) -> None:
        """Takes in `x`, where `live` says so; all else must be zero, which every quantiser leaves alone."""
        x = wide(x.detach())
        counted = x if live is None else x[live]
        self.outliers += int(((counted.double() - self.spread.mean).abs() > SIGMAS * self.spread.std).sum())
        whole = (x.new_tensor(self.spread.low), x.new_tensor(self.spread.high))
        groups = x.aminmax(dim=self.dim, keepdim=True) if self.dim is not None else None
        for bits in WIDTHS:
            self.tensor[bits] += _squared(uniform_error(x, *whole, bits, self.method))
            if groups is not None:
                self.group[bits] += _squared(uniform_error(x, *groups, bits, self.method))
        for lost, form in zip(self.lost, self.formats, strict=True):
            held = form.represent(x)
            lost[0] += int(((x < form.low) | (x > form.high)).sum())
            lost[1] += int(((held == 0) & (x != 0)).sum())
            lost[2] += _squared(held - x)

    def statistics(self) -> TensorStatistics:
        s = self.spread

        def sqnr_db(noise: float) -> float:
            return 10 * math.log10(s.power / noise) if noise and s.power else math.inf

        return TensorStatistics(
            s.count, s.low, s.high, s.mean, s.std, s.kurtosis, s.zeros / s.count, s.percentile(0.5),
            s.percentile(0.999), self.outliers / s.count,
            {bits: sqnr_db(noise) for bits, noise in self.tensor.items()},
            {bits: sqnr_db(noise) for bits, noise in self.group.items()} if self.dim is not None else {},
            tuple(
                FormatLoss(form.name, lost[0] / s.count, lost[1] / s.count, sqnr_db(lost[2]))
                for form, lost in zip(self.formats, self.lost, strict=True)
            ),
            tuple(s.counts.tolist()),
        )  # fmt: skip


def uniform_error(x: Tensor, low: Tensor, high: Tensor, bits: int, method: Method) -> Tensor:
    """Q(x) - x of `gptcore.quantize.quantize`, whose range is that of `x`, for a range that was seen elsewhere."""
    tiny = torch.finfo(x.dtype).tiny
    if method == "symmetric":
        scale = (torch.maximum(-low, high) / (2 ** (bits - 1) - 1)).clamp_min(tiny)
        return (x / scale).round_().mul_(scale).sub_(x)
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = ((high - low) / (2**bits - 1)).clamp_min(tiny)
    zero = torch.round(-low / scale)
    return (x / scale).round_().add_(zero).clamp_(0, 2**bits - 1).sub_(zero).mul_(scale).sub_(x)


def _squared(error: Tensor) -> float:
    return error.square_().sum(dtype=torch.float64).item()

"""Strongermax: softmax with each of its parts exchangeable: base, maximum, temperature, sum, divisor.

The extra term of the sum is that of "Attention is off by one" (Miller, 2023): sum(e^s) + 1, not sum(e^(s - max)) + 1.
What is subtracted for the sake of the number range is subtracted from it too.
"""

import math

import torch
from torch import nn

from kernels.attention_reference import Weighting

from ..config import knob
from ..precision import wide
from ..registry import KindConfig, Problem, register
from . import MASKED, Softmax, live_count

# Natural exponents saturate here when no true maximum bounds them: e^80 times 2^11 keys still fits fp32.
HIGHEST = 80.0
LOWEST_SUM = 1e-30  # a row whose terms all vanish weighs nothing; its inverse must not overflow a gradient
LOWEST_TEMPERATURE = 0.01


@register("softmax", "strongermax")
class Strongermax(Softmax):
    """strength^((s - max) / temperature) / (sum + obo) / divisor; max may be a guess or absent, the sum too."""

    as_output = True

    class Config(KindConfig):
        strength: float = knob(math.e, "base of the powers", flat=("strongermax_strength",), gt=1)
        temperature_factor: float = knob(
            1.0, "divides the exponents", flat=("strongermax_temperature_factor",), ge=LOWEST_TEMPERATURE
        )
        use_learned_temperature_factor: bool = knob(
            False, "learn it, from this value", flat=("strongermax_use_learned_temperature_factor",)
        )
        use_xmax: bool = knob(True, "subtract the row maximum", flat=("strongermax_use_xmax",))
        xmax_guess: float | None = knob(
            None, "subtract this in place of the maximum, which saves a pass", flat=("strongermax_xmax_guess",)
        )
        overflow_recompute: bool = knob(
            False, "take the true maximum in rows where the guess is too low", flat=("strongermax_overflow_recompute",)
        )
        overflow_recompute_value: float = knob(
            HIGHEST, "by how much it may be too low", flat=("strongermax_overflow_recompute_value",), gt=0
        )
        clamping: bool = knob(False, "bound the scores from above", flat=("strongermax_clamping",))
        clamp_value: float = knob(88.0, "that bound", flat=("strongermax_clamp_value",))
        div_by_sum_of_terms: bool = knob(True, "divide by the row sum", flat=("strongermax_div_by_sum_of_terms",))
        obo: float = knob(0.0, "added to the sum, 1: off by one", flat=("strongermax_obo",), ge=0)
        use_learned_obo: bool = knob(False, "learn it, from this value", flat=("strongermax_use_learned_obo",))
        use_learned_obo_per_head: bool = knob(False, "learn one a head", flat=("strongermax_use_learned_obo_per_head",))
        div_by_seq_len: bool = knob(False, "also divide by the number of keys that the query sees")
        divisor: float = knob(1.0, "divides every weight", flat=("strongermax_divisor",), gt=0)

        @property
        def learns_obo(self) -> bool:
            return self.use_learned_obo or self.use_learned_obo_per_head

    @classmethod
    def check(cls, config, dims):
        if not config.div_by_sum_of_terms and (config.obo or config.learns_obo):
            field = "obo" if config.obo else "use_learned_obo"
            yield Problem(field, "obo is a term of the sum, which div_by_sum_of_terms: false leaves out")
        if not config.use_xmax and config.xmax_guess is not None:
            yield Problem("xmax_guess", "a guess of the maximum, which use_xmax: false does not subtract")
        if config.overflow_recompute and config.xmax_guess is None:
            yield Problem("overflow_recompute", "there is no xmax_guess that could be too low")

    def __init__(self, config, dims, heads):
        super().__init__(config, dims, heads)
        self.heads = heads
        if config.use_learned_temperature_factor:
            self.temperature_factor = nn.Parameter(torch.full((1,), config.temperature_factor))
        if config.learns_obo:
            size = heads if config.use_learned_obo_per_head else 1
            self.obo = nn.Parameter(torch.full((size,), config.obo))

    def weighting(self):
        c = self.config
        changed = [
            name
            for name in ("xmax_guess", "clamping", "div_by_seq_len", "use_learned_temperature_factor", "learns_obo")
            if getattr(c, name) not in (None, False)
        ]
        changed += [name for name in ("use_xmax", "div_by_sum_of_terms") if not getattr(c, name)]
        changed += ["divisor"] if c.divisor != 1 else []
        if changed:
            return f"no kernel weighs like {c.kind} with {', '.join(changed)}"
        return Weighting(base=c.strength ** (1 / c.temperature_factor))

    def head_constants(self, device):
        if not self.config.obo:
            return {}
        return {"lobo_H": torch.full((self.heads,), math.log(self.config.obo), dtype=torch.float64, device=device)}

    def weights(self, scores_BHTS, live_TS):
        c = self.config
        scores = wide(scores_BHTS)
        if c.clamping:
            scores = scores.clamp(max=c.clamp_value)
        scores = scores.masked_fill(~live_TS, MASKED)
        rate: torch.Tensor | float = math.log(c.strength) / c.temperature_factor
        if c.use_learned_temperature_factor:
            learned = self.temperature_factor.to(scores.dtype).clamp_min(LOWEST_TEMPERATURE)
            rate = math.log(c.strength) / learned
        shift = self._shift(scores)
        exponent = (scores - shift) * rate
        if not c.use_xmax or c.xmax_guess is not None:
            exponent = exponent.clamp(max=HIGHEST)
        weights = torch.exp(exponent)
        if c.div_by_sum_of_terms:
            total = weights.sum(dim=-1, keepdim=True)
            if c.learns_obo:
                obo = self.obo.to(scores.dtype).clamp_min(0.0).view(-1, 1, 1)
                total = total + obo * torch.exp((-shift * rate).clamp(max=HIGHEST))
            elif c.obo:
                total = total + c.obo * torch.exp((-shift * rate).clamp(max=HIGHEST))
            weights = weights / total.clamp_min(LOWEST_SUM)
        if c.div_by_seq_len:
            weights = weights / live_count(live_TS, weights)
        if c.divisor != 1:
            weights = weights / c.divisor
        return weights.masked_fill(~live_TS, 0.0)

    def _shift(self, scores):
        """What is subtracted, (B, H, T, 1) or one value."""
        c = self.config
        if not c.use_xmax:
            return scores.new_zeros(())
        if c.xmax_guess is not None and not c.overflow_recompute:
            return scores.new_full((), c.xmax_guess)
        highest = scores.amax(dim=-1, keepdim=True)
        if c.div_by_sum_of_terms:
            highest = highest.detach()  # it cancels
            if c.obo or c.learns_obo:
                highest = highest.clamp_min(0.0)  # or the extra term would overflow
        if c.overflow_recompute:  # row by row: over the whole batch a token would see the ones after it
            too_low = highest - c.xmax_guess > c.overflow_recompute_value
            highest = torch.where(too_low, highest, c.xmax_guess)
        return highest

    @staticmethod
    def declare(config, g, scores, heads):
        c = config
        reads = [scores]
        counts = {"exp": 1}
        if c.use_learned_temperature_factor:
            reads.append(g.weight("temperature_factor", 1))
        if c.use_learned_temperature_factor or c.strength != math.e or c.temperature_factor != 1:
            counts["mul"] = 1  # ln(strength) / temperature is one constant
        if c.clamping or not c.use_xmax or c.xmax_guess is not None:
            counts["compare"] = int(c.clamping) + int(not c.use_xmax or c.xmax_guess is not None)
        if c.use_xmax:
            counts["add"] = 1
            if c.xmax_guess is None or c.overflow_recompute:
                highest = g.reduce("max", scores, max=1)
                if c.overflow_recompute:
                    highest = g.pointwise("guess", highest, role="intermediate", add=1, compare=1)
                reads.append(highest)
        weights = g.pointwise("power", *reads, role="intermediate", **counts)
        if c.div_by_sum_of_terms:
            total = g.reduce("sum", weights, add=1)
            if c.learns_obo:
                obo = g.weight("obo", heads if c.use_learned_obo_per_head else 1)
                total = g.pointwise("obo", total, obo, role="intermediate", exp=1, mul=1, add=1)
            elif c.obo:
                total = g.pointwise("obo", total, role="intermediate", exp=1, mul=1, add=1)
            weights = g.pointwise("div", weights, total, role="intermediate", div=1)
        if c.div_by_seq_len or c.divisor != 1:  # one factor a row, known beforehand
            weights = g.pointwise("divisor", weights, role="intermediate", mul=1)
        return weights

"""The logistic function in place of softmax ("Sigmoid self-attention", arXiv 2409.04431)."""

from typing import Literal

import torch

from kernels.attention_reference import Weighting

from ..config import knob
from ..precision import wide
from ..registry import KindConfig, register
from . import Standalone, live_count


@register("softmax", "sigmoidmax")
class SigmoidMax(Standalone):
    """1 / (1 + e^-(s + bias)) / divisor.

    The bias -ln(keys), keys those that the query sees, makes rows of a fresh model sum to about n / (n + 1): the bias
    of the paper, with the length of each row for its one length.
    """

    as_output = True

    class Config(KindConfig):
        bias: Literal["log_keys", "none"] = knob("log_keys", "-ln(keys in sight), or none", flat=("sigmoidmax_bias",))
        divisor: float = knob(1.0, "divides every weight", flat=("sigmoidmax_divisor",), gt=0)
        div_by_seq_len: bool = knob(False, "also divide by the number of keys that the query sees")

    def weighting(self):
        c = self.config
        return Weighting("sigmoid", divisor=c.divisor, by_keys=c.div_by_seq_len, log_keys=c.bias == "log_keys")

    def weights(self, scores_BHTS, live_TS):
        scores = wide(scores_BHTS).masked_fill(~live_TS, 0.0)
        share, keys = live_TS.to(scores.dtype) / self.config.divisor, live_count(live_TS, scores)
        if self.config.bias == "log_keys":
            scores = scores - keys.log()
        return torch.sigmoid(scores) * (share / keys if self.config.div_by_seq_len else share)

    @staticmethod
    def declare(config, g, scores, heads):
        counts = {"exp": 1, "add": 1 if config.bias == "none" else 2, "recip": 1}
        if config.div_by_seq_len or config.divisor != 1:  # one factor a row, known beforehand
            counts["mul"] = 1
        return g.pointwise("sigmoid", scores, role="intermediate", **counts)

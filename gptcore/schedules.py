"""What changes over a run: learning rate and strength of rounding, as functions of the number of the update.

Nothing here remembers anything: a run that is continued at a step does what it would have done there.
"""

import math
from collections.abc import Callable, Mapping

from .config import TrainConfig

# Part of the way down left at a progress of 0 (the peak) to 1 (min_lr).
SHAPES: Mapping[str, Callable[[float], float]] = {
    "linear": lambda progress: 1 - progress,
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "sqrt": lambda progress: 1 - math.sqrt(progress),  # Haegele et al., arXiv 2405.18392
}


def learning_rate(config: TrainConfig, step: int) -> float:
    """Rate of the update number `step` (from 0): linear warm-up, then constant, or down to min_lr at `decay_end`.

    cosine (arXiv 1608.03983) and linear go down from the end of the warm-up on. wsd (MiniCPM, arXiv 2404.06395) stays
    at the peak and goes down in the last part only: its runs of different lengths share all but their ends.
    """
    if step < config.warmup_iters:
        return config.learning_rate * (step + 1) / (config.warmup_iters + 1)
    if config.schedule == "constant":
        return config.learning_rate
    lowest = config.learning_rate / 10 if config.min_lr is None else config.min_lr
    if step >= config.decay_end:
        return lowest
    first = config.decay_start if config.schedule == "wsd" else config.warmup_iters
    if step < first:
        return config.learning_rate
    progress = (step - first) / max(1, config.decay_end - first)
    shape = config.wsd_decay_shape if config.schedule == "wsd" else config.schedule
    return lowest + SHAPES[shape](progress) * (config.learning_rate - lowest)


def quant_level(config: TrainConfig, step: int) -> float:
    """Strength of rounding (0 to 1) at the update number `step` (from 0)."""
    if config.quant_scheduler == "static":
        return 1.0
    progress = min(1.0, step / (config.full_quant_iteration or max(1, config.max_iters)))
    return config.start_quant_level + (1 - config.start_quant_level) * progress

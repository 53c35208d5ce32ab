"""Optimizer and learning-rate schedule."""

import math

import torch

from .config import TrainConfig
from .model import GPT


def make_optimizer(model: GPT, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW (arXiv 1711.05101) with decay on matrices only: norms, biases and per-head constants are never decayed."""
    matrices = [p for p in model.parameters() if p.requires_grad and p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.requires_grad and p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}]
    if vectors:
        groups.append({"params": vectors, "weight_decay": 0.0})
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True)


def learning_rate(config: TrainConfig, step: int) -> float:
    """Rate of the update number `step` (from 0): linear warm-up, then constant or a cosine down to min_lr."""
    if step < config.warmup_iters:
        return config.learning_rate * (step + 1) / (config.warmup_iters + 1)
    if config.schedule == "constant":
        return config.learning_rate
    last = config.lr_decay_iters or config.max_iters
    lowest = config.learning_rate / 10 if config.min_lr is None else config.min_lr
    if step >= last:
        return lowest
    progress = (step - config.warmup_iters) / max(1, last - config.warmup_iters)
    return lowest + 0.5 * (1 + math.cos(math.pi * progress)) * (config.learning_rate - lowest)

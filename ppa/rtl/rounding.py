"""Rounding and saturation of int64 arrays, exact."""

import numpy as np


def saturate(value: np.ndarray, width: int) -> np.ndarray:
    """The nearest value that two's complement of so many bits can hold."""
    return np.clip(value, -(1 << (width - 1)), (1 << (width - 1)) - 1)


def shift_up(value: np.ndarray, shift: np.ndarray | int) -> np.ndarray:
    """value / 2^shift to the nearest integer, ties towards plus infinity."""
    return value + ((np.int64(1) << shift) >> 1) >> shift


def shift_even(value: np.ndarray, shift: np.ndarray | int) -> np.ndarray:
    """value / 2^shift to the nearest integer, ties to the even one."""
    kept = value >> shift
    rest, half = value - (kept << shift), (np.int64(1) << shift) >> 1
    return kept + ((rest > half) | ((rest == half) & (half > 0) & (kept & 1 == 1)))

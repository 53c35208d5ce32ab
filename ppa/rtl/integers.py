"""Two's complement patterns of int64 arrays."""

import numpy as np


def signed(pattern: np.ndarray, width: int) -> np.ndarray:
    """Value of a two's complement pattern of so many bits."""
    sign = 1 << (width - 1)
    return ((pattern & (2 * sign - 1)) ^ sign) - sign


def unsigned(value: np.ndarray, width: int) -> np.ndarray:
    """Pattern of a value: its lowest bits."""
    return value & ((1 << width) - 1)

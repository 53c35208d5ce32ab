"""A sequence in chunks: products of T x T become products inside chunks, and the states between them are few."""

import torch.nn.functional as F
from torch import Tensor


def cut(x_BT: Tensor, size: int) -> Tensor:
    """(B, T, ...) as (B, chunks, L, ...), with zeros after the last token; L is `size`, or T where that is less."""
    T = int(x_BT.shape[1])  # a tensor while torch.jit traces
    L = min(size, T)
    if T % L:
        x_BT = F.pad(x_BT, (0, 0) * (x_BT.dim() - 2) + (0, -T % L))
    return x_BT.unflatten(1, (-1, L))


def join(y_BKL: Tensor, T: int) -> Tensor:
    """The inverse of `cut`."""
    return y_BKL.flatten(1, 2)[:, :T]


class Chunks:
    """Sizes of what `cut` makes of T tokens: `count` chunks of `L`."""

    def __init__(self, T: int, size: int):
        self.L = min(size, T)
        self.count = -(-T // self.L)
        self.later = T - self.L if self.count > 1 else 0  # tokens after the first chunk
        whole, rest = divmod(T, self.L)
        self.live_pairs = (whole * self.L * (self.L + 1) + rest * (rest + 1)) // 2  # unmasked, inside chunks

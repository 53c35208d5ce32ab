"""Which keys a query may see: causal, optionally within a sliding window."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class CausalMask:
    """`T` queries are the last of `S` keys; query i sees the keys up to its own, at most the last `window` of them.

    Answers are plain bools even while torch.jit traces (fvcore does) and sizes are tensors.
    """

    T: int
    S: int
    window: int | None = None

    @property
    def is_triangle(self) -> bool:
        """Square and plainly causal, which fused attention knows by itself."""
        return bool(self.T == self.S) and self._window_is_idle

    @property
    def is_full(self) -> bool:
        """A single query that sees everything."""
        return bool(self.T == 1) and self._window_is_idle

    @property
    def _window_is_idle(self) -> bool:
        return self.window is None or bool(self.window >= self.S)

    def live_TS(self, device: torch.device) -> torch.Tensor:
        """(T, S) bool, True where the query sees the key."""
        query = torch.arange(self.S - self.T, self.S, device=device)[:, None]
        key = torch.arange(self.S, device=device)[None, :]
        live = key <= query
        return live if self.window is None else live & (key > query - self.window)

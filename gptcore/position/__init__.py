"""Slot `position`: how the model knows where a token stands. One module serves the whole model.

A kind may act at three places, each of which does nothing by default: on the embeddings (`embed`), on queries and
keys (`rotate`), and on the scores (`bias`). `acts_on` names them.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from ..config import Dims, Heads
from ..ops import Graph
from ..ops import Tensor as OpTensor
from ..registry import KindConfig, Problem

Place = Literal["embedding", "rotation", "bias"]


class Position(nn.Module):
    """Base of every kind. `heads` says of every layer what there is to rotate or to bias; None where nothing is."""

    def __init__(self, config: KindConfig, dims: Dims, heads: Sequence[Heads | None]):
        super().__init__()
        self.config: Any = config
        self.has_bias = "bias" in self.acts_on(config)

    @classmethod
    def places(cls) -> set[Place]:
        """Where the kind may do something: wherever it overrides a method."""
        methods: dict[Place, str] = {"embedding": "embed", "rotation": "rotate", "bias": "bias"}
        return {place for place, name in methods.items() if getattr(cls, name) is not getattr(Position, name)}

    @classmethod
    def acts_on(cls, config: KindConfig) -> set[Place]:
        """Where it does so as configured."""
        return cls.places()

    def at(self, layer: int) -> "Position":
        """What layer number `layer` uses: itself, unless a kind has parameters for every layer."""
        return self

    def embed(self, x_BTC: Tensor, start: int) -> Tensor:
        """Token embeddings with position; `start` is the position of the first token."""
        return x_BTC

    def rotate(self, q_BHTD: Tensor, k_BKTD: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Queries and keys with position."""
        return q_BHTD, k_BKTD

    def rotate_projection(self, qkv_BTC: Tensor, heads: int, key_heads: int, width: int, start: int) -> Tensor | None:
        """`rotate` in place, where queries, keys and whatever else still lie side by side; None where it cannot be."""
        return None

    def bias(self, heads: int, T: int, S: int, start: int, like: Tensor) -> Tensor | None:
        """What is added to the scores of `heads` query heads, (H, T, S), in the dtype and on the device of `like`.

        The T queries stand at positions start ... start + T - 1 and are the last T of S consecutive keys.
        """
        return None

    def slopes(self, heads: int) -> Tensor | None:
        """m of every head where the bias is m (j - i) for the query at i and the key at j; None where it is not."""
        return None

    @staticmethod
    def check_heads(config: KindConfig, heads: Heads) -> Iterator[Problem]:
        """Problems with the heads of a layer."""
        return iter(())

    @staticmethod
    def declare_embed(config: KindConfig, g: Graph, x: OpTensor, dims: Dims) -> OpTensor:
        return x

    @staticmethod
    def declare_rotate(config: KindConfig, g: Graph, x: OpTensor) -> OpTensor:
        """Records the rotation of queries or keys."""
        return x

    @staticmethod
    def declare_bias(config: KindConfig, g: Graph, heads: int, T: int, S: int) -> OpTensor | None:
        """Records how the bias of layer `g.layer` comes about: (H, T, S), or None. The scope is this module."""
        return None


def nowhere_but(place: Place) -> Callable[[type[Position]], bool]:
    """Whether a kind does nothing outside of `place`."""
    return lambda cls: cls.places() <= {place}


def causal_pairs(T: int, S: int) -> int:
    """Pairs of T queries, the last of S keys, with the keys up to their own."""
    return T * (2 * S - T + 1) // 2

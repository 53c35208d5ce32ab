"""Several kinds at once, each at its own place: the table and the rotation of classic nanoGPT forks, or others.

A place that is to stay empty takes the kind that does nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from ..ops import Graph
from ..registry import KindConfig, Problem, build, impl, kinds, register, slot
from . import Place, Position, nowhere_but

PLACES: tuple[Place, ...] = ("embedding", "rotation", "bias")
EMPTY = "none"


class AtLayer:
    """The parts that act in a layer, as they are there."""

    def __init__(self, rotation: Position, scores: Position):
        self.rotation, self.scores, self.has_bias = rotation, scores, scores.has_bias

    def rotate(self, q_BHTD, k_BKTD, start):
        return self.rotation.rotate(q_BHTD, k_BKTD, start)

    def rotate_projection(self, qkv_BTC, heads, key_heads, width, start):
        return self.rotation.rotate_projection(qkv_BTC, heads, key_heads, width, start)

    def bias(self, heads, T, S, start, like):
        return self.scores.bias(heads, T, S, start, like)

    def slopes(self, heads):
        return self.scores.slopes(heads)


@contextmanager
def _part(config: Any, g: Graph, place: Place) -> Iterator[Any]:
    """The configuration of a part, and its scope to declare in."""
    part = getattr(config, place)
    with g.at(f"parts.{place}", slot="position", kind=part.kind):
        yield part


@register("position", "combined")
class CombinedPosition(Position):
    """x_t + p_t, and rotated q_i k_j + b_ij: one kind for the embeddings, one for queries and keys, one for scores."""

    class Config(KindConfig):
        embedding: KindConfig = slot("position", "learned", takes=nowhere_but("embedding"))
        rotation: KindConfig = slot("position", "rotary", takes=nowhere_but("rotation"))
        bias: KindConfig = slot("position", "none", takes=nowhere_but("bias"))

    def __init__(self, config, dims, heads):
        super().__init__(config, dims, heads)
        self.parts: Any = nn.ModuleDict({place: build(getattr(config, place), dims, heads) for place in PLACES})
        rotation: Any = self.parts["rotation"]
        scores: Any = self.parts["bias"]
        self.layers = tuple(AtLayer(rotation.at(i), scores.at(i)) for i in range(len(heads)))

    @classmethod
    def joined(cls, names: list[str]) -> dict[str, str] | None:
        fields: dict[str, str] = dict.fromkeys(PLACES, EMPTY)
        for name in names:
            places = kinds("position")[name].places()
            place = next(iter(places), None)
            if len(places) != 1 or place is None or fields[place] != EMPTY:
                return None
            fields[place] = name
        return fields

    @classmethod
    def acts_on(cls, config):
        return set().union(*(impl(part).acts_on(part) for part in (getattr(config, place) for place in PLACES)))

    def at(self, layer):
        return self.layers[layer]

    def embed(self, x_BTC, start):
        return self.parts["embedding"].embed(x_BTC, start)

    def rotate(self, q_BHTD, k_BKTD, start):
        return self.parts["rotation"].rotate(q_BHTD, k_BKTD, start)

    def bias(self, heads, T, S, start, like):
        return self.parts["bias"].bias(heads, T, S, start, like)

    def slopes(self, heads):
        return self.parts["bias"].slopes(heads)

    @staticmethod
    def check_heads(config, heads):
        for place in PLACES:
            part = getattr(config, place)
            for problem in impl(part).check_heads(part, heads):
                yield Problem(f"{place}.{problem.field}", problem.message)

    @staticmethod
    def declare_embed(config, g, x, dims):
        with _part(config, g, "embedding") as part:
            return impl(part).declare_embed(part, g, x, dims)

    @staticmethod
    def declare_rotate(config, g, x):
        with _part(config, g, "rotation") as part:
            return impl(part).declare_rotate(part, g, x)

    @staticmethod
    def declare_bias(config, g, heads, T, S):
        with _part(config, g, "bias") as part:
            return impl(part).declare_bias(part, g, heads, T, S)

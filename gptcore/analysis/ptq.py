"""Post-training quantisation: the validation loss of a trained model with matrices, and activations, of fewer bits.

Nothing is trained: ranges are those of the weights, and those of each token for activations. Vectors, norms and tables
of functions stay as they are, and so does what the model has rounded by itself since its training.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch

from ..checkpoint import LoadedModel
from ..config import GPTConfig
from ..data import Batch
from ..errors import UserError
from ..model import GPT, declare
from ..ops import Pass
from ..quantize import Method
from .rounding import (
    EVERYTHING,
    PARTS,
    Granularity,
    Matrix,
    Part,
    Point,
    matrices_of,
    matrix_bytes,
    own_places,
    round_activations,
    rounded,
    without_places,
)


@dataclass(frozen=True)
class Plan:
    """What to try: every combination, on these parts; then every matrix alone at `per_layer` bits."""

    weight_bits: Sequence[int | None]
    activation_bits: Sequence[int | None] = (None,)
    granularities: Sequence[Granularity] = ("channel",)
    methods: Sequence[Method] = ("symmetric",)
    parts: Sequence[Part] = PARTS
    per_layer: int | None = None

    def points(self) -> list[Point]:
        """Without repetitions, nothing rounded first."""
        found = [Point()]
        for activation in self.activation_bits:
            for granularity in self.granularities:
                for method in self.methods:
                    for bits in self.weight_bits:
                        rounds = None if bits is None and activation is None else method
                        found.append(Point(bits, activation, granularity if bits is not None else None, rounds))
        return list(dict.fromkeys(found))


@dataclass(frozen=True)
class Row:
    """What a point costs. Loss in nats a token; `errors`: |W' - W| / |W| of each rounded matrix (Frobenius norms)."""

    point: Point
    loss: float
    weight_bytes: int
    errors: dict[str, float] = field(default_factory=dict)

    @property
    def worst(self) -> tuple[str, float] | None:
        """The matrix with the largest error."""
        return max(self.errors.items(), key=lambda item: item[1]) if self.errors else None

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss) if self.loss < 700 else math.inf


@torch.no_grad()
def mean_loss(model: GPT, batches: Sequence[Batch], dtype: str) -> float:
    """Mean cross entropy in nats, computed as evaluations in training compute it."""
    device = model.lm_head.weight.device
    kind = getattr(torch, dtype)
    total = torch.zeros((), dtype=torch.float64)
    for x, y in batches:
        with torch.autocast(device.type, dtype=kind, enabled=kind != torch.float32):
            _, loss = model(x.to(device), y.to(device))
        assert loss is not None
        total += loss.double().cpu()
    return (total / len(batches)).item()


class Sweep:
    """The points of a plan on one model and fixed batches. UserError where there is nothing to round."""

    def __init__(self, loaded: LoadedModel, plan: Plan, batches: Sequence[Batch], dtype: str):
        self.config, self.plan, self.batches, self.dtype = loaded.config, plan, batches, dtype
        self.model = loaded.model
        self.state = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        self.matrices = matrices_of(self.config)
        self.targets = [m for m in self.matrices if m.part in plan.parts and m.own_bits is None]
        self._built: tuple[int | None, Method | None] = (None, None)
        if not self.targets and (plan.per_layer or any(plan.weight_bits)):
            raise UserError(
                f"no matrix to round in {', '.join(plan.parts)}: "
                + (self.notes()[0] if self.notes() else "there is none in this model")
            )
        for bits in filter(None, plan.activation_bits):
            self._check_activations(bits)

    def _check_activations(self, bits: int) -> None:
        config = round_activations(self.config, bits, self.plan.methods[0], self.plan.parts)
        places = own_places(self.config)
        if self.config.rounding.range == "learned" and places:
            raise UserError(
                "--activation_bits: this model has learned steps at its own places (model.rounding.range), and other "
                "places would have none; leave the option out"
            )
        if own_places(config) == places:
            why = "every place is rounded already" if places else "this model has no place to round"
            raise UserError(f"--activation_bits: {why} ({', '.join(self.plan.parts)}); leave the option out")
        for path, message in config.problems():
            raise UserError(f"--activation_bits: model.{'.'.join(map(str, path))}: {message}")

    def notes(self) -> list[str]:
        """What is not rounded although it might be expected to, and why."""
        notes = []
        own = [f"{m.short} ({m.own_bits} bits)" for m in self.matrices if m.own_bits and m.part in self.plan.parts]
        if own:
            notes.append(f"weights that the model rounds by itself stay as trained: {_some(own)}")
        known = {m.name for m in self.matrices}
        rest = [name for name, p in self.model.named_parameters() if p.dim() > 1 and name not in known]
        if rest:
            notes.append(f"not rounded, being neither multiplied nor looked up: {_some(rest)}")
        if any(self.plan.activation_bits):
            if places := own_places(self.config):
                named = [f"{name} ({bits} bits)" for name, bits in places.items()]
                method = self.config.rounding.method
                notes.append(f"activations that the model rounds by itself ({method}) stay as trained: {_some(named)}")
            if bare := without_places(self.config, self.plan.parts):
                notes.append(f"activations not rounded, these kinds have no place for it: {_some(bare)}")
        return notes

    @cached_property
    def wide_bytes(self) -> dict[str, int]:
        """Stored size of every parameter as trained: at its own bits, or at model.bits.weight."""
        T = self.config.block_size
        weights = declare(self.config, Pass("prefill", 1, T, T)).weights()
        return {name: tensor.nbytes for name, tensor in weights.items()}

    def _at(self, point: Point) -> list[Matrix]:
        if point.weight_bits is None:
            return []
        return [m for m in self.targets if point.target in (EVERYTHING, m.name)]

    def weight_bytes(self, point: Point) -> int:
        """Of all parameters, scales included."""
        changed = {m.name: matrix_bytes(m, point, self.config.bits.weight) for m in self._at(point)}
        return sum((self.wide_bytes | changed).values())

    def apply(self, point: Point) -> dict[str, float]:
        """Puts the model into the state of a point; returns the error of each rounded matrix."""
        built = (point.activation_bits, point.method if point.activation_bits is not None else None)
        if built != self._built:
            device = self.model.lm_head.weight.device
            self.model, self._built = GPT(self.config_at(point)).to(device).eval(), built
        self.model.load_state_dict(self.state)
        errors = {}
        with torch.no_grad():
            for m in self._at(point):
                weight = self.model.get_parameter(m.name)
                new = rounded(weight, m, point)
                norm = weight.double().norm().item()
                errors[m.short] = (new.double() - weight.double()).norm().item() / norm if norm else 0.0
                weight.copy_(new)
        return errors

    def config_at(self, point: Point) -> GPTConfig:
        """The model's configuration with the activations of a point."""
        if point.activation_bits is None:
            return self.config
        assert point.method is not None
        return round_activations(self.config, point.activation_bits, point.method, self.plan.parts)

    def points(self) -> list[Point]:
        """Everything that `rows` will evaluate, in that order."""
        plan, found = self.plan, self.plan.points()
        if plan.per_layer is not None:
            how = (plan.per_layer, None, plan.granularities[0], plan.methods[0])
            found += [Point(*how, target=m.name) for m in self.targets]
        return found

    def rows(self) -> Iterator[Row]:
        """One at a time, so that a caller can keep what it has."""
        for point in self.points():
            errors = self.apply(point)
            yield Row(point, mean_loss(self.model, self.batches, self.dtype), self.weight_bytes(point), errors)


def _some(names: Sequence[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")

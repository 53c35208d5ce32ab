"""Typed moves through the space of models and machines, and the candidates that one step leads to.

    Move        one change: a step (+16), a factor (x2), a choice, or a layer duplicated or removed
    apply       Point + Move -> Point, validated; Rejected with the reason where it cannot be
    candidates  every feasible new point one move away, and what was dropped and why

Objects change by copies: only what is on the way to the change is validated again, so thousands of candidates take a
second. A new kind keeps those settings of the old one that differ from their defaults and that it knows, too. A path
into the layers of a model means every layer that has such a setting; layers count from 0, as in parameter names.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from gptcore.config import LAYER_FIELDS, GPTConfig, LayerConfig
from gptcore.errors import UserError
from gptcore.registry import SLOTS, KindConfig, Slot, Strict, nearest, slot_of
from ppa.figure import Figure

from .cost import Costs, costs, violations
from .feasible import problems
from .point import Point, layers_of, with_layers

if TYPE_CHECKING:
    from .space import Space

Reason = Literal[
    "does not apply", "wrong type", "invalid value", "impossible combination", "cannot be priced", "constraint",
    "unchanged", "duplicate", "seen",
]  # fmt: skip
Path = tuple[str, ...]


class Rejected(Exception):
    """A move that leads nowhere from a point: the reason, and in words why."""

    def __init__(self, reason: Reason, words: str):
        super().__init__(words)
        self.reason: Reason = reason
        self.words = words


@dataclass(frozen=True, slots=True)
class Move:
    """One change. All `paths` change together, by the same step or to the same choice.

    `value` is a Fraction for `add` and `multiply`, what a file may hold there for `set`. `text` is the step as written,
    `mark` where. `per_layer`: any one layer; with `layer` given, that one.
    """

    paths: tuple[Path, ...]
    op: Literal["add", "multiply", "set", "duplicate", "remove"]
    value: Any = None
    text: str = ""
    label: str = ""
    per_layer: bool = False
    layer: int | None = None
    mark: str = field(default="given", compare=False)

    @property
    def words(self) -> str:
        """As far as they can be told without a point to start from: `n_embd +16`, `layer 2 removed`."""
        where = f"layer {self.layer}" if self.layer is not None else "a layer" if self.per_layer else ""
        if self.op in ("duplicate", "remove"):
            return f"{where} {'duplicated' if self.op == 'duplicate' else 'removed'}"
        return f"{where}: {self.label} {self.text}" if where else f"{self.label} {self.text}"

    def as_dict(self) -> dict[str, Any]:
        """For a ledger: plain values only."""
        return {
            "paths": [".".join(path) for path in self.paths], "op": self.op, "layer": self.layer,
            "value": self.value if self.op == "set" else self.text,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Candidate:
    """`same_training`: only the machine changes, so the loss is that of where the move started, without a trial."""

    name: str
    move: Move
    point: Point
    costs: Costs
    same_training: bool


@dataclass(frozen=True, slots=True)
class Dropped:
    name: str
    reason: Reason
    words: str


@dataclass(frozen=True, slots=True)
class Generated:
    """Candidates in the order of the space file; what was filtered out before any training, one by one and counted."""

    candidates: tuple[Candidate, ...]
    dropped_names: tuple[Dropped, ...]

    @property
    def dropped(self) -> dict[str, int]:
        """Reason -> how many."""
        reasons = [d.reason for d in self.dropped_names]
        return {reason: reasons.count(reason) for reason in dict.fromkeys(reasons)}


def candidates(space: "Space", point: Point, seen: Collection[str] = frozenset()) -> Generated:
    """Every feasible point one move away that is none of `seen` (keys of points), in the order of the file."""
    found: dict[str, Candidate] = {}
    dropped: list[Dropped] = []
    for move in placed(space.moves, point):
        name = move.words
        try:
            new, name = apply(move, point)
            candidate = Candidate(
                name, move, new, _checked(space, point, new, found, seen), new.identity == point.identity
            )
        except Rejected as no:
            dropped.append(Dropped(name, no.reason, no.words))
        else:
            found[new.key] = candidate
    return Generated(tuple(found.values()), tuple(dropped))


def _checked(
    space: "Space", old: Point, new: Point, found: dict[str, Candidate], seen: Collection[str]
) -> Costs:  # fmt: skip
    """The costs of a point that is feasible and new."""
    if new.key == old.key:
        raise Rejected("unchanged", "nothing changes")
    if new.key in found:
        raise Rejected("duplicate", f"the same as {found[new.key].name}")
    if new.key in seen:
        raise Rejected("seen", "considered before")
    if new.config is not old.config:
        for path, message in problems(new.config):
            raise Rejected("impossible combination", f"{'.'.join(map(str, path))}: {message}")
    try:
        price = costs(new, space)
    except UserError as error:
        raise Rejected("cannot be priced", str(error))
    if broken := violations(price, space.constraints):
        raise Rejected("constraint", "; ".join(broken))
    return price


def placed(moves: Collection[Move], point: Point) -> Iterator[Move]:
    """The moves, those of any one layer once for each layer."""
    for move in moves:
        for layer in range(point.config.model.n_layer) if move.per_layer else (None,):
            yield replace(move, layer=layer)


def apply(move: Move, point: Point) -> tuple[Point, str]:
    """(the new point, the move in words). Rejected where a setting does not exist or a value cannot stand there.

    Combinations of values are not looked at; `Config.problems` does that.
    """
    if move.op in ("duplicate", "remove"):
        model = _with_layer(point.config.model, move)
        return replace(point, config=point.config.model_copy(update={"model": model})), move.words
    change = _Change(move)
    config, machine = point.config, point.machine
    for path in move.paths:
        if move.layer is not None:
            config = config.model_copy(update={"model": _in_layer(config.model, move.layer, path, change)})
        elif path[0] == "hardware":
            machine = _replaced(machine, path[1:], change, path)  # type: ignore[assignment]
        elif path[0] == "model" and len(path) > 1:
            config = config.model_copy(update={"model": _in_model(config.model, path, change)})
        else:
            config = _replaced(config, path, change, path)  # type: ignore[assignment]
    return Point(config, machine), change.name


class _Change:
    """What a move does to a value, and the values that it met, for the name of the candidate."""

    def __init__(self, move: Move):
        self.move = move
        self.met: dict[str, str] = {}  # old -> new, in words

    def __call__(self, holder: Strict, field: str, path: Path) -> Any:
        old = getattr(holder, field)
        slot = slot_of(type(holder).model_fields[field])
        if slot is None and isinstance(old, Strict) and not isinstance(old, Figure):
            return self._section(old, path)
        if slot is not None and self.move.op == "set":
            new = _of_kind(old, self.move.value, slot)
            stated = self.move.value if isinstance(self.move.value, dict) else {}
            knobs = ", ".join(f"{k} {_shown(v)}" for k, v in stated.items() if k != "kind")
            self.met[_shown(old)] = _shown(slot.kind_of(new) if new is not None else None) + (knobs and f" ({knobs})")
            return new
        new = self._number(old, path) if self.move.op != "set" else self._plain(old)
        self.met[_shown(old)] = _shown(new)
        return new

    def _section(self, old: Strict, path: Path) -> Strict:
        """A section instead of a value: each of its fields, or those that the choice names."""
        named = self.move.value if isinstance(self.move.value, dict) else dict.fromkeys(type(old).model_fields)
        new, inner = old, self
        for name, value in named.items():
            if isinstance(self.move.value, dict):
                inner = _Change(replace(self.move, value=value))
            new = _replaced(new, (name,), inner, (*path, name))
            self.met |= {f"{name} {a}": b for a, b in inner.met.items()} if inner is not self else {}
        return new

    def _plain(self, old: Any) -> Any:
        if not isinstance(old, Figure):
            return self.move.value
        if type(self.move.value) not in (int, float):
            raise Rejected("wrong type", f"{self.move.value!r} is no number")
        return _figure(old, float(self.move.value))

    def _number(self, old: Any, path: Path) -> Any:
        number = old.value if isinstance(old, Figure) else old
        if type(number) not in (int, float):
            what = "null here: give it a number to start from" if old is None else f"{_shown(old)}, which is no number"
            raise Rejected("wrong type", f"{'.'.join(path)} is {what}; {self.move.text} needs one")
        if type(number) is int and self.move.op == "add" and self.move.value.denominator != 1:
            raise Rejected("wrong type", f"{'.'.join(path)} is a whole number; {self.move.text} is none")
        exact = Fraction(repr(number))  # as written in decimals, so that a step and its inverse meet
        exact = exact + self.move.value if self.move.op == "add" else exact * self.move.value
        if isinstance(old, Figure):
            return _figure(old, float(exact))
        if type(number) is float:
            return float(exact)
        if exact.denominator != 1:
            raise Rejected("invalid value", f"{'.'.join(path)} {number} {self.move.text} is no whole number")
        return int(exact)

    @property
    def name(self) -> str:
        """`n_embd 128 -> 144`; a kind that is called like its slot is not named twice."""
        move = self.move
        where = f"layer {move.layer}: " if move.layer is not None else ""
        news = list(dict.fromkeys(self.met.values()))
        if len(news) != 1:  # several layers with different values
            return move.words
        old = "/".join(self.met)
        return f"{where}{'' if old == move.label else move.label + ' '}{old} -> {news[0]}"


def _shown(value: Any) -> str:
    if isinstance(value, Figure):
        value = value.value
    if isinstance(value, (KindConfig, dict)):
        return str(value.get("kind", value) if isinstance(value, dict) else value.kind)  # type: ignore[attr-defined]
    if isinstance(value, float):
        return f"{value:.12g}"
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)


def _figure(old: Figure, value: float) -> Figure:
    """Nobody has published the moved value."""
    return old.model_copy(update={"value": value, "grade": "estimate"})


def _of_kind(old: Any, value: Any, slot: Slot) -> Any:
    """The raw value of a slot: what the choice says, on what the old kind was set to and the new one knows, too."""
    if value is None or not isinstance(value, (str, dict)):
        return value
    stated: dict[str, Any] = {"kind": value} if isinstance(value, str) else dict(value)
    if not isinstance(old, KindConfig):
        return stated
    kind = slot.choices().get(str(stated.setdefault("kind", slot.kind_of(old))))
    fields = kind.Config.model_fields if kind else {}
    default = _defaults(type(old))
    return {name: v for name, v in old.__dict__.items() if name in fields and v != default[name]} | stated


@lru_cache
def _defaults(cls: type[Strict]) -> dict[str, Any]:
    return {name: info.get_default(call_default_factory=True) for name, info in cls.model_fields.items()}  # type: ignore[call-arg]


def _replaced(
    node: Any, path: Path, change: Callable[[Any, str, Path], Any], whole: Path
) -> Strict:  # fmt: skip
    """A copy of `node` with the value at `path` changed, validated on the way up."""
    name = path[0] if path else ""
    if not isinstance(node, Strict) or isinstance(node, Figure) or name not in type(node).model_fields:
        here = [n for n in type(node).model_fields if n != "kind"] if isinstance(node, Strict) else []
        of = f" of kind {node.kind}" if isinstance(node, KindConfig) else ""  # type: ignore[attr-defined]
        known = nearest(name, here) or (f" (known: {', '.join(here)})" if here else "")
        raise Rejected("does not apply", f"{'.'.join(whole)}: no setting {name!r} here{of}{known}")
    if name == "kind":
        raise Rejected("does not apply", f"{'.'.join(whole)}: choose kinds at {'.'.join(whole[:-1])}")
    if len(path) == 1:
        return _validated(node, name, change(node, name, whole))
    return _validated(node, name, _replaced(getattr(node, name), path[1:], change, whole))


def _validated(node: Strict, name: str, value: Any) -> Strict:
    try:
        return type(node).model_validate({**node.__dict__, name: value})
    except ValidationError as error:
        item = error.errors(include_url=False)[0]
        loc = ".".join(str(step) for step in item["loc"])
        given = "" if item["type"] == "unknown_kind" else f", not {_shown(item['input'] if loc else value)}"
        said = f"{loc or name}: {item['msg'].removeprefix('Value error, ')}{given}"
        raise Rejected("invalid value" if loc else "impossible combination", said)


def _in_model(model: GPTConfig, path: Path, change: _Change) -> GPTConfig:
    """A change of the model; one of its layers' settings holds in every layer, and n_layer makes or takes layers."""
    inner = path[1:]
    if not model.layers or inner[0] not in (*LAYER_FIELDS, "n_layer"):
        return _replaced(model, inner, change, path)  # type: ignore[return-value]
    if inner[0] == "n_layer":
        n, old = change(model, "n_layer", path), layers_of(model)
        if type(n) is not int or n < 1:
            raise Rejected("invalid value", f"n_layer: at least 1, not {n}")
        return with_layers(model, (old + old[-1:] * (n - len(old)))[:n])
    changed: dict[LayerConfig, LayerConfig] = {}
    no: Rejected | None = None
    for layer in dict.fromkeys(layers_of(model)):
        try:
            changed[layer] = _replaced(layer, inner, change, path)  # type: ignore[assignment]
        except Rejected as error:
            no = error
            if error.reason != "does not apply":
                raise
    if not changed and no is not None:
        raise no
    try:  # the model's own settings are those of the norm before the head
        model = _replaced(model, inner, _Change(change.move), path)  # type: ignore[assignment]
    except Rejected:
        pass
    return with_layers(model, [changed.get(layer, layer) for layer in layers_of(model)])


def _in_layer(model: GPTConfig, index: int, path: Path, change: _Change) -> GPTConfig:
    layers = layers_of(model)
    layers[index] = _replaced(layers[index], path, change, path)  # type: ignore[call-overload]
    return with_layers(model, layers)


def _with_layer(model: GPTConfig, move: Move) -> GPTConfig:
    layers = layers_of(model)
    assert move.layer is not None
    if move.op == "duplicate":
        layers.insert(move.layer, layers[move.layer])
    elif len(layers) == 1:
        raise Rejected("invalid value", "the last layer cannot be removed")
    else:
        del layers[move.layer]
    return with_layers(model, layers)


def label_of(path: Path, per_layer: bool = False) -> str:
    """The words for a path: `n_embd`, `softmax`, `attention n_head`, `array rows`."""
    rest = path if per_layer else path[1:]
    return " ".join(rest if path[0] == "hardware" and not per_layer else rest[-1 if rest[-1] in SLOTS else -2 :])


__all__ = [
    "Candidate", "Dropped", "Generated", "Move", "Point", "Rejected", "apply", "candidates", "label_of", "placed",
]  # fmt: skip

"""The operation list: what a variant computes, free of any hardware.

A kind declares its forward pass once on a `Graph`, in the order and with the names of its module. Everything else is
derived from the records: parameters (distinct weight tensors), KV-cache size (distinct kv tensors), matrix FLOPs,
primitive operations, bytes per tensor role, and the backward pass of a training step. `ppa` prices the records,
contract tests compare them with the module.

Legend of dimensions: B sequences, T query tokens of this pass, S context (keys visible, this pass included),
C model width, H query heads, K key/value heads, D head width, V vocabulary.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

Stage = Literal["train", "prefill", "decode"]
Role = Literal["weight", "activation", "kv", "intermediate", "gradient", "optimizer", "index"]
STAGES: tuple[Stage, ...] = ("prefill", "decode", "train")

# Primitive operations that hardware implements as distinct units. "max" and "compare" are comparisons of two values.
PRIMITIVES = (
    "add mul max compare exp exp2 log erf tanh div recip sqrt rsqrt lut shift round".split()
)  # fmt: skip

# Reverse-mode cost of one primitive, the accumulation of a gradient that flows through unchanged being free:
# d(a*b) needs two products, d(exp) reuses its output, and so on. Estimates of op counts, never mixed into FLOPs.
BACKWARD_PRIMITIVES: Mapping[str, Mapping[str, int]] = {
    "add": {},
    "mul": {"mul": 2},
    "max": {"compare": 1},
    "compare": {"mul": 1},
    "exp": {"mul": 1},
    "exp2": {"mul": 2},
    "log": {"div": 1},
    "erf": {"exp": 1, "mul": 2},
    "tanh": {"mul": 2, "add": 1},
    "div": {"div": 1, "mul": 2},
    "recip": {"mul": 2},
    "sqrt": {"div": 1},
    "rsqrt": {"mul": 3},
    "lut": {"lut": 1, "mul": 1},
    "shift": {"shift": 1},
    "round": {},
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """A named array. `live` is the number of elements a causal machine needs (unmasked scores), else all of them."""

    name: str
    shape: tuple[int, ...]
    role: Role
    bits: int
    live: int

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return -(-self.numel * self.bits // 8)


@dataclass(frozen=True, slots=True)
class Op:
    """One operation."""

    name: str
    slot: str
    kind: str
    layer: int | None
    phase: Literal["forward", "backward", "optimizer"]
    reads: tuple[Tensor, ...]
    writes: tuple[Tensor, ...]

    macs = 0  # multiply-accumulates of matrix products, masked pairs included
    macs_causal = 0  # the same without masked pairs

    def primitives(self, causal: bool = False) -> dict[str, int]:
        """Primitive operations, outside matrix products; `causal` leaves out masked elements."""
        return {}

    def moved(self) -> Iterator[tuple[Role, int]]:
        """(role, bytes) of each operand moved between memory and the unit that computes this operation."""
        for t in self.reads + self.writes:
            yield t.role, t.nbytes

    def backward(self) -> Iterator["Op"]:
        return iter(())


def gradient(t: Tensor) -> Tensor:
    role: Role = "intermediate" if t.role == "intermediate" else "gradient"
    return Tensor("d:" + t.name, t.shape, role, t.bits, t.live)


@dataclass(frozen=True, slots=True)
class Matmul(Op):
    """`batch` products (m x k) @ (k x n) of reads[0] and reads[1]. 1 MAC = 2 FLOPs."""

    batch: int = 1
    m: int = 0
    k: int = 0
    n: int = 0

    @property
    def macs(self) -> int:  # type: ignore[override]
        return self.batch * self.m * self.k * self.n

    @property
    def macs_causal(self) -> int:  # type: ignore[override]
        # At most one of the three operands is a masked score matrix; it fixes which products are needed.
        for t, inner in ((self.reads[0], self.n), (self.reads[1], self.m), (self.writes[0], self.k)):
            if t.live != t.numel:
                return t.live * inner
        return self.macs

    def backward(self) -> Iterator[Op]:
        a, b = self.reads
        dc = gradient(self.writes[0])
        base: dict[str, Any] = {
            "slot": self.slot,
            "kind": self.kind,
            "layer": self.layer,
            "phase": "backward",
            "batch": self.batch,
        }
        yield Matmul(**base, name=self.name + ".da", reads=(dc, b), writes=(gradient(a),), m=self.m, k=self.n, n=self.k)
        yield Matmul(**base, name=self.name + ".db", reads=(a, dc), writes=(gradient(b),), m=self.k, k=self.m, n=self.n)


@dataclass(frozen=True, slots=True)
class Pointwise(Op):
    """`per_element` primitives for each element of the largest operand."""

    per_element: tuple[tuple[str, int], ...] = ()

    def _largest(self) -> Tensor:
        return max(self.reads + self.writes, key=lambda t: t.numel if t.role != "index" else 0)

    def primitives(self, causal: bool = False) -> dict[str, int]:
        largest = self._largest()
        elements = largest.live if causal else largest.numel
        return {p: c * elements for p, c in self.per_element}

    def backward(self) -> Iterator[Op]:
        counts: dict[str, int] = {}
        for p, c in self.per_element:
            for q, d in BACKWARD_PRIMITIVES[p].items():
                counts[q] = counts.get(q, 0) + c * d
        # A sum needs no operand to differentiate; anything else reads its inputs again.
        saved = () if set(p for p, _ in self.per_element) <= {"add"} else self.reads
        grads = tuple(gradient(t) for t in self.reads if t.role != "index")
        yield Pointwise(
            name=self.name + ".d", slot=self.slot, kind=self.kind, layer=self.layer, phase="backward",
            reads=(gradient(self.writes[0]), *saved), writes=grads, per_element=tuple(counts.items()),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Reduce(Pointwise):
    """`per_element` primitives for each element of the input, one result a row: needs the whole row before any use."""


@dataclass(frozen=True, slots=True)
class Gather(Op):
    """Rows of reads[0] picked by reads[1]; only the picked rows move. Backward adds one value per element.

    `touched` is the most elements of the table that the picks can meet where rows repeat, and each then moves once.
    """

    touched: int | None = None

    def moved(self) -> Iterator[tuple[Role, int]]:
        yield self.reads[1].role, self.reads[1].nbytes
        # Rows read (or, backward, gradient rows written) have the size of the result, at the table's width.
        table, rows = self.reads[0], self.writes[0] if self.phase == "forward" else self.reads[2]
        elements = rows.numel if self.touched is None else min(rows.numel, self.touched)
        yield table.role if self.phase == "forward" else "gradient", -(-elements * table.bits // 8)
        yield rows.role, rows.nbytes

    def backward(self) -> Iterator[Op]:
        table, index = self.reads
        yield Gather(
            name=self.name + ".d", slot=self.slot, kind=self.kind, layer=self.layer, phase="backward",
            reads=(table, index, gradient(self.writes[0])), writes=(gradient(table),), touched=self.touched,
        )  # fmt: skip

    def primitives(self, causal: bool = False) -> dict[str, int]:
        return {"add": self.reads[2].numel} if self.phase == "backward" else {}


@dataclass(frozen=True, slots=True)
class Move(Op):
    """A copy without arithmetic, such as a write into the KV cache."""


@dataclass(frozen=True, slots=True)
class Bits:
    """Width of each stored value, per tensor role."""

    weight: int = 16
    activation: int = 16
    kv: int = 16


@dataclass(frozen=True, slots=True)
class Pass:
    """One execution: `T` new tokens for each of `B` sequences, the last of them seeing `S` tokens with itself."""

    stage: Stage
    B: int
    T: int
    S: int

    def live_pairs(self, window: int | None = None) -> int:
        """Unmasked (query, key) pairs of one head of one sequence."""
        reach = min(window or self.S, self.S)
        first = self.S - self.T + 1  # keys that the first query would see without a window
        growing = max(0, reach - first + 1)  # queries that see one key more than the one before
        return (2 * first + growing - 1) * growing // 2 + (self.T - growing) * reach


@dataclass
class Graph:
    """Records the forward pass of one execution. `at` scopes names, slot, kind and layer of what is declared inside."""

    run: Pass
    bits: Bits = field(default_factory=Bits)
    ops: list[Op] = field(default_factory=list)
    without_parts: bool = False  # leave out attention and mlp of every layer: for callers that know what these cost
    passed: list[Tensor] = field(default_factory=list)  # what those would have read
    _scope: tuple[str, ...] = ()
    _where: tuple[str, str, int | None] = ("model", "gpt", None)
    _weights: dict[str, Tensor] = field(default_factory=dict)
    _used: dict[str, int] = field(default_factory=dict)
    _owners: dict[str, str] = field(default_factory=dict)

    @contextmanager
    def at(
        self, scope: str = "", *, slot: str | None = None, kind: str | None = None, layer: int | None = None,
        root: bool = False,
    ):  # fmt: skip
        """`root` starts the names anew: for a module that hangs elsewhere than where it is called."""
        saved = self._scope, self._where
        old_slot, old_kind, old_layer = self._where
        self._scope = (*(() if root else self._scope), scope) if scope else self._scope
        self._where = (slot or old_slot, kind or old_kind, old_layer if layer is None else layer)
        try:
            yield self
        finally:
            self._scope, self._where = saved

    @property
    def layer(self) -> int | None:
        """The layer being declared."""
        return self._where[2]

    def share(self, path: str, owner: str) -> None:
        """Parameters below `path` are those below `owner`: one module called at two places."""
        self._owners[path] = owner

    def _path(self, name: str) -> str:
        return ".".join((*self._scope, name))

    def _unique(self, name: str) -> str:
        path = self._path(name)
        self._used[path] = self._used.get(path, 0) + 1
        return path if self._used[path] == 1 else f"{path}.{self._used[path]}"

    def weight(self, name: str, *shape: int, bits: int | None = None) -> Tensor:
        """A parameter, under the name that `named_parameters` of the module gives it; asked twice, it is shared.

        `bits` is the stored width where the kind fixes it, whatever the point of operation says.
        """
        path = self._path(name)
        for place, owner in self._owners.items():
            if path.startswith(place + "."):
                path = owner + path[len(place) :]
                break
        if path not in self._weights:
            fixed = bits if self.run.stage != "train" else None  # training keeps wide master weights
            self._weights[path] = Tensor(path, shape, "weight", fixed or self.bits.weight, math.prod(shape))
        assert self._weights[path].shape == shape, f"{path} declared with two shapes"
        return self._weights[path]

    def tensor(
        self, name: str, *shape: int, role: Role = "activation", live: int | None = None, bits: int | None = None
    ) -> Tensor:
        bits = bits or {"kv": self.bits.kv, "weight": self.bits.weight, "index": 32}.get(role, self.bits.activation)
        return Tensor(self._unique(name), shape, role, bits, math.prod(shape) if live is None else live)

    def cached(self, name: str, *shape: int, bits: int | None = None) -> Tensor:
        """State kept between decode steps, at its size for the context `S` of this pass."""
        path = self._path(name)
        return Tensor(path, shape, "kv", bits or self.bits.kv, math.prod(shape))

    def _record(self, op_type: type[Op], name: str, reads: Iterable[Tensor], out: Tensor, **extra) -> Tensor:
        slot, kind, layer = self._where
        self.ops.append(
            op_type(
                name=self._path(name),
                slot=slot,
                kind=kind,
                layer=layer,
                phase="forward",
                reads=tuple(reads),
                writes=(out,),
                **extra,
            )  # fmt: skip
        )
        return out

    def matmul(
        self, name: str, a: Tensor, b: Tensor, out_shape: tuple[int, ...], *, batch: int = 1, m: int, k: int, n: int,
        live: int | None = None, role: Role = "activation",
    ) -> Tensor:  # fmt: skip
        out = self.tensor(name, *out_shape, role=role, live=live)
        return self._record(Matmul, name, (a, b), out, batch=batch, m=m, k=k, n=n)

    def pointwise(
        self, name: str, *reads: Tensor, role: Role = "activation", bits: int | None = None, **per_element: int
    ) -> Tensor:
        """`per_element` counts primitives per element; the result has the shape of the first operand."""
        _check_primitives(per_element)
        out = self.tensor(name, *reads[0].shape, role=role, live=reads[0].live, bits=bits)
        return self._record(Pointwise, name, reads, out, per_element=tuple(per_element.items()))

    def reduce(self, name: str, x: Tensor, **per_element: int) -> Tensor:
        """Reduces the last dimension of `x`; the result is an intermediate."""
        _check_primitives(per_element)
        out = self.tensor(name, *x.shape[:-1], 1, role="intermediate")
        return self._record(Reduce, name, (x,), out, per_element=tuple(per_element.items()))

    def split(self, x: Tensor, *widths: int) -> list[Tensor]:
        """Views of the last dimension; costs nothing."""
        assert sum(widths) == x.shape[-1], (widths, x.shape)
        return [self.view(x, *x.shape[:-1], w) for w in widths]

    def view(self, x: Tensor, *shape: int) -> Tensor:
        """The same values (or a part of them) under another shape; costs nothing."""
        return Tensor(x.name, shape, x.role, x.bits, math.prod(shape))

    def gather(
        self, name: str, table: Tensor, index: Tensor, *shape: int, role: Role = "activation", live: int | None = None,
        touched: int | None = None,
    ) -> Tensor:  # fmt: skip
        out = self.tensor(name, *shape, role=role, live=live)
        return self._record(Gather, name, (table, index), out, touched=touched)

    def move(self, name: str, x: Tensor, role: Role, bits: int | None = None) -> Tensor:
        return self._record(Move, name, (x,), self.tensor(name, *x.shape, role=role, bits=bits))

    def add_backward(self) -> None:
        """Appends the reverse of everything recorded so far."""
        for op in reversed([op for op in self.ops if op.phase == "forward"]):
            self.ops.extend(op.backward())

    def weights(self) -> dict[str, Tensor]:
        """Every distinct parameter by its module name."""
        return dict(self._weights)

    def cache_tensors(self) -> dict[str, Tensor]:
        """Every distinct piece of decode state by name."""
        return {t.name: t for op in self.ops for t in op.reads if t.role == "kv"}


def _check_primitives(per_element: Mapping[str, int]) -> None:
    unknown = set(per_element) - set(PRIMITIVES)
    assert not unknown, f"unknown primitives {sorted(unknown)}; known: {', '.join(PRIMITIVES)}"

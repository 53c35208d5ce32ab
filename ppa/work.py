"""Work: what a machine has to do for an operation list, kernel by kernel.

    Graph -> kernels_of -> [Kernel(products, streams, bytes)]

A kernel is a set of operations joined by intermediates, the tensors that never leave a fused kernel: a product with its
bias, a norm, scores with their softmax and the product behind it. A product is a matrix product; a stream is what one
unit of a variant does, element after element. Masked elements are left out: products and streams hold the causal share.
"""

from collections.abc import Iterable
from math import prod
from typing import Any, NamedTuple

from gptcore.ops import Matmul, Op, Pointwise, Reduce, Role, Tensor


class Operand(NamedTuple):
    role: Role
    bits: int


class Product(NamedTuple):
    """`batch` products (m x k)(k x n), of which a share `live` is not masked. `out` is where the result goes."""

    batch: int
    m: int
    k: int
    n: int
    live: float
    a: Operand
    b: Operand
    out: Operand

    @property
    def macs(self) -> float:
        return self.batch * self.m * self.k * self.n * self.live


class Stream(NamedTuple):
    """What a unit does in one kernel.

    `elements` pass through it; `length` of them make a row. `reductions` are the results of whole rows that must be
    there before the row can go on, so that the unit sees each element once more for each. `primitives` are the
    operations of one element, each a place in the unit; `counts` are all that are executed.
    """

    slot: str
    kind: str
    bits: int
    elements: int
    length: int
    reductions: int
    primitives: tuple[tuple[str, int], ...]
    counts: tuple[tuple[str, int], ...]


class Kernel(NamedTuple):
    """Bytes are those of tensors that enter or leave, without the operands of products that come from memory."""

    name: str
    slot: str
    kind: str
    layer: int | None
    phase: str
    products: tuple[Product, ...]
    streams: tuple[Stream, ...]
    weight_bytes: int
    kv_read_bytes: int
    kv_written_bytes: int
    activation_bytes: int
    state_bytes: int  # gradients and optimizer state

    @property
    def macs(self) -> float:
        return sum(p.macs for p in self.products)

    @property
    def moved_bytes(self) -> float:
        """Everything that enters or leaves once, operands of products included."""
        return (
            self.weight_bytes + self.kv_read_bytes + self.kv_written_bytes + self.activation_bytes + self.state_bytes
            + sum(_bytes(p) for p in self.products)
        )  # fmt: skip


def _bytes(p: Product) -> float:
    sizes = ((p.a, p.m * p.k), (p.b, p.k * p.n), (p.out, p.m * p.n))
    return sum(p.batch * size * operand.bits / 8 for operand, size in sizes if operand.role != "intermediate")


def kernels_of(ops: Iterable[Op]) -> list[Kernel]:
    """Operations grouped into kernels, in the order of their first operations.

    What forward left behind is read from memory by backward. An optimizer updates all its elements in one kernel.
    """
    groups: list[list[Op]] = []
    made_by: dict[str, int] = {}  # intermediate -> group
    phase = ""
    for op in ops:
        if op.phase != phase:
            made_by, phase = {}, op.phase
        first = -1
        for t in op.reads:
            group = made_by.get(t.name, -1) if t.role == "intermediate" else -1
            if group < 0 or group == first:
                continue
            if first < 0:
                first = group
                continue
            first, other = min(first, group), max(first, group)
            groups[first] += groups[other]
            groups[other] = []
            for name, home in made_by.items():
                if home == other:
                    made_by[name] = first
        if first < 0:
            first = len(groups)
            groups.append([])
        groups[first].append(op)
        for t in op.writes:
            if t.role == "intermediate":
                made_by[t.name] = first
    updates = [group for group in groups if group and group[0].phase == "optimizer" and _is_pointwise(group)]
    kernels = [_kernel(group) for group in groups if group and group not in updates]
    return [*kernels, *together([(_kernel(group), 1) for group in updates])] if updates else kernels


def _is_pointwise(ops: list[Op]) -> bool:
    return all(type(op) is Pointwise for op in ops)


def together(kernels: Iterable[tuple[Kernel, int]]) -> list[Kernel]:
    """Independent kernels without products, each so many times: those of the same streams as one."""
    found: dict[Any, list[tuple[Kernel, int]]] = {}
    for kernel, times in kernels:
        found.setdefault(tuple((s.slot, s.kind, s.primitives) for s in kernel.streams), []).append((kernel, times))
    merged = []
    for group in found.values():
        first = group[0][0]
        streams = tuple(
            stream._replace(
                elements=sum(kernel.streams[i].elements * times for kernel, times in group),
                counts=tuple(
                    (name, sum(dict(kernel.streams[i].counts)[name] * times for kernel, times in group))
                    for name, _ in stream.counts
                ),
            )
            for i, stream in enumerate(first.streams)
        )
        sums = {key: sum(getattr(kernel, key) * times for kernel, times in group) for key in _BYTES}
        merged.append(first._replace(streams=streams, **sums))
    return merged


_BYTES = ("weight_bytes", "kv_read_bytes", "kv_written_bytes", "activation_bytes", "state_bytes")


def _kernel(ops: list[Op]) -> Kernel:
    products: list[Product] = []
    streams: dict[tuple[str, str], list[tuple[Pointwise, Tensor]]] = {}
    main: Op | None = None
    weight = kv_read = kv_written = activation = state = 0
    seen: set[str] = set()  # made in this kernel, or fetched by an operation before
    for op in ops:
        if type(op) is Matmul:
            products.append(_product(op))
            main = main or op
            seen.add(op.writes[0].name)
            continue
        fetched = []
        if isinstance(op, Pointwise):
            largest, size = op.writes[0], -1
            for side in (op.reads, op.writes):
                for t in side:
                    numel, role = prod(t.shape), t.role
                    if numel > size and role != "index":
                        largest, size = t, numel
                    name = t.name
                    if role == "intermediate" or name in seen:
                        continue
                    fetched.append(name)
                    nbytes = -(-numel * t.bits // 8)
                    if role == "activation" or role == "index":
                        activation += nbytes
                    elif role == "weight":
                        weight += nbytes
                    elif role == "kv":
                        kv_read += nbytes
                    else:
                        state += nbytes
            streams.setdefault((op.slot, op.kind), []).append((op, largest))
        else:  # a gather or a move
            for i, (role, nbytes) in enumerate(op.moved()):
                if role == "weight":
                    weight += nbytes
                elif role == "kv":
                    kv_read, kv_written = (kv_read + nbytes, kv_written) if i == 0 else (kv_read, kv_written + nbytes)
                elif role == "gradient" or role == "optimizer":
                    state += nbytes
                elif role != "intermediate":
                    activation += nbytes
        seen.update(fetched)
        seen.update([t.name for t in op.writes])
    head = main or ops[0]
    return Kernel(
        head.name, head.slot, head.kind, head.layer, head.phase, tuple(products),
        tuple([_stream(slot, kind, group) for (slot, kind), group in streams.items()]),
        weight, kv_read, kv_written, activation, state,
    )  # fmt: skip


def _product(op: Matmul) -> Product:
    a, b = op.reads
    out = op.writes[0]
    live = 1.0
    for t in (a, b, out):  # at most one operand is a masked score matrix
        if t.live != t.numel:
            live = t.live / t.numel
            break
    return Product(
        op.batch, op.m, op.k, op.n, live, Operand(a.role, a.bits), Operand(b.role, b.bits), Operand(out.role, out.bits)
    )


def _stream(slot: str, kind: str, ops: list[tuple[Pointwise, Tensor]]) -> Stream:
    elements = length = reductions = bits = 0
    primitives: dict[str, int] = {}
    counts: dict[str, int] = {}
    for op, largest in ops:
        live = largest.live
        if live > elements:
            elements, length, reductions = live, largest.shape[-1] if largest.shape else 1, 0
        if live == elements and type(op) is Reduce:
            reductions += 1
        if largest.bits > bits:
            bits = largest.bits
        for primitive, count in op.per_element:
            primitives[primitive] = primitives.get(primitive, 0) + count
            counts[primitive] = counts.get(primitive, 0) + count * live
    return Stream(
        slot, kind, bits, elements, length, reductions, tuple(sorted(primitives.items())), tuple(sorted(counts.items()))
    )

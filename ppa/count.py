"""Counts: what the operation list of a configuration adds up to, for one point of operation. No machine appears here.

    Config + Point -> declare -> one row an operation -> totals a stage

Counted: multiply-accumulates of matrix products, primitive operations outside them, bytes of every operand.
Not counted: instructions, address arithmetic, control, caches and tiling (an operand counts once however often a
machine would fetch it again), allocation. Units are in the key names or in `CONVENTIONS`; all integers are exact.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from gptcore.config import Config, GPTConfig
from gptcore.errors import UserError
from gptcore.model import declare
from gptcore.ops import PRIMITIVES, STAGES, Bits, Graph, Op, Pass, Role, Stage, Tensor

BYTE_CLASSES = ("weights", "activations", "kv", "intermediates", "gradients", "optimizer")
_CLASS_OF: Mapping[Role, str] = {
    "weight": "weights", "activation": "activations", "index": "activations", "kv": "kv",
    "intermediate": "intermediates", "gradient": "gradients", "optimizer": "optimizer",
}  # fmt: skip
_TRAIN_WIDTH = {"float32": 32, "bfloat16": 16, "float16": 16}
MASTER_BITS = 32  # weights, their gradients and the optimizer state while training

CONVENTIONS = {
    "units": "SI: FLOPs, MACs, operations and bytes are plain numbers; prefixes are decimal (1 GB = 1e9 bytes) and "
    "appear only in print",
    "flops": "1 MAC = 2 FLOPs; FLOPs are those of matrix products and of nothing else",
    "matmul_flops": "in full, masked pairs included, exactly what torch's FlopCounterMode counts on the meta device",
    "matmul_flops_causal": "only unmasked (query, key) pairs, counted exactly: T(T+1)/2 a head for T tokens, fewer in "
    "a sliding window; and without the rows that only pad the blocks of experts",
    "op_counts": "primitive operations (add, mul, exp, ...) outside matrix products, over all elements, masked scores "
    "included; counted separately and never mixed into FLOPs",
    "op_counts_causal": "the same over unmasked elements only",
    "bytes": "each operand of each operation moved once from or to memory at its stored width; no cache, no tiling. "
    "Token and position indices (32 bit) count as activations; constant tables (the sines of rotary positions) are "
    "taken as held in the unit and count nothing",
    "unfused": "the sum over all tensors: every operation is a kernel of its own",
    "fused": "without intermediates: tensors that never leave a fused kernel, such as attention scores",
    "prefill": "one forward pass over batch x seq_len tokens that computes the logits of all positions and writes the "
    "KV cache",
    "decode": "one new token for each of batch sequences, attending to `context` tokens, itself included; reads the "
    "KV cache once",
    "kv_bytes": "size of the keys and values of the whole batch held at that context; a sliding window caps it",
    "train": "forward, loss, backward and one step of train.optimizer on batch x seq_len tokens (one micro-batch, no "
    "recomputation); weights, their gradients and the optimizer state have 32 bits (master weights), activations and "
    "their gradients the width of train.dtype. Op counts of the backward pass are estimates, FLOPs are exact",
    "embedding": "a lookup moves the rows that it reads and costs no FLOPs; the output head is a matrix product",
    "params": "distinct parameters: tied embeddings count once, an untied head adds its own",
}


@dataclass(frozen=True)
class Point:
    """Where a model is priced: sequences, prompt and training length in tokens, decode context, widths in bits."""

    batch: int
    seq_len: int
    context: int
    bits: Bits

    def run(self, stage: Stage) -> Pass:
        """The execution that stands for a stage."""
        if stage == "decode":
            return Pass(stage, self.batch, 1, self.context)
        return Pass(stage, self.batch, self.seq_len, self.seq_len)


def make_point(
    model: GPTConfig, *, batch_size: int = 1, seq_len: int | None = None, context: int | None = None,
    bits: Bits | None = None,
) -> Point:  # fmt: skip
    """A point of a model, by default at its full block_size and its own widths. UserError where it does not fit."""
    lengths = {"seq_len": seq_len, "context": context}
    found = {name: model.block_size if value is None else value for name, value in lengths.items()}
    for name, value in (("batch_size", batch_size), *found.items()):
        if value < 1:
            raise UserError(f"{name} {value} must be at least 1")
    for name, value in found.items():
        if value > model.block_size:
            raise UserError(
                f"{name} {value} exceeds model.block_size {model.block_size}: choose a {name} of at most "
                f"{model.block_size}, or price a model with a larger block_size"
            )
    own = Bits(model.bits.weight, model.bits.activation, model.bits.kv)
    return Point(batch_size, found["seq_len"], found["context"], bits or own)


def train_bits(config: Config) -> Bits:
    """Widths while training: 32-bit master weights, activations as wide as the arithmetic of `train.dtype`."""
    width = _TRAIN_WIDTH[config.train.dtype]
    return Bits(weight=MASTER_BITS, activation=width, kv=width)


def declare_stage(config: Config, point: Point, stage: Stage) -> Graph:
    """The operation list of a stage at a point."""
    bits = train_bits(config) if stage == "train" else point.bits
    return declare(config.model, point.run(stage), bits, config.train)


def op_row(op: Op, stage: Stage) -> dict[str, Any]:
    """The costs of one operation. `op_counts` hold only primitives that occur; `bytes` holds every class and sums."""
    moved = dict.fromkeys(BYTE_CLASSES, 0)
    for role, nbytes in op.moved():
        moved[_CLASS_OF[role]] += nbytes
    unfused = sum(moved.values())
    macs = op.macs
    return {
        "stage": stage, "phase": op.phase, "slot": op.slot, "kind": op.kind, "layer": op.layer, "name": op.name,
        "op": type(op).__name__.lower(), "flops": 2 * macs, "flops_causal": 2 * op.macs_causal, "macs": macs,
        "op_counts": op.primitives(), "op_counts_causal": op.primitives(causal=True),
        "bytes": {**moved, "fused": unfused - moved["intermediates"], "unfused": unfused},
    }  # fmt: skip


def add_up(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Totals of rows: FLOPs, MACs, every primitive (0 where it does not occur), bytes by class and their sums."""
    flops = causal = macs = 0
    counts, counts_causal = dict.fromkeys(PRIMITIVES, 0), dict.fromkeys(PRIMITIVES, 0)
    moved = dict.fromkeys((*BYTE_CLASSES, "fused", "unfused"), 0)
    for row in rows:
        flops += row["flops"]
        causal += row["flops_causal"]
        macs += row["macs"]
        for total, part in (
            (counts, row["op_counts"]), (counts_causal, row["op_counts_causal"]), (moved, row["bytes"]),
        ):  # fmt: skip
            for key, value in part.items():
                total[key] += value
    return {
        "matmul_flops": flops, "matmul_flops_causal": causal, "macs": macs, "op_counts": counts,
        "op_counts_causal": counts_causal, "bytes": moved,
    }  # fmt: skip


@dataclass(frozen=True)
class Counted:
    """Everything counted at one point.

    `weights` and `cache` are the distinct tensors by name, at the widths of the point; `rows` are those of `op_row`,
    `totals` those of `add_up` by stage.
    """

    point: Point
    weights: Mapping[str, Tensor]
    cache: Mapping[str, Tensor]
    rows: list[dict[str, Any]]
    totals: dict[str, dict[str, Any]]

    @property
    def params(self) -> int:
        return sum(t.numel for t in self.weights.values())

    @property
    def weight_bytes(self) -> int:
        return sum(t.nbytes for t in self.weights.values())

    @property
    def kv_bytes(self) -> int:
        return self.totals["decode"]["kv_bytes"]


def count(config: Config, point: Point) -> Counted:
    """Counts all stages of a configuration whose vocabulary size is known."""
    graphs = {stage: declare_stage(config, point, stage) for stage in STAGES}
    by_stage = {stage: [op_row(op, stage) for op in graph.ops] for stage, graph in graphs.items()}
    cache = graphs["decode"].cache_tensors()
    totals: dict[str, dict[str, Any]] = {stage: add_up(rows) for stage, rows in by_stage.items()}
    totals["decode"]["kv_bytes"] = sum(t.nbytes for t in cache.values())
    rows = [row for rows in by_stage.values() for row in rows]
    return Counted(point, graphs["prefill"].weights(), cache, rows, totals)

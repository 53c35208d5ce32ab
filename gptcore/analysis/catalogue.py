"""The catalogue of variants as a Markdown table, made from the declarations: `gptcore variants --markdown FILE`.

Every kind is declared alone, with its default knobs, at one size: width 64, 4 heads, 64 tokens, biases on. What the
table says of operations and parameters is what the contract tests hold against the modules.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

from ..config import Dims, Heads, LayerConfig
from ..ops import Graph, Pass, Reduce
from ..registry import SLOTS, KindConfig, kinds, lookup

WIDTH, HEADS, TOKENS = 64, 4, 64
PACKAGES = Path(__file__).parents[2]
_HEAD = (
    "| kind | formula | parameters | primitives per element | row reduction | decode state | fused form | silicon |\n"
    "|---|---|---|---|---|---|---|---|"
)
_ELEMENT = {
    "attention": "per element of the output, heads and projections together",
    "softmax": "per score",
    "norm": "per element",
    "activation": "per element of the result",
    "mlp": "per element of the output",
    "position": "per element of the embedding, of a query and key pair, or per score",
    "linear": "per element of the output",
    "block": "per element of the output, without attention and mlp",
    "residual": "per element",
}


def _config(slot: str, cls: Any) -> KindConfig:
    """Default knobs, but for the number of heads, which has to divide the width."""
    fields = cls.Config.model_fields
    return cls.Config(**({"n_head": HEADS} if slot == "attention" and "n_head" in fields else {}))


def _declared(slot: str, cls: Any) -> Graph:
    config, dims = _config(slot, cls), Dims(WIDTH, 1, TOKENS, True, 0.0)
    g = Graph(Pass("prefill", 1, TOKENS, TOKENS))
    x = g.tensor("x", 1, TOKENS, WIDTH)
    nothing = lookup("position", "none").Config()
    with g.at(slot, slot=slot, kind=cls.kind, layer=0):
        if slot == "attention":
            cls.declare(config, g, x, dims, nothing)
        elif slot == "softmax":
            cls.declare(config, g, g.tensor("scores", 1, HEADS, TOKENS, TOKENS), HEADS)
        elif slot == "activation":
            cls.declare(config, g, x)
        elif slot == "linear":
            cls.declare(config, g, x, WIDTH, bias=True)
        elif slot == "position":
            heads = Heads(HEADS, WIDTH // HEADS)
            cls.declare_embed(config, g, x, dims)
            cls.declare_rotate(config, g, g.view(x, 1, heads.count, TOKENS, heads.width))
            cls.declare_bias(config, g, HEADS, TOKENS, TOKENS)
        elif slot == "block":
            bare = LayerConfig(attention={"kind": "identity"}, mlp={"kind": "identity"})  # type: ignore[arg-type]
            cls.declare(config, g, x, bare, dims, nothing)
        elif slot == "residual":
            cls.declare(config, g, "join", x, g.tensor("y", 1, TOKENS, WIDTH), dims)
        else:
            cls.declare(config, g, x, dims)
    return g


def _elements(slot: str, cls: Any, g: Graph) -> int:
    if slot == "softmax" or (slot == "position" and "bias" in cls.acts_on(_config(slot, cls))):
        return HEADS * TOKENS * TOKENS
    if slot == "activation":
        return TOKENS * WIDTH // cls.narrowing
    return TOKENS * WIDTH


def _state(slot: str, cls: Any) -> str:
    if slot != "attention":
        return "none"
    dims, sizes = Dims(WIDTH, 1, TOKENS, True, 0.0), []
    for context in (TOKENS // 2, TOKENS):
        g = Graph(Pass("decode", 1, 1, context))
        with g.at("a", slot="attention", kind=cls.kind, layer=0):
            cls.declare(_config(slot, cls), g, g.tensor("x", 1, 1, WIDTH), dims, lookup("position", "none").Config())
        sizes.append(sum(t.numel for t in g.cache_tensors().values()))
    if sizes[0] == sizes[1]:
        return f"constant, {sizes[0]} values" if sizes[0] else "none"
    return f"{(sizes[1] - sizes[0]) / (TOKENS - TOKENS // 2):.4g} values a token"


@cache
def _designed() -> set[str]:
    """`slot/kind` of everything that an operator with a price in some cell library computes."""
    files = (PACKAGES / "ppa" / "calibration").glob("*.json")
    return {place for file in files for places in json.loads(file.read_text())["units"].values() for place in places}


def _row(slot: str, name: str, cls: Any) -> str:
    g = _declared(slot, cls)
    elements = _elements(slot, cls, g)
    counts: dict[str, int] = {}
    for op in g.ops:
        for primitive, count in op.primitives().items():
            counts[primitive] = counts.get(primitive, 0) + count
    shown = ", ".join(f"{p} {c / elements:.3g}" for p, c in sorted(counts.items()) if c)
    macs = sum(op.macs for op in g.ops)
    if macs:
        shown = ", ".join(filter(None, [f"MAC {macs / elements:.4g}", shown]))
    dims = Dims(WIDTH, 1, TOKENS, True, 0.0)
    fused = slot == "softmax" and not isinstance(cls(cls.Config(), dims, 2).weighting(), str)
    silicon = f"{slot}/{name}" in _designed()
    formula = (cls.__doc__ or "").strip().splitlines()[0].replace("|", "\\|")
    cells = [
        f"`{name}`", formula, f"{sum(w.numel for w in g.weights().values()):,}", shown or "none",
        "yes" if any(isinstance(op, Reduce) for op in g.ops) else "no", _state(slot, cls),
        "yes" if fused else "no", "yes" if silicon else "no",
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def markdown() -> str:
    """The whole catalogue, one table a slot."""
    total = sum(len(kinds(slot)) for slot in SLOTS)
    parts = [
        "# Variants",
        f"{total} kinds in {len(SLOTS)} slots, each by its default knobs. This page is written by `gptcore variants "
        "--markdown docs/variants.md` from the declarations of the kinds; a test compares it.",
        f"Sizes behind the numbers: width {WIDTH}, {HEADS} heads, {TOKENS} tokens, biases on; an mlp, attention or "
        "block counts what is inside it. MAC: multiply-accumulates of matrix products, masked pairs included. Row "
        "reduction: a whole row must be seen before its first result. Decode state: what is kept between tokens of one "
        "sequence in one layer; every kind decodes token by token to the same result as the full pass. Fused form: a "
        "path that does not compute operation by operation. Silicon: a synthesised and priced operator computes it.",
    ]
    for slot in SLOTS:
        rows = [_row(slot, name, cls) for name, cls in kinds(slot).items()]
        parts += [f"## {slot}", f"Primitives {_ELEMENT[slot]}.", "\n".join([_HEAD, *rows])]
    return "\n\n".join(parts) + "\n"

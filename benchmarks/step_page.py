"""Where the bytes and the time of a training step go, by torch's operators and by kernels: docs/training_step.md.

    python -m benchmarks.step_page

Nothing here is timed. Bytes are those of every tensor that a kernel reads or writes once; times are the least that an
H200 takes at its peak rates of products, memory and exponentials (`kernels.roofline.H200`): the longest of the three
for matrix products with what is fused into them, and of what runs in kernels of its own the time of its bytes. The step
is that of `gptcore train` in bf16: parameters, stream and gradients of parameters in fp32, products in bf16. "torch" is
plain torch operator by operator, as train.kernel=reference runs without torch.compile, which joins some of them.

Legend: B sequences, T tokens, M = B T, C width, H heads, D head width, F hidden width, V vocabulary, L layers.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kernels.losses_work import chain_bytes as loss_chain
from kernels.losses_work import linear_work
from kernels.mlp_work import mlp_work
from kernels.norms_work import Norm, norm_work
from kernels.norms_work import chain_bytes as norm_chain
from kernels.roofline import H200, Work, attention_work, least_times_s
from kernels.rotary import chain_bytes as rotary_chain
from kernels.rotary import rotary_work

DOCS = Path(__file__).parents[1] / "docs"
NARROW, WIDE = 2, 4  # bytes of products' operands, and of what is kept wide


@dataclass(frozen=True)
class Model:
    name: str
    weighting: str = "softmax"
    activation: str = "gelu_tanh"
    gated: bool = False
    centred: bool = True
    rotary: bool = False
    bias: bool = True
    B: int = 32
    T: int = 1024
    L: int = 12
    C: int = 768
    H: int = 12
    F: int = 3072
    V: int = 50304

    @property
    def M(self) -> int:
        return self.B * self.T

    @property
    def parameters(self) -> int:
        block = 4 * self.C**2 + (2 + self.gated) * self.C * self.F
        biases = (4 * self.C + self.F * (1 + self.gated) + self.C) * self.bias
        norms = (2 * self.L + 1) * self.C * (1 + (self.centred and self.bias))
        return self.L * (block + biases) + norms + self.V * self.C + self.T * self.C * (not self.rotary)


MODELS = (
    Model("GPT-2 shape, 124 million parameters"),
    Model("ConSmax, SwiGLU, RMSNorm, rotary", "consmax", "silu", True, False, True, False, F=2048),
)


@dataclass(frozen=True)
class Part:
    """Work of a whole step, forward and backward, by torch's operators and by the kernels (None: the same).

    Of each the products with what is fused into them, then what runs beside them.
    """

    name: str
    torch: tuple[Work, Work]
    kernels: tuple[Work, Work] | None = None

    @property
    def after(self) -> tuple[Work, Work]:
        return self.kernels or self.torch


NOTHING = Work(0, 0, 0)


def memory(size: float) -> Work:
    return Work(0, round(size), 0)


def times(work: Work, n: int) -> Work:
    return Work(work.flops * n, work.bytes * n, work.exponentials * n)


def total(*works: Work) -> Work:
    return Work(sum(w.flops for w in works), sum(w.bytes for w in works), sum(w.exponentials for w in works))


def beside(whole: Work, apart: float) -> tuple[Work, Work]:
    """`apart` bytes of `whole` are moved by kernels of their own."""
    return Work(whole.flops, whole.bytes - round(apart), whole.exponentials), memory(apart)


def product(M: int, K: int, N: int) -> Work:
    """A linear layer, forward and both gradients, each operand once."""
    return Work(6 * M * K * N, NARROW * 3 * (M * K + K * N + M * N), 0)


# What plain torch moves for every score of ConSmax, seen or not, in bytes. Forward: product 2, to fp32 6, minus beta 8,
# power 8, triangle 8, over gamma 8, to bf16 6, times values 2. Backward: times dO 2, dO V^T 2, times the weights 6,
# times keys 2, times queries 2. Those of products first.
SCORE = (2 + 2 + 2 + 2 + 2 + 2, 6 + 8 + 8 + 8 + 8 + 6 + 6)


def attention(m: Model) -> Part:
    """Scores, weights and weighted values. Softmax is a fused kernel of torch's already; ConSmax is not."""
    args = (m.weighting, m.B, m.H, m.H, m.T, m.T, m.C // m.H, m.C // m.H, True, NARROW)
    ours = times(total(attention_work("forward", *args), attention_work("backward", *args)), m.L)
    if m.weighting == "softmax":
        return Part("attention", (ours, NOTHING))
    scores = m.L * m.B * m.H * m.T * m.T
    theirs = Work(2 * ours.flops, SCORE[0] * scores + ours.bytes, 0), memory(SCORE[1] * scores)
    return Part("attention", theirs, (ours, NOTHING))


def norms(m: Model) -> Part:
    """Two norms and two sums a layer, and the last norm; the kernels of all but the first take the sum before them."""
    parameters, both = 1 + (m.centred and m.bias), ("forward", "backward")
    plain = Norm(m.M, m.C, m.centred, parameters, WIDE, NARROW)
    fused = Norm(m.M, m.C, m.centred, parameters, WIDE, NARROW, NARROW)
    chain = Norm(m.M, m.C, m.centred, parameters, WIDE, WIDE)  # torch writes fp32, which is cast for the product
    cast = 2 * (WIDE + NARROW)
    # The two gradients of a residual joined; a sum, that, and the result cast for the branch.
    join = m.M * m.C * (WIDE + WIDE + WIDE)
    add = m.M * m.C * ((WIDE + NARROW + WIDE) + (WIDE + NARROW)) + join
    alone, with_sum = (sum(norm_work(op, n).bytes for op in both) for n in (plain, fused))
    unread = m.M * m.C * WIDE  # behind the last norm the sum has no gradient of its own
    theirs = sum(norm_chain(op, chain) for op in both) + cast * m.M * m.C
    return Part(
        "norms and residual", (NOTHING, memory(theirs * (2 * m.L + 1) + 2 * m.L * add)),
        (NOTHING, memory(alone + join + 2 * m.L * with_sum - unread)),
    )  # fmt: skip


def mlp(m: Model) -> Part:
    def work(fused: bool) -> Work:
        both = (mlp_work(op, m.M, m.C, m.F, m.activation, NARROW, gated=m.gated, bias=m.bias, fused=fused)
                for op in ("forward", "backward"))  # fmt: skip
        return times(total(*both), m.L)

    theirs = work(False)
    products = m.L * total(product(m.M, m.C, m.F * (1 + m.gated)), product(m.M, m.F, m.C)).bytes
    return Part("mlp", beside(theirs, theirs.bytes - products), (work(True), NOTHING))


def rotary(m: Model) -> Part:
    D = m.C // m.H
    ours = 2 * rotary_work(m.B, m.H, m.H, m.T, D, D, NARROW).bytes
    theirs = 2 * rotary_chain(m.B, m.H, m.H, m.T, D, D, NARROW)
    return Part("rotary", (NOTHING, memory(m.L * theirs)), (NOTHING, memory(m.L * ours)))


def head(m: Model) -> Part:
    """Head and loss; the kernel's two passes over a chunk of logits are no part of a product."""
    layer, logits = product(m.M, m.C, m.V), NARROW * m.M * m.V
    fused = linear_work(m.M, m.C, m.V, NARROW, WIDE)
    return Part("head and loss", (layer, memory(loss_chain(m.M, m.V, NARROW))), beside(fused, 3 * logits))


def rest(m: Model) -> list[Part]:
    """What is the same for both: products of attention, embedding, casts of parameters, optimizer."""
    projections = times(total(product(m.M, m.C, 3 * m.C), product(m.M, m.C, m.C)), m.L)
    casts = (m.parameters - m.V * m.C) * 2 * (WIDE + NARROW)  # to bf16, and their gradients back
    step = m.parameters * (WIDE + 2 * WIDE + 7 * WIDE)  # norm, scaling; w, g, m, v in; w, m, v out
    rows = m.M * m.C * WIDE * 5 + m.V * m.C * WIDE  # gathered, position added; gradients scattered
    moved = {"embedding": rows, "casts of parameters": casts, "optimizer": step}
    return [
        Part("projections of attention", (projections, NOTHING)),
        *(Part(name, (NOTHING, memory(size))) for name, size in moved.items()),
    ]


def parts(m: Model) -> list[Part]:
    return [attention(m), mlp(m), norms(m), *([rotary(m)] if m.rotary else []), head(m), *rest(m)]


def seconds(works: tuple[Work, Work]) -> float:
    return sum(max(least_times_s(work, H200).values()) for work in works)


def bound(works: tuple[Work, Work]) -> str:
    """What takes most of the time."""
    found = [least_times_s(work, H200) for work in works]
    longest = max(found, key=lambda limits: max(limits.values()))
    return max(longest, key=lambda name: longest[name])


def table(m: Model) -> str:
    lines = ["| part | TFLOP | GB, torch | GB, kernels | least ms, torch | least ms, kernels | bound by |",
             "|---|---:|---:|---:|---:|---:|---|"]  # fmt: skip
    sums = [0.0] * 5
    for p in parts(m):
        before, after = total(*p.torch), total(*p.after)
        row = [after.flops / 1e12, before.bytes / 1e9, after.bytes / 1e9, 1e3 * seconds(p.torch),
               1e3 * seconds(p.after)]  # fmt: skip
        sums = [a + b for a, b in zip(sums, row, strict=True)]
        limits = ", then ".join(dict.fromkeys(bound(works) for works in (p.torch, p.after)))
        lines.append(f"| {p.name} | {' | '.join(f'{x:.2f}' for x in row)} | {limits} |")
    lines.append(f"| **all** | {' | '.join(f'{x:.2f}' for x in sums)} | |")
    return "\n".join(lines) + "\n"


PAGE = """# Where a training step goes

Bytes that a training step moves and the least time it can take on an H200, part by part, by plain torch and by the
kernels of `kernels/`. **Computed, not timed**: no GPU was at hand. `python -m benchmarks.step_page` writes this page;
on a GPU `python -m benchmarks.gpu step` times these steps (`benchmarks/README.md`).

A batch of {B} sequences of {T:,} tokens, {L} layers, width {C}, {H} heads, vocabulary {V:,}; bf16 products, fp32
parameters and stream. Times assume the peak rates, {tflops:.0f} TFLOP/s and {tbytes:.1f} TB/s, which real kernels do
not reach; launches are free. Torch is plain torch, operator by operator: `torch.compile` joins some of them, mostly
those of activations, norms and loss, so it lies between the two columns.

![bytes of a training step](training_step.png)
{tables}
What the kernels change: activations join the products around them, so hidden values of the mlp are written and read
fewer times; a norm adds the branch to the stream itself, reads both once and writes its result in the type that the
product behind it reads; logits exist for a chunk of tokens at a time; ConSmax keeps no scores in memory, where plain
torch moves {score} bytes for each. What they do not change: products, the optimizer, and softmax attention, for which
torch has a fused kernel.
"""


def page() -> str:
    m = MODELS[0]
    tables = "".join(f"\n## {x.name}\n\n{table(x)}" for x in MODELS)
    return PAGE.format(B=m.B, T=m.T, L=m.L, C=m.C, H=m.H, V=m.V, tflops=H200.flops_s / 1e12,
                       tbytes=H200.bytes_s / 1e12, tables=tables, score=sum(SCORE))  # fmt: skip


def draw(path: Path) -> None:
    """Bars of bytes by part, torch above the kernels, one panel a model."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(MODELS), 1, figsize=(7.2, 3.6), sharex=True, layout="constrained")
    names = list(dict.fromkeys(p.name for m in MODELS[::-1] for p in parts(m)))
    colours = dict(zip(names, plt.get_cmap("cividis").resampled(len(names)).colors, strict=True))  # type: ignore[attr-defined]
    for axis, m in zip(axes, MODELS, strict=True):
        rows: tuple[Callable[[Part], tuple[Work, Work]], ...] = (lambda p: p.after, lambda p: p.torch)
        for y, work in enumerate(rows):
            left = 0.0
            for p in parts(m):
                width = total(*work(p)).bytes / 1e9
                axis.barh(y, width, left=left, color=colours[p.name], edgecolor="white", lw=0.5, height=0.7)
                left += width
            axis.text(left, y, f" {left:.0f} GB", va="center", fontsize=8)
        axis.set_yticks([1, 0], ["torch", "kernels"], fontsize=8)
        axis.set_title(m.name, fontsize=9, loc="left")
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(x=0.09)
        axis.tick_params(labelsize=8)
    axes[-1].set_xlabel("bytes moved in a training step (GB)", fontsize=8)
    handles = [plt.Rectangle((0, 0), 1, 1, color=colours[name]) for name in names]
    figure.legend(handles, names, loc="outside right center", fontsize=7.5, frameon=False)
    figure.savefig(path, dpi=200)
    plt.close(figure)


def main() -> int:
    (DOCS / "training_step.md").write_text(page())
    draw(DOCS / "training_step.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())

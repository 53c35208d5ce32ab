"""What is checked and timed of the kernels beside attention: points and parts. Pure: no torch, no GPU.

A point is an operator of `block_ops` with sizes. Contestants are `triton`, our kernel (`!recompute`, `!in-place`,
`!projection`: another form of it), `compile`, the plain torch form under torch.compile, and torch's own products by
name: `mm` and `bf16` (cuBLAS), `int-mm` (int8, scaled under torch.compile). Of a training step `triton` is the model
with all kernels, `compile` the same in plain torch under torch.compile, `triton!compile` both together.

Legend: M rows, C width of the model, H hidden width, K inputs, N outputs or width of a norm, V vocabulary; of rotary B
batch, H query heads, K key heads, T tokens, D head width, R entries that turn; of a step B sequences of T tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from .plan import Part

ACTIVATIONS = ("none", "relu", "relu2", "gelu", "gelu_tanh", "silu")
NORMS = ("rms_norm", "layer_norm", "add_rms_norm", "add_layer_norm")
CURVES = ("gelu", "silu", "tanh", "sigmoid")
WIDTHS = ((768, 3072), (1024, 4096), (2048, 8192), (4096, 16384))  # of the model, of the hidden vector
NORM_WIDTHS = (768, 1024, 2048, 4096, 8192, 16384)
COMPILED_WIDTHS = (768, 4096, 16384)
TOKENS = 16384
NEWER = ("swiglu", "rmsnorm", "rotary")  # in place of GPT-2's parts
SHARED = 1 << 26  # entries of a norm's input: 128 MB
BEYOND = (1 << 21) + 77  # rows that with 1032 columns are more than 2^31 elements


@dataclass(frozen=True)
class BlockPoint:
    part: str
    op: str  # of `block_ops.OPERATORS`, or step
    contestants: tuple[str, ...]
    sizes: tuple[tuple[str, int], ...]
    mode: str = "both"  # forward, backward, both
    variant: str = ""  # which kernel of the operator: an activation, a method, the type of results
    dtype: str = "bf16"
    options: tuple[str, ...] = ()
    run: int = 0  # tells points apart that are the same but for the process they run in

    def __getitem__(self, name: str) -> int:
        return dict(self.sizes)[name]

    @property
    def sized(self) -> str:
        return " ".join(f"{name}={size}" for name, size in self.sizes)

    @property
    def name(self) -> str:
        options = [self.dtype] * (self.dtype != "bf16") + [*self.options] + [f"run {self.run}"] * bool(self.run)
        sizes = (f"{name}{size}" for name, size in self.sizes)
        return " ".join(filter(None, [self.op, self.variant, self.mode, *sizes, *options]))

    @property
    def group(self) -> tuple:
        """Points of a group share kernels."""
        return self.op, self.variant, self.dtype, self.options, self.run

    @property
    def kernel(self) -> str:
        """What a red check stands for."""
        return f"{self.op} {self.variant} {self.dtype}"


def sized(**sizes: int) -> tuple[tuple[str, int], ...]:
    return tuple(sizes.items())


def _check(op: str, variant: str = "", contestants=("triton",), mode="both", dtype="bf16", options=(), **sizes: int):
    return BlockPoint("block_correctness", op, contestants, sized(**sizes), mode, variant, dtype, options)


def mlp_checks() -> Iterator[BlockPoint]:
    """Sums short and long, tiles enough for all multiprocessors and few; sizes that no tile divides."""
    shapes = (
        {"M": 1500, "C": 200, "H": 1556},
        {"M": 1500, "C": 1100, "H": 3116},
        {"M": 77, "C": 136, "H": 333},
        {"M": 333, "C": 1100, "H": 77},
    )
    for gated in ("", " gated"):
        for act in ACTIVATIONS:
            for shape in shapes:
                yield _check("mlp", act + gated, **shape)
            yield _check("mlp", act + gated, ("triton", "triton!recompute"), dtype="fp16", M=150, C=99, H=201)
            yield _check("mlp", act + gated, dtype="fp32", options=("no bias",), M=150, C=72, H=190)
    for act in ACTIVATIONS:
        yield _check("linear", act, M=1500, K=200, N=1556)
        yield _check("linear", act, M=1500, K=1100, N=3116, options=("no bias",))
        yield _check("linear", act, M=77, K=136, N=333, dtype="fp16")
        yield _check("linear", act, M=150, K=99, N=201, dtype="fp32")


def norm_checks() -> Iterator[BlockPoint]:
    """Every width of the table and longer rows, in every mixture of types that a model makes; two forms at some."""
    some = (63, 768, 4096, 17000)
    for op in NORMS:
        whole = op in ("rms_norm", "add_layer_norm")
        for N in (13, 32, 63, 100, 200, 500, 768, 1500, 4096, 8000, 16384, 17000) if whole else some:
            rows = 2001 if N < 4096 else 301
            yield _check(op, M=rows, N=N)
            yield _check(op, dtype="fp32", M=rows, N=N)
            yield _check(op, options=("mixed",), M=rows, N=N)
        yield _check(op, dtype="fp16", options=("strided",), M=1003, N=768)
        yield _check(op, options=("no weight",), M=1003, N=768)


def rotary_checks() -> Iterator[BlockPoint]:
    for D in (16, 32, 64, 96, 128, 256, 512, 1024):
        forms = ("triton", "triton!in-place", "triton!projection")
        yield _check("rotary", "", forms, B=2, H=6, K=2, T=77, D=D, R=D)
        yield _check("rms_norm_rotary", B=2, H=6, K=2, T=77, D=D)
    for dtype in ("fp16", "fp32"):
        yield _check("rotary", dtype=dtype, contestants=("triton", "triton!in-place"), B=3, H=5, K=5, T=33, D=80, R=24)
        yield _check("rms_norm_rotary", dtype=dtype, B=3, H=5, K=5, T=33, D=80)


def loss_checks() -> Iterator[BlockPoint]:
    for dtype in ("bf16", "fp16", "fp32"):
        for variant in ("plain", "shaped"):
            for V in (77, 500, 1000, 3001, 8000, 50257):
                yield _check("cross_entropy", variant, dtype=dtype, N=301, V=V)
            yield _check("linear_cross_entropy", variant, dtype=dtype, N=777, C=200, V=3001, options=("bias",))
        yield _check("linear_cross_entropy", "plain", dtype=dtype, N=6000, C=136, V=50257)
    yield _check("linear_cross_entropy", "plain", N=777, C=200, V=3001, options=("fp32 weight",))


RESULTS = ("int32", "fp32", "bf16", "int8", "fixed")


def quantised_checks() -> Iterator[BlockPoint]:
    for op in ("int8_linear", "ternary_linear"):
        for result in RESULTS:
            for M in (1, 7, 32, 33, 500):
                yield _check(op, result, mode="forward", M=M, N=777, K=1003)
            yield _check(op, result, mode="forward", M=1000, N=1032, K=2048)
    for dtype in ("bf16", "fp16", "fp32"):
        yield _check("ternary_wide", mode="forward", dtype=dtype, M=99, N=301, K=777)
        for method in ("symmetric", "affine"):
            for N in (100, 768, 16384, 20000):
                yield _check("fake_quantise", method, dtype=dtype, M=301, N=N)
            yield _check("fake_quantise", method, dtype=dtype, options=("whole",), M=301, N=5001)
        for N in (100, 768, 20000):
            yield _check("quantise_rows", mode="forward", dtype=dtype, M=301, N=N)
        for curve in CURVES:
            yield _check("lut", curve, dtype=dtype, M=301, N=5001)
            yield _check("pwl", curve, dtype=dtype, M=301, N=5001)
        yield _check("exp_lut", mode="forward", dtype=dtype, M=301, N=5001)


def correctness(rows=()) -> list[BlockPoint]:
    """Every launch row of every table; those of some sizes alone serve this device's architecture."""
    return [*mlp_checks(), *norm_checks(), *rotary_checks(), *loss_checks(), *quantised_checks()]


def int64(rows=()) -> list[BlockPoint]:
    """More than 2^31 elements in what is read or written."""
    found = [
        ("linear", "gelu", {"M": BEYOND, "K": 64, "N": 1032}),
        ("mlp", "relu2", {"M": BEYOND, "C": 64, "H": 1032}),
        ("mlp", "silu gated", {"M": BEYOND, "C": 64, "H": 1032}),
        ("rms_norm", "", {"M": BEYOND, "N": 1032}),
        ("add_layer_norm", "", {"M": BEYOND, "N": 1032}),
        ("rotary", "", {"B": 1030, "H": 16, "K": 2, "T": 2048, "D": 64, "R": 64}),
        ("rms_norm_rotary", "", {"B": 1030, "H": 16, "K": 2, "T": 2048, "D": 64}),
        ("cross_entropy", "plain", {"N": 16421, "V": 131072}),
        ("linear_cross_entropy", "plain", {"N": BEYOND, "C": 1032, "V": 100}),
        ("int8_linear", "bf16", {"M": BEYOND, "N": 1032, "K": 64}),
        ("ternary_linear", "bf16", {"M": BEYOND, "N": 1032, "K": 64}),
        ("fake_quantise", "symmetric", {"M": BEYOND, "N": 1032}),
        ("quantise_rows", "", {"M": BEYOND, "N": 1032}),
        ("lut", "gelu", {"M": BEYOND, "N": 1032}),
    ]  # fmt: skip
    forward = ("int8_linear", "ternary_linear", "quantise_rows")
    return [BlockPoint("block_int64", op, ("triton",), sized(**sizes), "forward" if op in forward else "both", variant)
            for op, variant, sizes in found]  # fmt: skip


def determinism(rows=()) -> list[BlockPoint]:
    found = [
        ("linear", "gelu", {"M": 4096, "K": 768, "N": 3072}),
        ("mlp", "relu2", {"M": 4096, "C": 768, "H": 3072}),
        ("mlp", "silu gated", {"M": 4096, "C": 768, "H": 2048}),
        *((op, "", {"M": 8192, "N": 768}) for op in NORMS),
        ("rms_norm", "", {"M": 2048, "N": 17000}),
        ("rms_norm_rotary", "", {"B": 8, "H": 12, "K": 12, "T": 1024, "D": 64}),
        ("cross_entropy", "plain", {"N": 2048, "V": 50304}),
        ("linear_cross_entropy", "plain", {"N": 8192, "C": 768, "V": 50304}),
        ("fake_quantise", "affine", {"M": 2048, "N": 3072}),
    ]  # fmt: skip
    return [BlockPoint("block_determinism", op, ("triton",), sized(**sizes), "both", variant, run=run)
            for run in (1, 2) for op, variant, sizes in found]  # fmt: skip


def memory(rows=()) -> list[BlockPoint]:
    """What an MLP keeps, and what head and loss take in one pass."""
    mlps = [BlockPoint("block_memory", "mlp", ("triton", "triton!recompute"), sized(M=TOKENS, C=768, H=3072), "both", v)
            for v in ("relu2", "gelu", "silu gated")]  # fmt: skip
    return mlps + [replace(p, part="block_memory", contestants=("triton",)) for p in linear_ce()]


def products(rows=()) -> list[BlockPoint]:
    found = []
    for K, N in WIDTHS:
        base = BlockPoint("products", "linear", ("triton", "mm"), sized(M=TOKENS, K=K, N=N), "forward", "none",
                          options=("no bias",))  # fmt: skip
        found += [base, *(replace(base, contestants=("triton", "compile"), variant=v) for v in ("relu2", "gelu_tanh"))]
    return found


def mlp(rows=()) -> list[BlockPoint]:
    names = ("triton", "triton!recompute", "compile")
    return [BlockPoint("mlp", "mlp", names, sized(M=TOKENS, C=C, H=H), "both", v, options=("no bias",))
            for C, H in WIDTHS[:3] for v in ("relu2", "silu gated")]  # fmt: skip


def norms(rows=()) -> list[BlockPoint]:
    """128 MB of input each; layer norm and torch.compile at three widths, which come first."""
    found = []
    for N in sorted(NORM_WIDTHS, key=lambda N: N not in COMPILED_WIDTHS):
        compiled = N in COMPILED_WIDTHS
        for op in ("rms_norm", "add_rms_norm", "layer_norm")[: 3 if compiled else 2]:
            for mode in ("forward", "backward"):
                names = ("triton", "compile") if compiled else ("triton",)
                found.append(BlockPoint("norms", op, names, sized(M=SHARED // N, N=N), mode))
    return found


def rotary(rows=()) -> list[BlockPoint]:
    shapes = ({"B": 32, "H": 12, "K": 12, "T": 1024, "D": 64}, {"B": 8, "H": 32, "K": 8, "T": 4096, "D": 128})
    turns = [BlockPoint("rotary", "rotary", ("triton!in-place", "triton", "compile"), sized(**s, R=s["D"]), "forward")
             for s in shapes]  # fmt: skip
    normed = [BlockPoint("rotary", "rms_norm_rotary", ("triton", "compile"), sized(**s), "forward") for s in shapes]
    return turns + normed


def cross_entropy(rows=()) -> list[BlockPoint]:
    return [BlockPoint("cross_entropy", "cross_entropy", ("triton", "compile"), sized(N=N, V=V), "both", "plain")
            for N, V in ((16384, 50304), (8192, 131072))]  # fmt: skip


def linear_ce(rows=()) -> list[BlockPoint]:
    """`fp32 weight` is what a model has under autocast."""
    base = BlockPoint("linear_ce", "linear_cross_entropy", ("triton", "compile"), sized(N=16384, C=768, V=50304),
                      "both", "plain")  # fmt: skip
    shapes = ((32768, 768), (8192, 4096))
    return [base, replace(base, options=("fp32 weight",)), *(replace(base, sizes=sized(N=N, C=C, V=50304))
                                                            for N, C in shapes)]  # fmt: skip


def quantised(rows=()) -> list[BlockPoint]:
    """Products of many int8 tokens; decode steps with ternary weights; rounding and tables of 128 MB."""
    found = [BlockPoint("quantised", "int8_linear", ("triton", "int-mm", "bf16"), sized(M=TOKENS, N=N, K=K), "forward",
                        "bf16") for K, N in WIDTHS[1:]]  # fmt: skip
    found += [BlockPoint("quantised", "ternary_linear", ("triton", "bf16"), sized(M=M, N=N, K=K), "forward", "bf16")
              for K, N in ((4096, 16384), (8192, 28672)) for M in (1, 4, 16)]  # fmt: skip
    both = ("triton", "compile")
    elements = sized(M=SHARED // 4096, N=4096)
    found += [BlockPoint("quantised", "fake_quantise", both, elements, "forward", v) for v in ("symmetric", "affine")]
    return [*found, BlockPoint("quantised", "lut", both, elements, "forward", "gelu"),
            BlockPoint("quantised", "pwl", both, elements, "forward", "gelu")]  # fmt: skip


def step(rows=()) -> list[BlockPoint]:
    """GPT-2's 124M shape, forward, backward and fused AdamW; then the parts of newer models in it."""
    sizes = sized(B=32, T=1024, layers=12, C=768, heads=12, V=50304)
    found = [BlockPoint("step", "step", ("triton", "compile", "triton!compile"), sizes, "both", kind)
             for kind in ("softmax", "consmax")]  # fmt: skip
    return [*found, replace(found[1], options=NEWER)]


PARTS = {
    "block_correctness": Part("every launch row of the other kernels, against fp64 or integers", correctness, 120,
                              parallel=14, check=True),
    "block_int64": Part("other kernels: more than 2^31 elements", int64, 32, check=True),
    "block_determinism": Part("other kernels: 20 runs in each of two processes", determinism, 12, parallel=2,
                              check=True),
    "block_memory": Part("what an MLP keeps; P13: memory of head and loss", memory, 8, check=True),
    "step": Part("a training step of the 124M shape", step, 156),
    "products": Part("P9: linear layers and activations", products, 36),
    "mlp": Part("P10: MLPs, forward and backward", mlp, 30),
    "linear_ce": Part("P13: head and loss in one", linear_ce, 40),
    "norms": Part("P11: norms", norms, 45),
    "cross_entropy": Part("P12: cross entropy of logits", cross_entropy, 12),
    "rotary": Part("P14: rotary embedding", rotary, 12),
    "quantised": Part("int8 and ternary products, rounding, tables", quantised, 35),
}  # fmt: skip

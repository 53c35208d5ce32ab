"""What is checked and timed of attention: parts by name, each a list of points. Pure: no torch, no GPU.

A point is a shape with contestants. `triton:consmax` is our kernel of that kind (`@128x64x8x2`: with that launch row
in place of the committed one), `triton:consmax!frozen` the same without gradients of beta and gamma, `compile:consmax`
the plain torch reference of the kind under torch.compile, `flex` and `sdpa-*` are softmax.

Legend: B batch, H query heads, K key/value heads, T queries, S keys, D head width, E value width.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

KINDS = ("softmax", "consmax", "sigmoid", "relu", "relu2", "polymax", "softplus")
WIDTHS = (32, 64, 128, 256)  # of the launch table
OPS = ("forward", "d_queries", "d_keys", "decode")  # of the launch table
LENGTHS = (1024, 2048, 4096, 8192, 16384)
TOKENS = 16384  # in a batch of training
BASELINE_LENGTH = 4096  # where the baselines that must be compiled, or that keep all scores, are timed


@dataclass(frozen=True)
class Point:
    part: str
    op: str  # forward, backward, both (forward and backward), decode; ceiling
    contestants: tuple[str, ...]
    B: int
    H: int
    K: int
    T: int
    S: int
    D: int
    E: int
    dtype: str = "bf16"
    causal: bool = True
    window: int = 0  # 0: none
    softcap: float = 0.0
    bias: bool = False
    variant: str = ""  # of a kind: base2, clamp, lobo, power3, alibi
    heads_inside: bool = False  # laid out (B, T, H, D), as projections leave it
    splits: int = 0  # of decode; 0: by `decode_splits`
    row: str = ""  # op of the launch table whose rows are tried
    run: int = 0  # tells points apart that are the same but for the process they run in

    @property
    def name(self) -> str:
        wide = f"D{self.D}" + (f" E{self.E}" if self.E != self.D else "")
        heads = f"H{self.H}" + (f"/{self.K}" if self.K != self.H else "")
        tokens = f"T{self.T}" + (f" S{self.S}" if self.S != self.T else "")
        options = [self.dtype] * (self.dtype != "bf16") + ["full"] * (not self.causal) + [self.variant, self.row]
        options += [f"window {self.window}"] * bool(self.window) + [f"softcap {self.softcap}"] * bool(self.softcap)
        options += ["bias"] * self.bias + ["heads inside"] * self.heads_inside + [f"run {self.run}"] * bool(self.run)
        options += [f"splits {self.splits}"] * bool(self.splits)
        return " ".join(filter(None, [self.op, f"B{self.B}", heads, tokens, wide, *options]))

    @property
    def group(self) -> tuple:
        """Points of a group share kernels."""
        return split_contestant(self.contestants[0])[1], self.D, self.dtype == "fp32", self.variant, self.run


@dataclass(frozen=True)
class Part:
    help: str
    points: Callable[[Sequence[Mapping[str, str]]], Sequence]  # of the rows so far
    weight: float  # share of the time that is left
    parallel: int = 1  # processes at once; 1 for everything timed
    by_itself: bool = True  # whether a run of all parts holds it
    check: bool = False  # rather than timed


def triton(*kinds: str) -> tuple[str, ...]:
    return tuple("triton:" + kind for kind in kinds)


def split_contestant(contestant: str) -> tuple[str, str, str, str]:
    """(provider, kind, launch, flag) of a contestant's name."""
    rest, _, flag = contestant.partition("!")
    rest, _, launch = rest.partition("@")
    provider, _, kind = rest.partition(":")
    return provider, kind or "softmax", launch, flag


def kernel_name(kind: str, width: int, variant: str, dtype: str) -> str:
    """What a red check stands for: kernels of one kind and row of the launch table; 4-byte types have other tiles."""
    row = next(D for D in WIDTHS if D >= width)
    return f"{kind} {variant} D{row}" + (" fp32" if dtype == "fp32" else "")


def correctness(rows=()) -> list[Point]:
    """Every row of the launch table with every kind, in shapes that no tile divides; then what the flags add."""
    return [p for kind in KINDS for D in WIDTHS for p in row_checks(triton(kind), D)] + flag_checks()


def row_checks(contestants: tuple[str, ...], D: int) -> list[Point]:
    base = Point("correctness", "backward", contestants, 2, 4, 2, 777, 777, D, D)
    always = [
        base,
        replace(base, T=200, S=513, window=150, dtype="fp16", heads_inside=True),
        replace(base, op="decode", H=8, T=1, S=3001, splits=7),
    ]
    if D not in (64, 128):
        return always
    return always + [
        replace(base, H=2, T=300, S=260, causal=False, softcap=2.0),
        replace(base, op="decode", K=4, T=3, S=1111, splits=4, window=500, dtype="fp16"),
    ]


def flag_checks() -> list[Point]:
    found = []
    base = Point("correctness", "backward", triton("consmax"), 2, 4, 2, 333, 333, 64, 64)
    for kind in ("softmax", "consmax"):
        both = replace(base, contestants=triton(kind))
        found += [replace(both, D=80, E=80), replace(both, D=96, E=128), replace(both, T=1, S=1)]
        found += [replace(both, bias=True), replace(both, T=400, S=333), replace(both, variant="base2")]
        found += [replace(both, variant="alibi"), replace(both, op="decode", T=1, S=999, splits=3, variant="alibi")]
        found += [replace(both, op="decode", D=192, E=128, T=1, S=2000, splits=5)]
    found += [replace(base, variant="clamp"), replace(base, contestants=triton("softmax"), variant="lobo")]
    found += [replace(base, contestants=triton("polymax"), variant="power3")]
    for kind in KINDS:  # 4-byte types take half the tiles of a row
        fp32 = replace(base, contestants=triton(kind), dtype="fp32")
        found += [fp32, replace(fp32, D=128, E=128), replace(fp32, op="decode", T=1, S=999, splits=3)]
    return found


def int64(rows=()) -> list[Point]:
    """Tensors of more than 2^31 elements: 520 x 16 x 2048 x 128, and a cache of 17 million tokens."""
    both = triton("softmax", "consmax")
    wide = Point("int64", "backward", both, 520, 16, 16, 2048, 2048, 128, 128)
    cache = Point("int64", "decode", both, 1, 2, 1, 1, (1 << 24) + 77, 128, 128, splits=32)
    return [wide, replace(wide, heads_inside=True), cache]


def determinism(rows=()) -> list[Point]:
    base = Point("determinism", "backward", triton("softmax", "consmax", "sigmoid"), 2, 16, 4, 2048, 2048, 64, 64)
    decode = replace(base, op="decode", T=1, S=8192, splits=8)
    points = [base, replace(base, D=128, E=128), decode]
    return [replace(p, run=run) for run in (1, 2) for p in points]


def memory(rows=()) -> list[Point]:
    return [Point("memory", "both", triton("softmax", "consmax"), 1, 16, 16, 16384, 16384, 128, 128)]


def ceilings(rows=()) -> list[Point]:
    """T bytes copied; a product of T x T x T."""
    copy = Point("ceilings", "ceiling", ("copy",), 1, 1, 1, 1 << 32, 1, 1, 1)
    return [copy, replace(copy, contestants=("matmul",), T=8192)]


def _training(part: str, op: str, contestants, at_baseline=(), lengths=LENGTHS, widths=(64, 128)) -> list[Point]:
    found = []
    for D in widths:
        for T in sorted(lengths, key=lambda T: (T != BASELINE_LENGTH, T)):  # what is cut off by time is not the middle
            names = (*contestants, *(at_baseline if T == BASELINE_LENGTH else ()))
            found.append(Point(part, op, names, TOKENS // T, 2048 // D, 2048 // D, T, T, D, D))
    return found


SDPA = ("sdpa-flash", "sdpa-cudnn")
COMPILED = ("sdpa-math", "flex", "compile:softmax", "compile:consmax")


def forward(rows=()) -> list[Point]:
    narrow = _training("forward", "forward", (*triton("softmax", "consmax", "relu", "polymax"), *SDPA), COMPILED,
                       widths=(64,))  # fmt: skip
    wide = _training("forward", "forward", (*triton("softmax", "consmax"), *SDPA), COMPILED, widths=(128,))
    return sorted(narrow + wide, key=lambda p: (p.T != BASELINE_LENGTH, -p.T))


def backward(rows=()) -> list[Point]:
    return _training("backward", "backward", (*triton("softmax", "consmax"), *SDPA), COMPILED)


def training(rows=()) -> list[Point]:
    names = (*triton("softmax", "consmax", "consmax!frozen"), *SDPA)
    return _training("training", "both", names, ("flex",))


def window(rows=()) -> list[Point]:
    full = _training("window", "forward", triton("softmax", "consmax"), lengths=(16384,))
    return [q for p in full for q in (p, replace(p, window=1024))]


def decode(rows=()) -> list[Point]:
    """Caches up to 40 GB; query heads 1, 4 and 8 to a key head."""
    found = []
    for S in (1024, 8192, 32768, 131072):
        for B in (1, 8, 64):
            for G in (1, 4, 8):
                names = (*triton("softmax", "consmax"), "sdpa-flash", "sdpa-cudnn")
                found.append(Point("decode", "decode", names, B, 8 * G, 8, 1, S, 128, 128))
    return sorted((p for p in found if 4 * p.B * p.K * p.S * p.D <= 40e9), key=lambda p: (p.H != 32, -p.B * p.S))


LAUNCHES = {  # tried by `tune`: BM x BN x warps x stages
    "forward": ("128x128x8x2", "128x128x8x3", "128x64x8x3", "128x64x4x2", "64x128x4x2", "64x64x4x3"),
    "d_queries": ("128x64x8x2", "128x64x8x3", "128x128x8x2", "64x64x4x2", "64x128x4x2", "128x32x8x3"),
    "d_keys": ("64x128x8x2", "64x64x4x2", "64x64x8x2", "128x64x8x2", "32x128x8x2", "128x128x8x2"),
    "decode": ("16x128x4x3", "16x64x4x3", "16x64x4x4", "16x128x8x2", "16x256x8x2", "16x32x4x4"),
}
TUNED = [(op, D, kind) for op in OPS for D in (64, 128) for kind in ("consmax", "softmax")]


def _tune_point(part: str, op: str, D: int, contestants: tuple[str, ...]) -> Point:
    if op == "decode":
        return Point(part, op, contestants, 8, 32, 8, 1, 32768, D, D, row=op)
    H = 2048 // D
    return Point(part, "forward" if op == "forward" else "backward", contestants, 4, H, H, 4096, 4096, D, D, row=op)


def tune_check(rows=()) -> list[Point]:
    found = []
    for op, D, kind in TUNED:
        for launch in LAUNCHES[op]:
            point = _tune_point("tune_check", op, D, (f"triton:{kind}@{launch}",))
            found.append(replace(point, B=2, T=1 if op == "decode" else 777, S=3001 if op == "decode" else 777))
    return found


def tune(rows=()) -> list[Point]:
    """Launch rows that passed `tune_check`, beside the committed one."""
    good = {(r["row"], r["D"], r["kind"], r["launch"]) for r in rows
            if r["part"] == "tune_check" and r["status"] == "ok"}  # fmt: skip
    found = []
    for op, D, kind in TUNED:
        names = [f"triton:{kind}@{x}" for x in LAUNCHES[op] if (op, str(D), kind, x) in good]
        if names:
            found.append(_tune_point("tune", op, D, ("triton:" + kind, *names)))
    return found


PARTS = {
    "correctness": Part("every launch row and kind, and every flag, against fp64", correctness, 180, parallel=14,
                        check=True),
    "int64": Part("tensors of more than 2^31 elements", int64, 20, check=True),
    "determinism": Part("20 runs in each of two processes, bit by bit", determinism, 15, parallel=2, check=True),
    "memory": Part("what a training step keeps and its peak, against the sum of its tensors", memory, 12, check=True),
    "ceilings": Part("copy bandwidth and matrix product rate of this device", ceilings, 12),
    "forward": Part("P1, P3, P6: causal forward", forward, 95),
    "backward": Part("P2, P4: backward alone", backward, 85),
    "training": Part("P5: forward and backward, gradients of beta and gamma in it", training, 50),
    "window": Part("P7: a window of 1,024 in 16,384", window, 15),
    "decode": Part("P8: one query over a cache", decode, 60),
    "tune_check": Part("launch rows to try: spills, correctness", tune_check, 150, parallel=14, by_itself=False,
                       check=True),
    "tune": Part("times of those that passed tune_check, and the rows that win", tune, 200, by_itself=False),
}  # fmt: skip

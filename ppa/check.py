"""Declared against measured: the counts of the operation list beside those of the module itself.

The module is built and run on the meta device, where tensors have shapes and no storage. On the CPU FlopCounterMode
counts 0 for fused attention (pytorch issue 195460); on meta it sees every product. Compared: parameters, names and
shapes of the weights, matrix FLOPs of each stage, size of the KV cache. Not compared, because no tool counts them:
primitive operations and bytes moved. Not compared here either: the step of the optimizer, which is not the module's.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch.overrides import TorchFunctionMode

from gptcore.config import GPTConfig, TrainConfig
from gptcore.model import GPT
from gptcore.optim import TABLE

from .count import Counted, Point


@dataclass(frozen=True)
class Check:
    """One comparison. `measured` is None where the measurement itself was impossible; `note` says why."""

    name: str
    unit: str
    declared: int
    measured: int | None
    measured_by: str
    status: Literal["pass", "fail", "skipped"]
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def _compare(name: str, unit: str, declared: int, measured_by: str, measure: Callable[[], int]) -> Check:
    try:
        measured = measure()
    except RuntimeError as error:  # an operation without a meta kernel, shapes that do not fit
        return Check(name, unit, declared, None, measured_by, "fail", f"the module does not run on meta: {error}")
    return Check(name, unit, declared, measured, measured_by, "pass" if declared == measured else "fail")


class _SkipRandomFill(TorchFunctionMode):
    """Skips random fills: on meta there is nothing to fill, but torch would do it with decompositions, slowly."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func.__name__ in ("normal_", "uniform_"):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def build_on_meta(model: GPTConfig) -> GPT:
    """The module without storage; milliseconds for any size."""
    with torch.device("meta"), _SkipRandomFill():
        return GPT(model)


def counted_flops(run: Callable[[], object]) -> int:
    """Matrix FLOPs of what `run` executes, by torch's FlopCounterMode."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def run_checks(model: GPTConfig, counted: Counted, training: TrainConfig) -> list[Check]:
    """Every comparison at the point of `counted`. A failure means a wrong declaration: do not trust the counts then."""
    module, point = build_on_meta(model), counted.point
    module.get_parameter(TABLE).requires_grad_(not training.import_wte_freeze)
    numel = _compare("parameters", "parameters", counted.params, "numel of the module", module.parameter_count)
    by = "FlopCounterMode on meta"
    flops = {stage: totals["matmul_flops"] for stage, totals in counted.totals.items()}
    flops["train"] -= sum(row["flops"] for row in counted.rows if row["phase"] == "optimizer")
    tokens = torch.zeros(point.batch, point.seq_len, dtype=torch.long, device="meta")

    def prefill() -> int:
        with torch.no_grad():
            return counted_flops(lambda: module.eval()(tokens))

    def train() -> int:
        return counted_flops(lambda: module.train()(tokens, tokens)[1].backward())

    checks = [
        numel,
        _check_weights(module, counted),
        _compare("prefill_matmul_flops", "FLOPs", flops["prefill"], by, prefill),
        _compare("train_matmul_flops", "FLOPs", flops["train"], by, train),
    ]
    cache = module.new_cache(point.batch, point.context)
    if cache is None:
        note = "this attention kind has no stepwise decode"
        skipped = (("decode_matmul_flops", "FLOPs", flops["decode"]), ("kv_cache_bytes", "bytes", counted.kv_bytes))
        return checks + [Check(name, unit, n, None, "", "skipped", note) for name, unit, n in skipped]
    checks.append(_compare("decode_matmul_flops", "FLOPs", flops["decode"], by, lambda: _decode(module, point, cache)))
    # A kind may keep keys and values at widths of its own; both sides list the tensors layer by layer.
    widths = [tensor.bits for tensor in counted.cache.values()]
    by = f"model.new_cache at {', '.join(map(str, sorted(set(widths) or {point.bits.kv})))} bit"
    tensors = cache.tensors()
    if len(widths) != len(tensors):
        widths = [point.bits.kv] * len(tensors)
    measured = sum(-(-tensor.numel() * bits // 8) for tensor, bits in zip(tensors, widths, strict=True))
    checks.append(_compare("kv_cache_bytes", "bytes", counted.kv_bytes, by, lambda: measured))
    return checks


@torch.no_grad()
def _decode(module: GPT, point: Point, cache: Any) -> int:
    """FLOPs of the token after a prompt of context - 1."""
    tokens = torch.zeros(point.batch, point.context, dtype=torch.long, device="meta")
    module.eval()
    if point.context > 1:
        module(tokens[:, :-1], cache=cache)
    return counted_flops(lambda: module(tokens[:, -1:], cache=cache))


def _check_weights(module: GPT, counted: Counted) -> Check:
    """Names and shapes; the numbers are how many tensors there are, and how many of the module's are declared so."""
    declared = {name: tuple(t.shape) for name, t in counted.weights.items()}
    actual = {name: tuple(p.shape) for name, p in module.named_parameters()}
    odd = sorted(name for name in declared.keys() | actual.keys() if declared.get(name) != actual.get(name))
    note = "; ".join(f"{n}: declared {declared.get(n)}, in the module {actual.get(n)}" for n in odd[:3])
    more = f"; and {len(odd) - 3} more" if len(odd) > 3 else ""
    return Check(
        "weight_names_and_shapes", "tensors", len(declared), len(actual), "named_parameters of the module",
        "fail" if odd else "pass", note + more,
    )  # fmt: skip

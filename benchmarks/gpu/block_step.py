"""A training step of a GPT: all kernels, plain torch under torch.compile, or both; forward, backward and fused AdamW.

Matrix products are in the point's type by autocast, parameters in fp32; tokens are random. Before anything is timed,
loss and gradients of the model with kernels are compared with those of plain torch in fp32, by the rule of `checks`,
where plain torch in the same types is the measure; the batch is cut into parts for both, so that they fit.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gptcore.kernel_choice import use_kernels
from gptcore.loader import from_dict
from gptcore.model import GPT
from kernels.roofline import Work

from . import checks
from .block_plan import NEWER, BlockPoint
from .contestants import DTYPES, compiled
from .plan import split_contestant

PART = 4  # sequences that are compared at once
RATE = 1e-4


def configuration(point: BlockPoint):
    attention: dict[str, Any] = {"n_head": point["heads"], "softmax": {"kind": point.variant}}
    model = {"n_layer": point["layers"], "n_embd": point["C"], "block_size": point["T"], "vocab_size": point["V"],
             "attention": attention, "mlp": {"activation": {"kind": "gelu", "approximate": "tanh"}}}  # fmt: skip
    if point.options == NEWER:  # as many parameters: 8/3 of the width, rounded down
        model |= {"mlp": {"kind": "swiglu", "hidden_size": 8 * point["C"] // 3}, "norm": "rmsnorm",
                  "position": "rotary", "bias": False}  # fmt: skip
    return from_dict({"model": model}).model


def fresh(point: BlockPoint, path: str, device: str) -> GPT:
    """The same parameters each time."""
    torch.manual_seed(0)
    model = GPT(configuration(point)).to(device)
    use_kernels(model, lambda part: path, torch.device(device), DTYPES[point.dtype])  # type: ignore[arg-type,return-value]
    return model


class Step:
    def __init__(self, point: BlockPoint, seed: int, device: str, multiprocessors: int):
        self.point, self.device = point, device
        generator = torch.Generator(device).manual_seed(seed)
        size = (point["B"], point["T"] + 1)
        tokens = torch.randint(0, point["V"], size, generator=generator, device=device)
        self.batch = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
        self.runs: dict[str, Callable[[], None]] = {}
        self.own_bytes: dict[str, int] = {}
        self.models: dict[str, tuple[GPT, Any]] = {}

    def kernel(self, contestant: str) -> str:
        return self.point.kernel

    def _model(self, contestant: str) -> tuple[GPT, Any]:
        """(the model, what is called)."""
        if contestant not in self.models:
            provider, _, _, flag = split_contestant(contestant)
            model = fresh(self.point, "triton" if provider == "triton" else "reference", self.device)
            self.models[contestant] = model, (compiled(model) if "compile" in (provider, flag) else model)
        return self.models[contestant]

    def _loss(self, forward: Any, batch: tuple[Tensor, Tensor], dtype: torch.dtype | None = None) -> Tensor:
        dtype = dtype or DTYPES[self.point.dtype]
        device = torch.device(self.device).type
        with torch.autocast(device, dtype=dtype, enabled=dtype != torch.float32):
            return forward(*batch)[1]

    def gradients(self, model: GPT, forward: Any, parts: int, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """Loss and gradients of the batch, in so many parts."""
        total = torch.zeros((), device=self.device)
        for xs, ys in zip(*(t.chunk(parts) for t in self.batch), strict=True):
            loss = self._loss(forward, (xs, ys), dtype) * (len(xs) / len(self.batch[0]))
            loss.backward()
            total += loss.detach()
        found = {"out": total} | {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        model.zero_grad(set_to_none=True)
        return found

    def gate(self, contestant: str) -> tuple[float, float]:
        plain = fresh(self.point, "reference", self.device)
        parts = max(len(self.batch[0]) // PART, 1)
        truth = self.gradients(plain, plain, parts, torch.float32)
        torchs = self.gradients(plain, plain, parts)
        got = self.gradients(*self._model(contestant), 1)
        if got.keys() != truth.keys():
            raise ValueError(f"gradients of {sorted(got.keys() ^ truth.keys())} on one side only")
        found = [pair for _, *pair in checks.judged(got, torchs, truth, self.point.dtype)]
        error, allowed = max(found, key=lambda pair: checks.excess(*pair))
        return error, allowed

    def run(self, contestant: str) -> Callable[[], None]:
        model, forward = self._model(contestant)
        on_gpu = torch.device(self.device).type == "cuda"
        optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, fused=on_gpu)

        def step() -> None:
            self._loss(forward, self.batch).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        self.runs[contestant] = step
        parameters = sum(p.numel() * p.element_size() for p in model.parameters())
        self.own_bytes[contestant] = 3 * parameters  # with both moments
        return step

    def work(self, contestant: str) -> Work:
        """Of matrix products of parameters and of causal attention, 2 operations a multiplication, thrice forward."""
        p, model = self.point, self._model(contestant)[0]
        tokens = p["B"] * p["T"]
        products = sum(x.numel() for n, x in model.named_parameters() if x.dim() == 2 and "position" not in n)
        return Work(3 * (2 * products * tokens + 2 * p["layers"] * p["C"] * tokens * p["T"]), 0, 0)

    def facts(self, contestant: str) -> dict:
        """Peak memory of this contestant alone, in bytes: parameters, moments, and what a step adds."""
        if torch.device(self.device).type != "cuda":
            return {}
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        self.runs[contestant]()
        torch.cuda.synchronize()
        return {"value": self.own_bytes[contestant] + torch.cuda.max_memory_allocated() - before}

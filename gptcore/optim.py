"""Optimizers: which parameters each of them moves, and what a step of it costs.

adamw       arXiv 1711.05101        decoupled weight decay
muon        arXiv 2502.16982        orthogonal steps for the weight matrices of the blocks, AdamW for the rest
lion        arXiv 2302.06675        the sign of a momentum
adafactor   arXiv 1804.04235        second moments by row and column only

Whichever it is, matrices decay by `weight_decay`; norms, biases and per-head constants never do.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from .config import TrainConfig
from .errors import UserError
from .ops import Graph, Matmul, Op, Pass, Pointwise, Reduce, Tensor, gradient

TABLE = "transformer.wte.weight"  # the parameter that `import_wte_freeze` leaves alone
NEWTON_SCHULZ_STEPS = 5
MUON_MOMENTUM = 0.95


class Lion(torch.optim.Optimizer):
    """u = sign(beta1 m + (1 - beta1) g);  theta -= lr (u + decay theta);  m = beta2 m + (1 - beta2) g."""

    def __init__(self, params: Any, lr: float, betas: tuple[float, float], weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            grads: list[torch.Tensor] = [p.grad for p in params]
            for p in params:
                if not self.state[p]:
                    self.state[p]["exp_avg"] = torch.zeros_like(p)
            momenta = [self.state[p]["exp_avg"] for p in params]
            beta1, beta2 = group["betas"]
            updates = torch._foreach_lerp(momenta, grads, 1 - beta1)
            torch._foreach_sign_(updates)
            if group["weight_decay"]:
                torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(params, updates, alpha=-group["lr"])
            torch._foreach_lerp_(momenta, grads, 1 - beta2)


class Joined(torch.optim.Optimizer):
    """Several optimizers as one: their parameter groups one after the other, one state."""

    def __init__(self, *parts: torch.optim.Optimizer):
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        """The parts work on the groups and on the state of the whole: what is set or loaded here holds there."""
        groups = iter(self.param_groups)
        for part in self.parts:
            part.param_groups = [next(groups) for _ in part.param_groups]
            part.state = self.state

    def __setstate__(self, state: dict[str, Any]) -> None:  # how `load_state_dict` puts new groups and state in place
        super().__setstate__(state)
        self._share()

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for part in self.parts:
            part.step()


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer of `config` for the parameters that get gradients.

    A group's rate is `rate_scale` (1 where it has none) times that of the schedule: see `set_rate`.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    rate, betas = config.learning_rate, (config.beta1, config.beta2)
    if config.optimizer == "muon":
        from .model import GPT, declare

        assert isinstance(model, GPT)
        names = product_weights(declare(model.config, Pass("prefill", 1, 1, 1)))
        matrices = [named.pop(name) for name in list(named) if name in names]
        if not matrices:
            raise UserError("train.optimizer muon: the blocks of this model have no weight matrices of linear layers")
        muon = _torch_optimizer("Muon")(
            [{"params": matrices, "rate_scale": config.muon_learning_rate / rate}],
            lr=config.muon_learning_rate, weight_decay=config.weight_decay, momentum=MUON_MOMENTUM,
            ns_steps=NEWTON_SCHULZ_STEPS,
        )  # fmt: skip
        groups = _decay_groups(named.values(), config.weight_decay)
        return Joined(muon, torch.optim.AdamW(groups, lr=rate, betas=betas, fused=True))
    groups = _decay_groups(named.values(), config.weight_decay)
    if config.optimizer == "lion":
        return Lion(groups, rate, betas)
    if config.optimizer == "adafactor":
        if any(hasattr(p, "full_tensor") for p in named.values()):
            raise UserError("train.optimizer adafactor does not work on weights in shards: choose --parallel=ddp")
        return _torch_optimizer("Adafactor")(groups, lr=rate)
    return torch.optim.AdamW(groups, lr=rate, betas=betas, fused=True)


def _decay_groups(params: Iterable[torch.Tensor], decay: float) -> list[dict[str, Any]]:
    params = list(params)
    matrices, vectors = [p for p in params if p.dim() >= 2], [p for p in params if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _torch_optimizer(name: str) -> Any:
    found = getattr(torch.optim, name, None)
    if found is None:
        raise UserError(
            f"train.optimizer {name.lower()} needs torch.optim.{name}, which torch {torch.__version__} does not have: "
            "install a newer torch (2.9 or later), or choose another optimizer"
        )
    return found


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Every group at the scheduled rate, in proportion to its peak."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("rate_scale", 1.0)


def settings_of(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """The hyperparameters of every group."""
    return [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]


def product_weights(g: Graph) -> set[str]:
    """Names of the weight matrices of linear layers in the blocks: exactly 2-D, and an operand of a product.

    Not embeddings, the head, tables, stacks of matrices (experts) and per-head constants, whatever their shape.
    """
    made_from: dict[str, Tensor] = {}  # a weight that is rounded first is the operand under another name
    found = set()
    for op in g.ops:
        if op.phase != "forward" or op.slot != "linear":
            continue
        sources = [made_from.get(t.name, t) for t in op.reads]
        weights = [t for t in sources if t.role == "weight" and len(t.shape) == 2 and min(t.shape) > 1]
        if isinstance(op, Matmul):
            found |= {t.name for t in weights if t.name.startswith("transformer.h.")}
        else:
            out = op.writes[0]
            made_from.update((out.name, t) for t in weights if t.shape == out.shape)
    return found


def declare(g: Graph, config: TrainConfig | None = None) -> None:
    """Appends one step of the optimizer for every parameter, after `g.add_backward()`. States have 32 bits."""
    config = config or TrainConfig()
    frozen = {TABLE} if config.import_wte_freeze else set()
    if frozen:  # no gradient of its own, and none of what is computed for it alone
        unwanted = {"d:" + name for name in frozen}
        g.ops = [op for op in g.ops if op.phase != "backward" or not {t.name for t in op.writes} <= unwanted]
    orthogonal = product_weights(g) if config.optimizer == "muon" else set()
    for w in g.weights().values():
        if w.name in frozen:
            continue
        if w.name in orthogonal:
            _Step(g, w, "muon").muon()
        elif config.optimizer == "lion":
            _Step(g, w, "lion").update(1, mul=6, add=4, compare=1)
        elif config.optimizer == "adafactor":
            _Step(g, w, "adafactor").adafactor()
        else:
            # theta -= lr (decay theta + m / (sqrt(v) + eps)): Loshchilov & Hutter, algorithm 2.
            _Step(g, w, "adamw").update(2, mul=8, add=5, sqrt=1, div=1)


class _Step:
    """Records the update of one weight."""

    def __init__(self, g: Graph, w: Tensor, kind: str):
        self.g, self.w, self.kind = g, w, kind

    def state(self, name: str, *shape: int, bits: int = 32) -> Tensor:
        return Tensor(f"{self.w.name}.{name}", shape, "optimizer", bits, math.prod(shape))

    def scratch(self, name: str, *shape: int, bits: int = 32) -> Tensor:
        return Tensor(f"{self.w.name}.{name}", shape, "intermediate", bits, math.prod(shape))

    def record(self, op: type[Op], name: str, reads: tuple, writes: tuple, **extra: Any) -> None:
        self.g.ops.append(
            op(
                name=f"{self.w.name}.{name}", slot="optimizer", kind=self.kind, layer=None, phase="optimizer",
                reads=reads, writes=writes, **extra,
            )
        )  # fmt: skip

    def each(self, op: type[Op], name: str, reads: tuple, writes: tuple, **per_element: int) -> None:
        self.record(op, name, reads, writes, per_element=tuple(per_element.items()))

    def update(self, states: int, **per_element: int) -> None:
        """Everything element by element, with `states` values an element that are read and written back."""
        moments = tuple(self.state(f"state{i}", *self.w.shape) for i in range(states))
        self.each(Pointwise, "step", (self.w, gradient(self.w), *moments), (self.w, *moments), **per_element)

    def product(self, name: str, a: Tensor, b: Tensor, out: Tensor, *, batch: int = 1, m: int, k: int, n: int) -> None:
        self.record(Matmul, name, (a, b), (out,), batch=batch, m=m, k=k, n=n)

    def muon(self) -> None:
        """Newton-Schulz in 16 bits on the matrix turned so that it is wide: X = (a + b G + c G^2) X with G = X X^T."""
        low, high = sorted(self.w.shape)
        momentum = self.state("momentum", *self.w.shape)
        x = self.scratch("direction", low, high, bits=16)
        self.each(Pointwise, "nesterov", (gradient(self.w), momentum), (momentum, x), mul=2, add=4)
        norm = self.scratch("norm", 1)
        self.each(Reduce, "norm", (x,), (norm,), mul=1, add=1)
        self.each(Pointwise, "scale", (x, norm), (x,), div=1)
        gram, polynomial = self.scratch("gram", low, low, bits=16), self.scratch("polynomial", low, low, bits=16)
        for i in range(NEWTON_SCHULZ_STEPS):
            self.product(f"gram.{i}", x, x, gram, m=low, k=high, n=low)
            self.product(f"square.{i}", gram, gram, polynomial, m=low, k=low, n=low)
            self.each(Pointwise, f"polynomial.{i}", (gram, polynomial), (polynomial,), mul=2, add=1)
            self.product(f"turn.{i}", polynomial, x, x, m=low, k=low, n=high)
            self.each(Pointwise, f"sum.{i}", (x,), (x,), mul=1, add=1)
        self.each(Pointwise, "step", (self.w, x), (self.w,), mul=2, add=1)

    def adafactor(self) -> None:
        """Vectors keep a second moment an element, matrices (the last two dimensions) one a row and one a column."""
        w, update = self.w, self.scratch("update", *self.w.shape)
        if len(w.shape) < 2:
            moment = self.state("variance", *w.shape)
            self.each(Pointwise, "moment", (gradient(w), moment), (moment,), mul=2, add=2)
            self.each(Pointwise, "precondition", (gradient(w), moment), (update,), max=1, rsqrt=1, mul=1)
        else:
            *stack, rows, columns = w.shape
            row, column = self.state("row_var", *stack, rows, 1), self.state("col_var", *stack, 1, columns)
            for name, moment in (("row", row), ("column", column)):
                mean = self.scratch(name + "_mean", *moment.shape)
                self.each(Reduce, name + "_mean", (gradient(w),), (mean,), mul=1, add=1)
                self.each(Pointwise, name + "_moment", (mean, moment), (moment,), mul=1, add=2)
            outer = self.scratch("variance", *w.shape)
            self.product("outer", row, column, outer, batch=math.prod(stack), m=rows, k=1, n=columns)
            self.each(Pointwise, "precondition", (outer, row, gradient(w)), (update,), div=1, max=1, rsqrt=1, mul=1)
        size, change = self.scratch("size", 1), self.scratch("change", 1)
        self.each(Reduce, "size", (w,), (size,), mul=1, add=1)
        self.each(Reduce, "change", (update,), (change,), mul=1, add=1)
        self.each(Pointwise, "step", (w, update, size, change), (w,), mul=2, add=1)

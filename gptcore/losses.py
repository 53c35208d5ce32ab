"""What training minimises: cross entropy, and what may be put on it in any combination. Validation is always plain.

Legend: B batch, T tokens, N = B T, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, finfo

from .config import Kernel, TrainConfig
from .kernel_choice import runs
from .ops import Graph
from .ops import Tensor as OpTensor

# (logits (B, T, V), targets (B, T), tokens (B, T)) -> scalar
Objective = Callable[[Tensor, Tensor, Tensor], Tensor]
IGNORED = -1  # a target without a loss


def cross_entropy(logits_BTV: Tensor, targets_BT: Tensor, idx_BT: Tensor) -> Tensor:
    """Mean over the targets that are not -1, in nats."""
    return F.cross_entropy(logits_BTV.flatten(0, 1).float(), targets_BT.flatten(), ignore_index=IGNORED)


def mean_of_live(loss_N: Tensor, targets_N: Tensor) -> Tensor:
    """Mean over the tokens that have a target."""
    live_N = targets_N != IGNORED
    return (loss_N * live_N).sum() / live_N.sum()


def shaped(logits_NV: Tensor, targets_N: Tensor, *, smoothing: float, gamma: float, z: float) -> Tensor:
    """(1 - p)^gamma ((1 - smoothing) nll + smoothing mean_v(nll_v)) + z log(Z)^2 of each token (N,).

    p is the probability of the target and Z = sum_v exp(logit_v). Label smoothing: Szegedy et al., arXiv 1512.00567.
    Focal loss: Lin et al., arXiv 1708.02002, eq. 4. z-loss: PaLM, arXiv 2204.02311, section 5.
    """
    log_z_N = logits_NV.logsumexp(-1)
    log_p_N = logits_NV.gather(-1, targets_N.clamp_min(0).unsqueeze(-1)).squeeze(-1) - log_z_N
    loss_N = -log_p_N
    if smoothing:
        loss_N = (1 - smoothing) * loss_N + smoothing * (log_z_N - logits_NV.mean(-1))
    if gamma:
        # Of a power below 1 the slope at 0 is infinite: a sure token gets no gradient instead.
        loss_N = loss_N * (-log_p_N.expm1()).clamp_min(finfo(log_p_N.dtype).eps) ** gamma
    if z:
        loss_N = loss_N + z * log_z_N.square()
    return loss_N


def is_plain(config: TrainConfig) -> bool:
    """Whether the training loss is the cross entropy alone, so that it compares with the validation loss."""
    return not (config.label_smoothing or config.focal_gamma or config.z_loss or config.distill_from)


@dataclass(frozen=True)
class CrossEntropy:
    """The objective without a teacher (`gptcore.distill` adds one): `shaped`, averaged; plain by default.

    `kernel` says what computes it from logits; a model whose head the kernel takes in has none.
    """

    smoothing: float = 0.0
    gamma: float = 0.0
    z: float = 0.0
    kernel: Kernel = "reference"

    def __call__(self, logits_BTV: Tensor, targets_BT: Tensor, idx_BT: Tensor) -> Tensor:
        if runs(self.kernel, logits_BTV, None, "loss"):
            from kernels.cross_entropy import cross_entropy as by_kernel

            logits_NV, targets_N = logits_BTV.flatten(0, 1), targets_BT.flatten()
            return by_kernel(logits_NV, targets_N, **self.terms, ignore_index=IGNORED, in_place=False)
        if not (self.smoothing or self.gamma or self.z):
            return cross_entropy(logits_BTV, targets_BT, idx_BT)
        logits_NV, targets_N = logits_BTV.flatten(0, 1).float(), targets_BT.flatten()
        loss_N = shaped(logits_NV, targets_N, smoothing=self.smoothing, gamma=self.gamma, z=self.z)
        return mean_of_live(loss_N, targets_N)

    @property
    def terms(self) -> dict[str, float]:
        return {"smoothing": self.smoothing, "gamma": self.gamma, "z": self.z}


def make_objective(config: TrainConfig) -> CrossEntropy:
    return CrossEntropy(config.label_smoothing, config.focal_gamma, config.z_loss, config.kernel_of("loss"))


def declare(g: Graph, logits: OpTensor, config: TrainConfig | None = None) -> None:
    """Records the training loss of `logits` (B, T, V). A teacher's own pass is not counted, the comparison is."""
    with g.at("loss", slot="loss", kind="cross_entropy"):
        per_token = _log_softmax(g, logits)
        if config is None:
            return
        if config.label_smoothing:
            g.reduce("mean_logit", logits, add=1)
            g.pointwise("smooth", per_token, role="intermediate", mul=2, add=2)
        if config.focal_gamma:  # x^gamma = exp(gamma log x)
            g.pointwise("focal", per_token, role="intermediate", exp=2, log=1, mul=2, add=1)
        if config.z_loss:
            g.pointwise("z_loss", per_token, role="intermediate", mul=2, add=1)
        if config.distill_from is not None:
            softened = g.pointwise("soften", logits, role="intermediate", mul=1)
            _log_softmax(g, softened, prefix="softened_")
            g.reduce("divergence", softened, add=3, mul=1)


def _log_softmax(g: Graph, logits: OpTensor, prefix: str = "") -> OpTensor:
    highest = g.reduce(prefix + "max", logits, max=1)
    shifted = g.pointwise(prefix + "shift", logits, highest, role="intermediate", add=1)
    total = g.reduce(prefix + "sum_exp", shifted, exp=1, add=1)
    return g.pointwise(prefix + "log", total, role="intermediate", log=1, add=1)

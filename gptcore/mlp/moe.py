"""Mixture of experts: each token is computed by the few experts that a learned router chooses for it.

Top-k routing after Shazeer et al. (arXiv 1701.06538), gates as in Mixtral (arXiv 2401.04088) or Switch (2101.03961).

The choices, A = top_k N for N tokens, are laid out in blocks of rows that belong to one expert each, so that two
batched products compute all experts with shapes that do not depend on the choices (MegaBlocks, arXiv 2211.15841):

    dropless     blocks of a quarter of an expert's fair share of rows, the last one of each expert padded: at most a
                 quarter more rows than choices; of few choices, as in decode, one row a block and no padding.
                 Sizes are whole tiles of matrix kernels: with 5 to 7 rows a block, float64 results had other bits in
                 other rows, and a token would have seen how many came after it
    a capacity   one block an expert while training, of ceil(capacity_factor A / E) rows and at most N (Switch, eq. 3);
                 of a micro-batch, sequence after sequence, the choices that find their expert full are dropped and
                 contribute nothing. Evaluation and decode drop nothing

Padded rows are counted in what is computed, and left out of what a machine needs (`live`).

Legend: N tokens, K chosen experts of each, A = N K choices, E experts, M blocks of R rows, C width, H hidden width.
"""

import math
from contextlib import nullcontext
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import knob
from ..precision import wide
from ..registry import KindConfig, Problem, build, impl, register, slot
from . import MLP


class Stack(nn.Module):
    """One matrix an expert, side by side."""

    def __init__(self, *shape: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape))

    def of(self, expert_M: Tensor | None) -> Tensor:
        """Those of the experts given, or all of them."""
        return self.weight if expert_M is None else self.weight.index_select(0, expert_M)

    def init_weights(self, std: float) -> None:
        nn.init.normal_(self.weight, std=std)


class Blocks(NamedTuple):
    """Where choices lie in the blocks. A row without a choice holds token 0, and nobody reads its result."""

    place_A: Tensor  # row of each choice
    token_R: Tensor  # token of each row of all blocks
    expert_M: Tensor | None  # expert of each block; None: block m is that of expert m
    kept_A: Tensor | None  # whether a choice found room; None: all did
    load_E: Tensor  # choices of each expert


@register("mlp", "moe", on=("use_moe",))
class MixtureOfExperts(MLP):
    """sum over the top_k experts of g_e W2_e activation(W1_e x), g = softmax of the router's logits R x.

    Training adds balance E sum_e f_e P_e to the loss: f_e the share of all choices that fell on expert e, dropped ones
    included, P_e its mean probability; `balance` itself when all are equal (Switch, eq. 4, divided by top_k). Experts
    have no biases (Mixtral). The router computes in at least fp32 (Switch, section 2.4).
    """

    residual = ("c_proj",)

    class Config(KindConfig):
        n_experts: int = knob(8, "experts in each layer", ge=1)
        top_k: int = knob(2, "experts that compute a token", flat=("moe_top_k",), ge=1)
        gates: Literal["chosen", "all"] = knob(
            "chosen", "softmax over the chosen experts (Mixtral), or over all of them (Switch)", flat=()
        )
        capacity_factor: float | None = knob(
            None, "most choices that an expert takes in training, over its fair share; null: no limit", flat=(), gt=0
        )
        balance: float = knob(0.01, "weight of the loss that balances the experts", flat=(), ge=0)
        expansion_factor: float = knob(
            4.0, "hidden width of each expert over model width", flat=("mlp_expansion_factor",), gt=0
        )
        hidden_size: int | None = knob(
            None, "hidden width of each expert, instead of the factor", flat=("mlp_size",), ge=1
        )
        activation: KindConfig = slot("activation", "gelu", flat=("activation_variant",))

        def width(self, n_embd: int) -> int:
            return self.hidden_size or max(1, round(self.expansion_factor * n_embd))

        def blocks(self, tokens: int, training: bool) -> tuple[int, int]:
            """(number of blocks, rows of each) that hold the choices of so many tokens, however they fall."""
            choices, experts = tokens * self.top_k, self.n_experts
            if training and self.capacity_factor is not None:
                return experts, min(tokens, math.ceil(self.capacity_factor * choices / experts))
            quarter = choices // (4 * experts)
            step = next((step for step in (16, 8, 4, 2) if step <= quarter), 1)
            rows = max(step, quarter // step * step)
            return (choices + min(experts, choices) * (rows - 1)) // rows, rows

    @classmethod
    def check(cls, config, dims):
        if config.top_k > config.n_experts:
            yield Problem("top_k", f"{config.top_k} experts a token, but there are {config.n_experts}")
        elif config.top_k == 1 and config.n_experts > 1 and config.gates == "chosen":
            yield Problem("gates", "the gate of a single chosen expert is always 1, and teaches the router nothing")
        if config.width(dims.n_embd) % impl(config.activation).narrowing:
            yield Problem("hidden_size", f"{config.activation.kind} needs an even hidden width")

    def __init__(self, config, dims):
        super().__init__(config, dims)
        E, C, H = config.n_experts, dims.n_embd, config.width(dims.n_embd)
        self.router = Stack(E, C)
        self.c_fc = Stack(E, C, H)
        self.activation = build(config.activation)
        self.c_proj = Stack(E, H // self.activation.narrowing, C)

    def route(self, x_NC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(logits of all experts, gates of the chosen ones, their numbers)."""
        device = x_NC.device.type
        # Near-equal experts would change places under the rounding of half precision. Meta tensors know no autocast.
        with nullcontext() if device == "meta" else torch.autocast(device, enabled=False):
            logits_NE = F.linear(wide(x_NC), wide(self.router.weight))
            top_NK, expert_NK = logits_NE.topk(self.config.top_k)
            if self.config.gates == "chosen":
                return logits_NE, top_NK.softmax(-1), expert_NK
            return logits_NE, logits_NE.softmax(-1).gather(-1, expert_NK), expert_NK

    def lay_out(self, expert_NK: Tensor) -> Blocks:
        """Puts every choice into a row of a block of its expert, in order: only earlier tokens can crowd one out."""
        (N, K), E, device = expert_NK.shape, self.config.n_experts, expert_NK.device
        M, rows = self.config.blocks(N, self.training)
        expert_A = expert_NK.flatten()
        seen_AE = (expert_A[:, None] == torch.arange(E, device=device)).cumsum(0)
        rank_A, load_E = seen_AE.gather(1, expert_A[:, None]).squeeze(1) - 1, seen_AE[-1]
        token_A = torch.arange(N * K, device=device) // K
        if self.training and self.config.capacity_factor is not None:
            kept_A = rank_A < rows
            place_A = expert_A * rows + rank_A
            spare = torch.zeros(M * rows + 1, dtype=torch.long, device=device)  # its last row takes what is dropped
            token_R = spare.scatter(0, place_A.where(kept_A, M * rows), token_A)[:-1]
            return Blocks(place_A.where(kept_A, 0), token_R, None, kept_A, load_E)
        blocks_E = (load_E + rows - 1) // rows
        end_E = blocks_E.cumsum(0)
        place_A = (end_E - blocks_E)[expert_A] * rows + rank_A
        token_R = torch.zeros(M * rows, dtype=torch.long, device=device).scatter(0, place_A, token_A)
        expert_M = torch.searchsorted(end_E, torch.arange(M, device=device), right=True).clamp_max(E - 1)
        return Blocks(place_A, token_R, expert_M, None, load_E)

    def forward(self, x_BTC):
        x_NC = x_BTC.flatten(0, -2)
        logits_NE, gate_NK, expert_NK = self.route(x_NC)
        blocks = self.lay_out(expert_NK)
        if self.training and self.config.balance:
            share_E = blocks.load_E / expert_NK.numel()
            probability_E = logits_NE.softmax(-1).mean(0)
            self.auxiliary = self.config.balance * self.config.n_experts * (share_E * probability_E).sum()
        if blocks.kept_A is not None:
            gate_NK = gate_NK * blocks.kept_A.view_as(gate_NK)
        up_MCH, down_MHC = self.c_fc.of(blocks.expert_M), self.c_proj.of(blocks.expert_M)
        x_MRC = x_NC.index_select(0, blocks.token_R).view(len(up_MCH), -1, x_NC.shape[-1])
        y_MRC = torch.bmm(self.activation(torch.bmm(x_MRC, up_MCH)), down_MHC)
        y_NKC = y_MRC.flatten(0, 1).index_select(0, blocks.place_A).view(*gate_NK.shape, -1)
        return (y_NKC * gate_NK.to(y_NKC.dtype).unsqueeze(-1)).sum(1).view(x_BTC.shape)

    @staticmethod
    def declare(config, g, x, dims):
        *lead, C = x.shape
        N, K, E, H = math.prod(lead), config.top_k, config.n_experts, config.width(dims.n_embd)
        training = g.run.stage == "train"
        M, rows = config.blocks(N, training)
        live = min(N * K, M * rows)  # rows that hold a choice, if as few as possible are dropped
        logits = g.matmul("router", x, g.weight("router.weight", E, C), (*lead, E), m=N, k=C, n=E, role="intermediate")
        chosen = g.view(g.pointwise("top_k", logits, role="intermediate", compare=K), *lead, K)
        if config.gates == "all":
            gates = g.view(_declare_softmax(g, "gates", logits, sorted_=False), *lead, K)
        else:
            gates = _declare_softmax(g, "gates", chosen, sorted_=True)
        if training and config.balance:
            _declare_balance(g, logits, shared=config.gates == "all")
        token, place = (g.tensor(name, n, role="index") for name, n in (("token", M * rows), ("place", N * K)))
        inner = H // impl(config.activation).narrowing
        up, down = g.weight("c_fc.weight", E, C, H), g.weight("c_proj.weight", E, inner, C)
        if not (training and config.capacity_factor is not None):
            # Blocks of one expert read the same weights, which move once: of an expert a choice, and of all at most.
            expert, met = g.tensor("expert", M, role="index"), min(E, N * K)
            up = g.gather("up", up, expert, M, C, H, role="intermediate", touched=met * C * H)
            down = g.gather("down", down, expert, M, inner, C, role="intermediate", touched=met * inner * C)
        x = g.gather("dispatch", x, token, M, rows, C, live=live * C)
        h = g.matmul("c_fc.matmul", x, up, (M, rows, H), batch=M, m=rows, k=C, n=H, live=live * H)
        with g.at("activation", slot="activation", kind=config.activation.kind):
            h = impl(config.activation).declare(config.activation, g, h)
        y = g.matmul("c_proj.matmul", h, down, (M, rows, C), batch=M, m=rows, k=inner, n=C, live=live * C)
        y = g.gather("combine", y, place, *lead, K, C)
        return g.view(g.pointwise("weigh", y, gates, mul=1, add=1), *lead, C)


def _declare_softmax(g, name, logits, *, sorted_):
    """Of the last dimension; sorted values have their largest in front."""
    highest = (logits,) if sorted_ else (logits, g.reduce(name + ".max", logits, max=1))
    e = g.pointwise(name + ".exp", *highest, role="intermediate", add=1, exp=1)
    return g.pointwise(name + ".div", e, g.reduce(name + ".sum", e, add=1), role="intermediate", div=1)


def _declare_balance(g, logits, *, shared):
    """The loss of the router, from its probabilities, which the gates have computed already if `shared`."""
    p = logits if shared else _declare_softmax(g, "balance", logits, sorted_=False)
    mean = g.reduce("balance.mean", g.view(p, p.shape[-1], p.numel // p.shape[-1]), add=1)
    g.reduce("balance.loss", g.view(mean, 1, p.shape[-1]), mul=1, add=1)

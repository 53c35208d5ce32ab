"""GPT: token embedding, position, blocks, norm and head. Knows the slots and their order, no kind by name.

Legend: B batch, T tokens, C width, V vocabulary.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import losses, optim
from .block import declare_parts
from .config import GPTConfig, LayerConfig, TrainConfig
from .embedding import Head, TokenEmbedding
from .errors import UserError
from .kernel_choice import Kernelled, Part, working_type
from .losses import IGNORED, CrossEntropy, cross_entropy
from .ops import Bits, Graph, Pass
from .ops import Tensor as OpTensor
from .registry import build, impl

INIT_STD = 0.02  # GPT-2


class Transformer(nn.Module):
    """The parts under GPT-2's prefix `transformer.`: token table, blocks, final norm."""

    wte: Any
    ln_f: Any

    def __init__(self, wte: nn.Module, h: list[nn.Module], ln_f: nn.Module):
        super().__init__()
        self.wte, self.h, self.ln_f = wte, nn.ModuleList(h), ln_f


class GPT(Kernelled, nn.Module):
    """A causal language model of a configuration whose `vocab_size` is known.

    Parameters are named as in GPT-2 (`transformer.h.0.attn.c_attn.weight`). Initialised as GPT-2: normal(0, 0.02),
    projections into the residual stream smaller by sqrt(2 n_layer), biases zero, norms one. Its own kernel, beside
    those of its parts, is that of head and loss.
    """

    part: Part = "loss"

    def __init__(self, config: GPTConfig):
        super().__init__()
        if config.vocab_size is None:
            raise UserError("model.vocab_size is unknown: prepare the data set, or set model.vocab_size")
        self.config = config
        dims, layers = config.dims(), config.layer_configs()
        heads = [impl(layer.attention).heads(layer.attention, dims) for layer in layers]
        self.position: Any = build(config.position, dims, heads)
        self.transformer = Transformer(
            TokenEmbedding(config.vocab_size, config.n_embd, config.embedding),
            [build(layer.block, layer, replace(dims, layer=i)) for i, layer in enumerate(layers)],
            build(config.output_norm(), config.n_embd, dims),
        )
        self.transformer.ln_f.narrow = True
        blocks: Any = self.transformer.h
        for i, block in enumerate(blocks):  # layers that share parameters hold the same module
            block.attn = blocks[config.share.owner("attention", i, config.n_layer)].attn
            block.mlp = blocks[config.share.owner("mlp", i, config.n_layer)].mlp
        self.lm_head: Any = Head(config.vocab_size, config.n_embd, config.embedding)
        if config.tie_embeddings:
            self.lm_head.weight = self.transformer.wte.weight
        norm, output = config.norm_embedding, config.softmax_output
        self.norm_embedding: Any = build(norm, config.n_embd, dims) if norm is not None else None
        self.softmax_output: Any = build(output, dims, 1) if output is not None else None
        # What training minimises: (logits (B, T, V), targets (B, T), tokens (B, T)) -> loss. Evaluation always takes
        # the plain cross entropy, so that runs compare.
        self.objective: Callable[[Tensor, Tensor, Tensor], Tensor] = CrossEntropy()
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        residual_std = INIT_STD / math.sqrt(2 * self.config.n_layer)
        self.lm_head.init_weights(INIT_STD)
        self.transformer.wte.init_weights(INIT_STD)
        for module in self.modules():
            residual = getattr(module, "residual", ())
            for name, child in module.named_children():
                if child in (self.lm_head, self.transformer.wte):
                    continue
                initialise: Any = getattr(child, "init_weights", None)
                if initialise is not None:
                    initialise(residual_std if name in residual else INIT_STD)

    def forward(
        self, idx_BT: Tensor, targets_BT: Tensor | None = None, *, cache: "Cache | None" = None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Logits (B, T, V), and the loss in nats when targets are given (-1 is ignored).

        Where a kernel computes the loss, there are no logits but None beside it. The loss is the mean cross entropy; in
        training mode the objective, and what blocks add to it (a router that balances its experts). With a cache the
        tokens continue those seen before, and the cache takes them up.
        """
        start = cache.length if cache is not None else 0
        end = start + idx_BT.shape[1]
        if end > self.config.block_size:
            raise ValueError(f"{end} tokens do not fit block_size {self.config.block_size}")
        x = self.transformer.wte(idx_BT)
        if self.norm_embedding is not None:
            x = self.norm_embedding(x)
        x = self.position.embed(x, start)
        auxiliary: Any = 0.0
        if self.training and self.config.dropout:
            x = F.dropout(x, self.config.dropout)
        blocks: Any = self.transformer.h
        takers = [*(block.takes_sum for block in blocks), self.transformer.ln_f.runs_kernel][1:]
        for i, (block, takes_sum) in enumerate(zip(blocks, takers, strict=True)):
            apart = takes_sum(x[0] if isinstance(x, tuple) else x)
            x = block(x, self.position.at(i), start, cache.layers[i] if cache is not None else None, apart=apart)
            if block.mlp.auxiliary is not None:
                auxiliary, block.mlp.auxiliary = auxiliary + block.mlp.auxiliary, None
        _, x = self.transformer.ln_f.read(x)
        if targets_BT is not None and cache is None and self.runs_kernel(x) and not self._needs_logits():
            return None, self._loss_by_kernel(x, targets_BT) + auxiliary
        logits = self.lm_head(x)
        if self.softmax_output is not None:
            weights = self.softmax_output.weights(
                logits.unsqueeze(1), torch.ones(1, 1, dtype=torch.bool, device=x.device)
            )
            logits = weights.squeeze(1).clamp_min(torch.finfo(weights.dtype).tiny).log().to(logits.dtype)
        if cache is not None:
            cache.length = end
        if targets_BT is None:
            return logits, None
        if not self.training:
            return logits, cross_entropy(logits, targets_BT, idx_BT)
        return logits, self.objective(logits, targets_BT, idx_BT) + auxiliary

    def kernel_obstacle(self, dropout: float = 0.0) -> str | None:
        return None

    def _needs_logits(self) -> bool:
        """Whether the loss is not that of the head's product alone: another teaches, or weights come first."""
        teaches = self.training and not isinstance(self.objective, CrossEntropy)
        return teaches or self.softmax_output is not None

    def _loss_by_kernel(self, x_BTC: Tensor, targets_BT: Tensor) -> Tensor:
        from kernels.linear_cross_entropy import linear_cross_entropy

        head, dtype = self.lm_head, working_type(x_BTC)
        x = head.narrowed(x_BTC).flatten(0, 1).to(dtype)
        objective: Any = self.objective if self.training else CrossEntropy()
        return linear_cross_entropy(x, head.table(), targets_BT.flatten(), **objective.terms, ignore_index=IGNORED)

    def new_cache(self, batch: int, length: int | None = None) -> "Cache | None":
        """Empty decode state for up to `length` tokens (default block_size); None if a layer has no such state."""
        weight = self.lm_head.weight
        length = self.config.block_size if length is None else length
        blocks: Any = self.transformer.h
        layers = [block.attn.new_cache(batch, length, weight.dtype, weight.device) for block in blocks]
        return None if any(layer is None for layer in layers) else Cache(layers)

    def parameter_count(self) -> int:
        """Distinct parameters; a tied head counts once."""
        return sum(p.numel() for p in self.parameters())


class Cache:
    """Decode state of every layer; `length` tokens have been seen."""

    def __init__(self, layers: list[Any]):
        self.layers = layers
        self.length = 0

    def tensors(self) -> list[Tensor]:
        """Everything that is kept, layer by layer."""
        return [tensor for layer in self.layers for tensor in layer.tensors()]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors())


def declare(config: GPTConfig, run: Pass, bits: Bits | None = None, train: TrainConfig | None = None) -> Graph:
    """The operation list of one execution of a model, from its configuration alone.

    Stage `train` holds forward, loss, backward and the step of the optimizer, as `train` says; `prefill` computes the
    logits of all positions.
    """
    g = Graph(run, bits or Bits(config.bits.weight, config.bits.activation, config.bits.kv))
    x = declare_embedding(config, g)
    for i, layer in enumerate(config.layer_configs()):
        x = declare_layer(config, g, x, layer, i)
    declare_head(config, g, x, train)
    if run.stage == "train":
        g.add_backward()
        optim.declare(g, train)
    return g


def declare_embedding(config: GPTConfig, g: Graph) -> OpTensor:
    """From tokens to the input of the first layer."""
    assert config.vocab_size is not None
    dims, B, T = config.dims(), g.run.B, g.run.T
    with g.at("transformer.wte", slot="embedding", kind=_head_kind(config)):
        tokens = g.tensor("tokens", B, T, role="index")
        x = TokenEmbedding.declare(config.embedding, g, tokens, config.vocab_size, config.n_embd)
    if config.norm_embedding is not None:
        with g.at("norm_embedding", slot="norm", kind=config.norm_embedding.kind):  # type: ignore[attr-defined]
            x = impl(config.norm_embedding).declare(config.norm_embedding, g, x, dims)
    with g.at("position", slot="position", kind=config.position.kind):  # type: ignore[attr-defined]
        x = impl(config.position).declare_embed(config.position, g, x, dims)
    if config.dropout and g.run.stage == "train":
        x = g.pointwise("embedding_dropout", x, compare=1, mul=1)
    return x


def declare_layer(config: GPTConfig, g: Graph, x: OpTensor, layer: LayerConfig, i: int) -> OpTensor:
    """Layer `i`. What it records depends on its index through names, shared parameters and depth-dependent factors."""
    parts: tuple[Any, ...] = (("attn", "attention"), ("mlp", "mlp"))
    for name, part in parts:
        owner = config.share.owner(part, i, config.n_layer)
        if owner != i:
            g.share(f"transformer.h.{i}.{name}", f"transformer.h.{owner}.{name}")
    with _layer(g, layer, i):
        return impl(layer.block).declare(layer.block, g, x, layer, replace(config.dims(), layer=i), config.position)


def declare_part(config: GPTConfig, g: Graph, x: OpTensor, layer: LayerConfig, i: int, part: str) -> OpTensor:
    """The attention (`attn`) or the mlp of layer `i` alone."""
    with _layer(g, layer, i):
        return declare_parts(g, layer, replace(config.dims(), layer=i), config.position, part, x)


def _layer(g: Graph, layer: LayerConfig, i: int):
    return g.at(f"transformer.h.{i}", slot="block", kind=layer.block.kind, layer=i)  # type: ignore[attr-defined]


def declare_head(config: GPTConfig, g: Graph, x: OpTensor, train: TrainConfig | None = None) -> None:
    """From the output of the last layer to logits, or to the loss."""
    assert config.vocab_size is not None
    norm, V = config.output_norm(), config.vocab_size
    with g.at("transformer.ln_f", slot="norm", kind=norm.kind):  # type: ignore[attr-defined]
        x = impl(norm).declare(norm, g, x, config.dims())
    with g.at("transformer.wte"):
        table = g.weight("weight", V, config.embedding.width or config.n_embd)
    with g.at("lm_head", slot="head", kind=_head_kind(config)):
        logits = Head.declare(config.embedding, g, x, table if config.tie_embeddings else None, V)
    output: Any = config.softmax_output
    if output is not None:
        with g.at("softmax_output", slot="softmax", kind=output.kind):
            weights = impl(output).declare(output, g, g.view(logits, g.run.B, 1, g.run.T, V), 1)
            log = g.run.stage == "train"
            logits = g.view(g.pointwise("log", weights, log=1) if log else weights, g.run.B, g.run.T, V)
    if g.run.stage == "train":
        losses.declare(g, logits, train)


def _head_kind(config: GPTConfig) -> str:
    return "tied" if config.tie_embeddings else "untied"
